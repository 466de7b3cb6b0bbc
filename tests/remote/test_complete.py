"""What the tab key offers behind `kubectl rljob`."""

from pathlib import Path

import pytest

from rljob.cli.cluster import Where
from rljob.cli.complete import candidates, where

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


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["status"], Where(None, None, None)),
        (["status", "-n", "team-a"], Where("team-a", None, None)),
        (["status", "-nteam-a"], Where("team-a", None, None)),
        (["--namespace", "team-a", "status"], Where("team-a", None, None)),
        (["status", "--namespace=team-a", "--context=far"], Where("team-a", "far", None)),
        (["status", "--kubeconfig", "my/config"], Where(None, None, Path("my/config"))),
        (["status", "--kubeconfig=my/config", "-n"], Where(None, None, Path("my/config"))),
    ],
)
def test_jobs_are_those_of_the_cluster_and_namespace_that_the_options_name(words: list[str], meant: Where) -> None:
    assert where(words) == meant
