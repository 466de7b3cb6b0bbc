"""A job that trains a reward model: pairs in batches, held-out pairs measured by the task that makes a version, no engine and no reward."""

from pathlib import Path

import pytest
from tests.master.test_loop import assert_same, phases
from tests.master.twins import World, inputs, job, prompt
from tests.master.virtual import run

from rljob.api.algorithm import RewardModelSpec
from rljob.master.decisions.pairs import judged_pairs, pair_batch
from rljob.master.inputs import Inputs
from rljob.wire.data import PromptRecord

PAIRS = RewardModelSpec(steps_per_iteration=2, batch_size=2)
SPEC = {"stepsPerIteration": 2, "batchSize": 2}
HELD_OUT = {"data": {"path": "heldout.jsonl"}, "every": 2}


def pair(number: int, family: str = "") -> PromptRecord:
    return prompt(number, family=family, chosen=(5, 6, 0), rejected=(7, 0))


def pairs(train: int = 6, heldout: int = 2) -> Inputs:
    known = inputs(train, heldout)
    return Inputs(known.prepared, tuple(map(pair, range(train))), tuple(pair(1000 + i, "ab"[i % 2]) for i in range(heldout)), ())


def numbers(iteration: int, shuffled: bool = False, seed: int = 0, train: int = 6) -> list[int]:
    batch = pair_batch(pairs(train).train, pairs().heldout, PAIRS, iteration, seed, shuffled)
    assert (batch.version, batch.held_out, len(batch.groups)) == (iteration, 2, 6)
    assert [s.advantage for s in batch.groups[0].samples] == [1.0, -1.0]
    return [int(group.prompt[0]) for group in batch.groups]


def test_the_pairs_are_walked_once_then_again_from_iteration_to_iteration() -> None:
    assert [numbers(i) for i in (1, 2, 3)] == [[0, 1, 2, 3, 1000, 1001], [4, 5, 0, 1, 1000, 1001], [2, 3, 4, 5, 1000, 1001]]
    walked = [n for i in (1, 2, 3) for n in numbers(i, shuffled=True)[:4]]
    assert sorted(walked[:6]) == sorted(walked[6:]) == list(range(6)), "each pass holds every pair once"
    assert walked[:6] != walked[6:], "in another order"
    assert numbers(1, shuffled=True, seed=1) != numbers(1, shuffled=True, seed=0)
    assert numbers(1, train=2) == [0, 1, 0, 1, 1000, 1001], "a small set is walked several times in one iteration"


def test_a_record_without_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="record p3 has no pair"):
        pair_batch([prompt(3)], [], PAIRS, 1, 0, False)


def test_a_pair_with_equal_scores_is_not_in_the_right_order() -> None:
    judged = judged_pairs([prompt(i, chosen=(5, 6), rejected=(7,)) for i in range(3)], [0.5, 0.0, -0.5], ["a", "b", "c"])
    assert [(one.right, one.length) for one in judged] == [(True, 2), (False, 2), (False, 2)]


def test_a_job_takes_these_durable_steps_and_no_engine_is_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path, job(iterations=3, rewardModel=SPEC, evaluation=HELD_OUT), pairs())
    run(world.master())
    evaluation = ["held-out answers", "evaluation"]
    assert phases(world.steps) == [
        *("create", "start"),
        *("batch", "register", *evaluation, *evaluation, "commit"),  # before the first iteration, and after it
        *("batch", "register", *evaluation, "commit"),
        *("batch", "register", *evaluation, "commit"),
    ]
    assert world.engines == {}
    assert world.status()["phase"] == "Succeeded"
    assert world.status()["policyVersion"] == 3


def test_the_figure_is_the_share_of_held_out_pairs_in_the_right_order(tmp_path: Path) -> None:
    world = World(tmp_path, job(iterations=2, rewardModel=SPEC, evaluation=HELD_OUT), pairs(heldout=4))
    run(world.master())
    held_out = world.status()["heldOut"]
    assert [(h["iteration"], h["accuracy"], h["count"]) for h in held_out] == [(0, 0.5, 4), (1, 0.75, 4), (2, 0.75, 4)]
    assert held_out[-1]["families"] == {"a": 1.0, "b": 0.5}
    lines = world.metrics()
    assert [(line["reward"], line["margin"], line["groups"], line["answers"]) for line in lines] == [(0.75, 0.5, 4, 8)] * 2
    assert (lines[0]["held_out_before"], lines[-1]["held_out"]) == (0.5, 0.75)
    report = (tmp_path / "output" / "report.html").read_text()
    assert "Training pairs in the right order" in report
    assert "question 1000" in report


def test_a_master_killed_at_any_durable_step_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    given = job(iterations=3, rewardModel=SPEC, evaluation=HELD_OUT)
    whole = World(tmp_path / "whole", given, pairs())
    run(whole.master())

    async def killed_at(step: int) -> World:
        world = World(tmp_path / f"killed-{step}", given, pairs())
        assert not await world.master(crash_at=step)
        assert await world.master()
        return world

    # Step 2 on: before that the state does not exist yet.
    for step in range(2, len(whole.steps)):
        world = run(killed_at(step))
        assert_same(world, whole)
        assert world.status()["heldOut"] == whole.status()["heldOut"]
