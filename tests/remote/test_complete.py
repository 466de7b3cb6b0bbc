"""What the tab key offers behind `kubectl rljob`."""

import pytest

from rljob.cli.complete import candidates

JOBS = ["sums", "sorting", "words"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["s"], (["status", "scale", "suspend"], 4)),
        (["status", "s"], (["sums", "sorting"], 4)),
        (["status", "-n", "team-a", ""], (JOBS, 4)),
        (["logs", "sums", "w"], (["worker"], 4)),
        (["status", "sums", ""], ([], 4)),
        (["plan", "s"], (["sums", "sorting"], 0)),
        (["validate", ""], ([], 0)),
        ([], (["status", "watch", "logs", "scale", "suspend", "resume", "plan", "validate"], 4)),
    ],
)
def test_commands_jobs_and_roles_are_completed(words: list[str], offered: tuple[list[str], int]) -> None:
    assert candidates(words, JOBS) == offered
