"""Looks at a running or finished job from outside: its folder, its status, its processes."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RLJOB = Path(sys.executable).parent / "rljob"


@dataclass(frozen=True)
class Process:
    """One process of a container."""

    pid: int
    parent: int
    container: str
    """`<run id>/<pod>/<container>`."""
    command: str


def processes(folder: Path) -> list[Process]:
    """Every living process that carries the marker of a run on this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = dict(v.split("=", 1) for v in (entry / "environ").read_text(errors="replace").split("\0") if "=" in v)
            if environment.get("RLJOB_JOB", "").startswith(f"{folder}/") and "RLJOB_CONTAINER" in environment:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if stat[0] != "Z":
                    command = (entry / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                    found.append(Process(int(entry.name), int(stat[1]), environment["RLJOB_CONTAINER"], command))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def run(job: Path, folder: Path, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """`rljob run` to its end."""
    command = [str(RLJOB), "run", str(job), "--workdir", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)


def start(job: Path, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """`rljob run` in the background; output goes to `<folder>.out`."""
    with folder.with_suffix(".out").open("ab") as out:
        return subprocess.Popen(
            [str(RLJOB), "run", str(job), "--workdir", str(folder), *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The iteration records."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict[str, Any]:
    """Newest status, {} before the first."""
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def database(folder: Path) -> sqlite3.Connection:
    """The master's state, read only."""
    return sqlite3.connect(f"file:{folder}/state/master.sqlite?mode=ro", uri=True)


def wait(condition: Callable[[], bool], what: str, timeout: float = 240, every: float = 0.02) -> None:
    """Poll the outside world until `condition` holds.

    Raises:
        TimeoutError: it did not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout} s")
        time.sleep(every)


def kill(found: Iterator[Process] | list[Process]) -> list[int]:
    """SIGKILL; answers the pids."""
    pids = []
    for process in found:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        pids.append(process.pid)
    return pids


def shared_memory() -> set[str]:
    """Names in /dev/shm that belong to this project."""
    return {p.name for p in Path("/dev/shm").iterdir() if p.name.startswith("rljob")}
