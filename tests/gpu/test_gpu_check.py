"""`make gpu-check` without a GPU: what it says, in which order, and that no step takes another with it."""

import json
import subprocess
import sys
from pathlib import Path

from scripts.gpu_check import STEPS, Result, Step, check, figures, plan, table

ROOT = Path(__file__).parents[2]


def python(name: str, code: str, *needs: str, limit: float = 60.0) -> Step:
    return Step(name, (sys.executable, "-c", code), needs, limit)


def test_every_step_is_tried_and_one_that_fails_stops_only_what_needs_it() -> None:
    said: list[str] = []
    results = check(
        [
            python("a", "print('noise'); print('fast')"),
            python("b", "import sys; print('noise', file=sys.stderr); sys.exit('no such thing')"),
            python("c", "print('never')", "b"),
            python("d", "import os; os.abort()"),
            python("e", "print('still here')", "a"),
        ],
        said.append,
    )
    assert [(r.name, r.outcome, r.words) for r in results] == [
        ("a", "works", "fast"),
        ("b", "fails", "no such thing"),
        ("c", "not run", "needs b"),
        ("d", "fails", "status -6"),
        ("e", "works", "still here"),
    ]
    assert len(said) == 5


def test_a_step_that_hangs_is_ended() -> None:
    (result,) = check([python("a", "import signal; signal.pause()", limit=0.5)], lambda line: None)
    assert (result.outcome, result.words) == ("fails", "not done after 0 s")


def test_the_plan_has_every_step_and_jobs_come_last() -> None:
    steps = plan()
    assert [step.name for step in steps] == list(STEPS)
    assert [step.name for step in steps[-2:]] == ["job-restart", "job-sleep"]
    assert all(step.command[-1] == step.name for step in steps)


def test_the_table_is_markdown() -> None:
    assert table([Result("memory", "works", 1.25, "79 GiB")]).splitlines()[-1] == "| memory | works | 1.2 | 79 GiB |"


def test_the_figures_of_a_job_are_those_of_its_last_iteration() -> None:
    lines = [
        {"iteration": i, "switch_policy": "sleep", "logprob_gap": 0.01 * i, "seconds": {"gate": 0.5, "load": 0.0, "total": 9}}
        for i in (1, 2)
    ]
    assert figures("".join(json.dumps(line) + "\n" for line in lines)) == "2 iterations, sleep, log-prob gap 0.02; seconds: gate 0.50"


def test_without_a_gpu_it_says_so_before_it_installs_anything(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RLJOB_DEVICES": str(tmp_path)}
    done = subprocess.run(
        ["sh", "scripts/gpu-check.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "error: there is no NVIDIA GPU here (no /dev/nvidia0); run this on a machine with one and its driver\n"
    assert list(tmp_path.iterdir()) == []
