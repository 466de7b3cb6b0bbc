"""The tiny example from the YAML to a trained model, with every real part: Megatron-core, vLLM, the reward service."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.e2e.jobfolder import ROOT, metrics, processes, start, status, watch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rljob.api import RLJob
from rljob.rollout.engine import zygote_environment

EXAMPLE = ROOT / "examples" / "tiny" / "rljob.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Finished:
    """A job that ran to its end."""

    folder: Path
    output: str
    metrics: list[dict[str, Any]]
    status: dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("tiny") / "job"
    process = start(EXAMPLE, folder)
    made = watch(process, folder, timeout=2400)
    output = folder.with_suffix(".out").read_text()
    assert process.returncode == 0, output[-4000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []
    return Finished(folder, output, metrics(folder), status(folder))


def _answers(folder: Path, words: list[str]) -> list[str]:
    """Greedy answers by plain transformers, none of this project's code involved."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    answers: dict[str, str] = {}
    for length in {len(word) for word in words}:  # prompts of one length need no padding
        alike = [word for word in words if len(word) == length]
        chats = [[{"role": "user", "content": word}] for word in alike]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**prompts, do_sample=False, max_new_tokens=32)
        answers |= zip(alike, tokenizer.batch_decode(out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True), strict=True)
    return [answers[word] for word in words]


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model, words = json.loads(sys.stdin.read())
llm = LLM(model, load_format="auto", dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, max_num_seqs=16)
chats = [[{"role": "user", "content": word}] for word in words]
answers = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=32), use_tqdm=False)
print(json.dumps([answer.outputs[0].text for answer in answers]))
"""


def _answers_of_vllm(folder: Path, words: list[str]) -> list[str]:
    """The same by plain vLLM, which loads the model from disk; without this project's plugin."""
    job = RLJob.model_validate(yaml.safe_load(EXAMPLE.read_text()))
    environment = zygote_environment(job, {**os.environ, "VLLM_PLUGINS": "", "OMP_NUM_THREADS": "1"})
    done = subprocess.run(
        [sys.executable, "-c", VLLM], input=json.dumps([str(folder / "model"), words]), env=environment, text=True, capture_output=True,
        check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_reward_rises_and_the_held_out_prompts_are_mastered(tiny: Finished) -> None:
    rewards = [line["reward"] for line in tiny.metrics]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    held_out = tiny.status["heldOut"]
    assert held_out[0]["accuracy"] < 0.7
    assert held_out[-1]["accuracy"] > 0.9


def test_there_is_one_record_for_every_iteration(tiny: Finished) -> None:
    iterations = yaml.safe_load(EXAMPLE.read_text())["spec"]["iterations"]
    assert [line["iteration"] for line in tiny.metrics] == list(range(1, iterations + 1))
    assert tiny.status["phase"] == "Succeeded"


def test_plain_transformers_agrees_with_the_reported_accuracy_on_prompts_that_nobody_has_seen(tiny: Finished) -> None:
    """A model that had learnt its prompts by heart, or an accuracy that is not what was measured, would fall short on other ones."""
    script = runpy.run_path(str(EXAMPLE.parent / "make_data.py"))
    records = script["fresh"](seed=7, count=256)
    seen = {json.loads(line)["prompt"] for name in ("train", "heldout") for line in (EXAMPLE.parent / f"{name}.jsonl").open()}
    assert not seen & {r["prompt"] for r in records}
    answers = _answers(tiny.folder, [r["prompt"] for r in records])
    accuracy = sum(a == r["reference"] for a, r in zip(answers, records, strict=True)) / len(records)
    reported = tiny.status["heldOut"][-1]
    shares = [(accuracy, len(records)), (reported["accuracy"], reported["count"])]
    error = math.sqrt(sum(p * (1 - p) / n for p, n in shares))
    assert abs(accuracy - reported["accuracy"]) <= 3 * max(error, 1 / len(records))


def test_plain_vllm_loads_the_model_and_answers_as_transformers_does(tiny: Finished) -> None:
    words = [json.loads(line)["prompt"] for line in (EXAMPLE.parent / "heldout.jsonl").read_text().splitlines()[:24]]
    answers = _answers_of_vllm(tiny.folder, words)
    assert answers == _answers(tiny.folder, words)
    assert sum(answer == word[::-1] for answer, word in zip(answers, words, strict=True)) > 12, "they are answers of the trained model"


def test_engine_and_trainer_agreed_on_every_token_that_was_trained_on(tiny: Finished) -> None:
    assert max(line["logprob_gap"] for line in tiny.metrics) < 1e-3


def test_the_summary_tells_where_model_and_report_are(tiny: Finished) -> None:
    assert str(tiny.folder / "model") in tiny.output.replace("\n", "")
    page = (tiny.folder / "report.html").read_text()
    assert "<svg" in page
    # Self-contained: nothing is fetched when the page is opened.
    assert re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?!#|data:)\S+|url\(\s*["']?https?:|@import""", page) == []
