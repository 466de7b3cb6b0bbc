"""What a master leaves behind."""

import json
from pathlib import Path

from rljob.api.status import HeldOutStatus, JobStatus
from rljob.master.lastwords import MOST, last_words, leave


def status(iterations: int, families: int = 0) -> JobStatus:
    return JobStatus(
        phase="Succeeded",
        iteration=iterations,
        iterations=iterations,
        policy_version=iterations,
        reward=0.5,
        rewards=[1 / (3 + i) for i in range(iterations)],
        held_out=[
            HeldOutStatus(iteration=i, accuracy=0.1 + i / 1e6, families={f"family {n}": 1 / 3 for n in range(families)}, count=9)
            for i in range(0, iterations, 10)
        ],
        timings={"train": 1 / 3},
    )


def test_a_short_job_is_told_whole() -> None:
    said = JobStatus.model_validate_json(last_words(status(12)))
    assert said == status(12)


def test_of_a_long_job_the_newest_fits() -> None:
    whole = status(5000, families=20)
    text = last_words(whole)
    assert len(text.encode()) <= MOST
    said = JobStatus.model_validate_json(text)
    assert said.rewards == whole.rewards[said.rewards_before :]
    assert len(said.rewards) > 50
    assert said.finished == 5000
    assert said.held_out == whole.held_out[-len(said.held_out) :]
    assert said.held_out


def test_they_are_written_where_something_keeps_them_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    leave(status(3), file)
    assert not file.exists()
    file.touch()
    leave(status(3), file)
    assert json.loads(file.read_text())["iteration"] == 3
