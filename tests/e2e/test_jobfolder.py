"""What is said about a finished job's prompts would not be said of a job that lost or doubled one."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.jobfolder import assert_every_prompt_is_accounted_for
from tests.master.twins import EOS, World, inputs, job
from tests.master.virtual import run


def check(folder: Path, lines: list[dict[str, Any]]) -> None:
    with sqlite3.connect(folder / "state" / "master.sqlite") as db:
        assert_every_prompt_is_accounted_for(db, lines, per_iteration=3, samples=2, epoch=12)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three iterations of three prompts."""
    made = World(tmp_path, job(), inputs())
    run(made.master())
    return made


def test_a_job_in_order_passes_also_with_answers_in_the_buffer(world: World, tmp_path: Path) -> None:
    check(tmp_path, world.metrics())
    partial = World(
        tmp_path / "partial",
        job(rollout={"maxTokens": 20, "tokenBudget": 4}),
        inputs(),
        lambda number, position: EOS if position == (10 if number % 3 == 0 else 1) else 7,
    )
    run(partial.master())
    assert sum(line["carried"] for line in partial.metrics()) > 0
    check(tmp_path / "partial", partial.metrics())


DAMAGE = {
    "a prompt drawn twice": "UPDATE groups SET prompt = (SELECT prompt FROM groups WHERE ordinal = 1) WHERE ordinal = 7",
    "a prompt drawn but never trained on": "UPDATE groups SET consumed = NULL WHERE ordinal = 4",
    "a prompt trained on by another version": "UPDATE groups SET consumed = 3 WHERE ordinal = 4",
    "a prompt that is gone": "DELETE FROM groups WHERE ordinal = 8",
    "prompts drawn for an iteration that never came": "INSERT INTO groups VALUES (9, 'p99', 4, NULL)",
    "an answer that is gone": "DELETE FROM trajectories WHERE (group_id, sample) = (2, 1)",
    "an answer without a verdict": "UPDATE trajectories SET reward = NULL WHERE (group_id, sample) = (2, 1)",
    "another verdict than was trained on": "UPDATE trajectories SET reward = 1 - reward, is_right = 1 - is_right WHERE group_id = 2",
    "a piece of an answer that was trained on": "INSERT INTO pieces VALUES (2, 1, 0, 0, 'start', x'', x'')",
    "answers counted twice": "UPDATE statistics SET samples = 2 * samples WHERE prompt = (SELECT prompt FROM groups WHERE ordinal = 5)",
    "a task in progress": "INSERT INTO batches VALUES (4, '{}', '[]', '{}', x'')",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(world: World, tmp_path: Path, damage: str) -> None:
    with sqlite3.connect(tmp_path / "state" / "master.sqlite") as db:
        db.execute("PRAGMA foreign_keys=OFF")
        db.execute(DAMAGE[damage])
    with pytest.raises(AssertionError):
        check(tmp_path, world.metrics())
