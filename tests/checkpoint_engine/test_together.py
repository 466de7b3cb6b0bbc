"""Several processes in one container, with real processes."""

import signal
import subprocess
import sys
from pathlib import Path

from rljob.checkpoint_engine.together import Member, members

SHIM = "import signal, sys, pathlib; f = pathlib.Path(sys.argv[1]); "
# Ends in order on SIGTERM and leaves a note; before that says that it listens.
WAITS = SHIM + "signal.signal(15, lambda *_: (f.with_suffix('.ended').touch(), sys.exit(0))); f.touch(); signal.pause()"
AWAIT = "import sys, time, pathlib\nwhile not all(pathlib.Path(f).exists() for f in sys.argv[2:]): time.sleep(0.02)\n"


def group(*commands: list[str]) -> "subprocess.Popen[str]":
    words = [word for command in commands for word in ("--member", *command)]
    return subprocess.Popen([sys.executable, "-m", "rljob.checkpoint_engine.together", *words], stdout=subprocess.PIPE, text=True)


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_members_are_read_with_their_own_environment() -> None:
    words = ["--member", "A=1", "B=x=y", "python", "-m", "x", "C=3", "--member", "sleep", "1"]
    assert list(members(words)) == [Member(("python", "-m", "x", "C=3"), {"A": "1", "B": "x=y"}), Member(("sleep", "1"), {})]


def test_the_end_of_the_agent_ends_the_others_and_is_the_containers(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    started = group(python(WAITS, str(shim)), python(AWAIT + "sys.exit(int(sys.argv[1]))", "2", str(shim)))
    assert started.wait(60) == 2
    assert shim.with_suffix(".ended").exists()


def test_a_shim_that_ends_ends_the_container_with_a_failure(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    started = group(python(AWAIT, "", str(agent)), python(WAITS, str(agent)))
    assert started.wait(60) == 1
    assert agent.with_suffix(".ended").exists()


def test_a_signal_reaches_the_agent_first(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    agent = AWAIT + "import signal\n"
    agent += "def end(*_): print(pathlib.Path(sys.argv[2]).with_suffix('.ended').exists(), flush=True); sys.exit(0)\n"
    agent += "signal.signal(15, end); print('ready', flush=True); signal.pause()"
    started = group(python(WAITS, str(shim)), python(agent, "", str(shim)))
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGTERM)
    assert started.stdout.read() == "False\n"
    assert started.wait(60) == 0
    assert shim.with_suffix(".ended").exists()


def test_an_environment_variable_is_one_members_alone(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    show = "import os; print(os.environ.get('MINE'), flush=True)\n"
    started = group(["MINE=1", *python(show + WAITS, str(shim))], python(AWAIT + show, "", str(shim)))
    out, _ = started.communicate(timeout=60)
    assert out.split() == ["1", "None"]
