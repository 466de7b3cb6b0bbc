"""A job trains a reward model, and the folder it leaves gives transformers and the verifier the scores that the job reports."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.jobfolder import ROOT, metrics, processes, start, status, watch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rljob.api.sources import DataSource
from rljob.api.verifiers import RewardModelOptions
from rljob.prepare.data_sources import load
from rljob.reward.scorers import Scorers

EXAMPLE = ROOT / "examples" / "reward-model"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def held_out() -> list[tuple[str, str, str]]:
    """Question, chosen and rejected answer."""
    records = [found.record for found in load(DataSource(path="heldout.jsonl"), "heldout", EXAMPLE, EXAMPLE)]
    return [(r.question, r.text("chosen"), r.text("rejected")) for r in records]


def scores(folder: Path, pairs: list[tuple[str, str, str]]) -> list[list[float]]:
    """By plain transformers, none of this project's code involved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for question, *answers in pairs:
        chats = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for answer in answers]
        rows = tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, padding=True)
        with torch.no_grad():
            found.append(model(**rows).logits[:, 0].tolist())
    return found


async def verifier_scores(folder: Path, pairs: list[tuple[str, str, str]]) -> list[list[Any]]:
    scorers = Scorers(dict(os.environ), folder)
    options = RewardModelOptions(folder=".")
    try:
        asked = [(question, answer) for question, *answers in pairs for answer in answers]
        flat = await asyncio.gather(*(scorers.score(options, [{"role": "user", "content": q}], a) for q, a in asked))
    finally:
        await scorers.stop()
    return [list(flat[i : i + 2]) for i in range(0, len(flat), 2)]


def test_a_job_trains_a_reward_model_that_gives_the_reported_scores(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    process = start(EXAMPLE / "rljob.yaml", folder, "--set", "spec.iterations=2", "--set", "spec.rewardModel.stepsPerIteration=12")
    made = watch(process, folder, timeout=720)
    output = folder.with_suffix(".out").read_text()
    assert process.returncode == 0, output[-3000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []
    assert "Have it judge the answers of another job" in output

    before, after = status(folder)["heldOut"][0], status(folder)["heldOut"][-1]
    assert (before["iteration"], after["iteration"], after["count"]) == (0, 2, 256)
    assert after["accuracy"] > before["accuracy"]
    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]

    pairs = held_out()
    found = scores(folder / "model", pairs)
    right = sum(chosen > rejected for chosen, rejected in found) / len(found)
    assert abs(right - after["accuracy"]) <= 1 / 256, "but for a pair whose scores are equal up to rounding"
    some = asyncio.run(verifier_scores(folder / "model", pairs[:8]))
    assert torch.allclose(torch.tensor(some), torch.tensor(found[:8]), atol=1e-3)
