"""The tiny example from the YAML to a trained model, with every real part: Megatron-core, vLLM, the reward service."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.e2e.jobfolder import ROOT, metrics, processes, start, status, watch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLE = ROOT / "examples" / "tiny" / "rljob.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
    made = watch(process, folder, timeout=800)
    output = folder.with_suffix(".out").read_text()
    assert process.returncode == 0, output[-4000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []
    return Finished(folder, output, metrics(folder), status(folder))


def _answers(folder: Path, records: list[dict[str, Any]], count: int) -> list[str]:
    """Greedy answers by plain transformers, none of this project's code involved."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    answers = []
    for record in records[:count]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": record["prompt"]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**prompt, do_sample=False, max_new_tokens=32)
        answers.append(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
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


def test_plain_transformers_agrees_with_the_reported_accuracy(tiny: Finished) -> None:
    records = [json.loads(line) for line in (EXAMPLE.parent / "heldout.jsonl").read_text().splitlines()]
    answers = _answers(tiny.folder, records, 128)
    accuracy = sum(a == r["reference"] for a, r in zip(answers, records, strict=False)) / len(answers)
    # 128 prompts of the 256: three standard errors of a proportion near 0.95.
    assert accuracy == pytest.approx(tiny.status["heldOut"][-1]["accuracy"], abs=0.06)


def test_engine_and_trainer_agreed_on_every_token_that_was_trained_on(tiny: Finished) -> None:
    assert max(line["logprob_gap"] for line in tiny.metrics) < 1e-3


def test_the_summary_tells_where_model_and_report_are(tiny: Finished) -> None:
    assert str(tiny.folder / "model") in tiny.output.replace("\n", "")
    page = (tiny.folder / "report.html").read_text()
    assert "<svg" in page
    # Self-contained: nothing is fetched when the page is opened.
    assert re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?!#|data:)\S+|url\(\s*["']?https?:|@import""", page) == []
