"""A job whose answers are programs: `rljob run` starts the sandbox, every program is tried there, training learns from the verdicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.jobfolder import database, metrics, processes, start, status, watch

ITERATIONS, PROMPTS, SAMPLES = 2, 16, 8
NUMBERS, HELD_OUT = range(11, 90), range(90, 100)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def program(number: int) -> str:
    return f"```\nprint({number})\n```"


def record(number: int, shown: int | None) -> dict[str, Any]:
    """The task to write a program that prints a number; with the demonstration of one that prints `shown`."""
    made: dict[str, Any] = {"prompt": str(number), "reference": {"tests": [{"stdin": "", "expected": str(number)}]}}
    return made if shown is None else made | {"demonstration": program(shown)}


def job(folder: Path) -> Path:
    """A tiny model, to which a right program and one that runs and is wrong are shown for every task."""
    splits = {
        "train": [record(number, None) for number in NUMBERS],
        "warmstart": [record(number, shown) for number in NUMBERS for shown in (number, 10)],
        "heldout": [record(number, None) for number in HELD_OUT],
    }
    for name, records in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    shape = {"hiddenSize": 128, "ffnSize": 512, "layers": 2, "heads": 4, "kvHeads": 2, "contextLength": 64}
    spec = {
        "model": {"source": {"scratch": shape | {"extraTokens": ["```\nprint(", ")\n```"]}}},
        "data": {"train": {"path": "train.jsonl"}},
        "evaluation": {"data": {"path": "heldout.jsonl"}, "every": ITERATIONS},
        "warmStart": {"data": {"path": "warmstart.jsonl"}, "steps": 80, "batchSize": 64, "learningRate": 3.0e-3, "warmupSteps": 8},
        "iterations": ITERATIONS,
        "algorithm": {"promptsPerIteration": PROMPTS, "samplesPerPrompt": SAMPLES},
        "trainer": {"precision": "fp32", "optimizer": {"learningRate": 1.0e-4}},
        "rollout": {"maxTokens": 8},
        "reward": {"verifier": "code"},
    }
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "programs"}, "spec": spec}
    file = folder / "rljob.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_programs_are_run_in_the_sandbox_and_what_passes_earns_the_reward(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    process = start(job(tmp_path), folder)
    made = watch(process, folder, timeout=900)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []

    with database(folder) as db:
        rows = db.execute("SELECT prompt, answer, is_right, reward, reason FROM trajectories JOIN groups ON ordinal = group_id").fetchall()
    assert len(rows) == ITERATIONS * PROMPTS * SAMPLES
    prompts = {f"train-{index:06d}": number for index, number in enumerate(NUMBERS)}
    right = {answer == program(prompts[prompt]): set[bool]() for prompt, answer, *_ in rows}
    for prompt, answer, is_right, reward, reason in rows:
        right[answer == program(prompts[prompt])].add(bool(is_right))
        assert reward == is_right, "no failure became a reward, and no verdict is missing"
        assert bool(reason) != bool(is_right)
    # Some programs that look otherwise print the right number too, so that only what is surely right is asserted to be.
    assert right[True] == {True}
    assert False in right[False]
    assert any("0 of 1 tests; wrong_answer" in reason for *_, reason in rows), "a program ran, and printed something else"

    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert all(0 < line["reward"] < 1 and line["zero_advantage"] < 1 and line["grad_norm"] > 0 for line in lines)
    assert all(line["seconds"]["reward-wait"] >= 0 for line in lines)
    assert status(folder)["heldOut"][-1]["count"] == len(HELD_OUT)
    said = folder.with_suffix(".out").read_text()
    assert "sandbox is ready" in said
    assert "judging +" in said
