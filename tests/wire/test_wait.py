"""Waiting for files of another pod."""

import subprocess
import sys
from pathlib import Path

from rljob.wire.wait import POLL, REPEAT, present, wait


def test_it_returns_once_every_file_is_there_and_says_now_and_then_what_is_missing() -> None:
    clock, said = [0.0], list[str]()
    arrivals = {"a": 1.0, "b": 2 * REPEAT + 1}

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    wait(["a", "b"], said.append, sleep, lambda path: clock[0] >= arrivals[path])
    assert said == ["waiting for a and b", "waiting for b", "waiting for b"]
    assert arrivals["b"] <= clock[0] < arrivals["b"] + 2 * POLL


def test_a_file_in_a_folder_that_is_not_there_yet_is_missing(tmp_path: Path) -> None:
    assert not present(str(tmp_path / "data" / "prepared.json"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared.json").touch()
    assert present(str(tmp_path / "data" / "prepared.json"))


def test_it_becomes_the_command(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    file.touch()
    command = [sys.executable, "-m", "rljob.wire.wait", str(file), "--", sys.executable, "-c", "print('went on'); raise SystemExit(3)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "went on\n")
