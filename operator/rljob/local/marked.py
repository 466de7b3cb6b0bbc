"""Finds and ends the processes of a container by the mark in their environment. Standard library only: the guardian runs on it.

What a container runtime does with a cgroup, this does with an environment variable that children inherit. Covered: any process that was
started with the mark, whatever its parent, group or session. Not covered: a process that clears its environment before `exec`, and one of
another user. Containers run with `SPT_NOENV=1`: setproctitle (vLLM uses it) would else overwrite what /proc shows of the environment.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MARK = "RLJOB_CONTAINER"
"""Environment variable; its value is `<run id>/<pod>/<container>`."""


def marks(proc: Path = Path("/proc")) -> dict[int, str]:
    """Process id to mark, for every living process that has one and that this user may look at."""
    found: dict[int, str] = {}
    key = f"{MARK}=".encode()
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            if not environment.startswith(key) and b"\0" + key not in environment:
                continue
            state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            continue  # It ended meanwhile, or belongs to somebody else.
        if state not in (b"Z", b"X"):
            value = next(v for v in environment.split(b"\0") if v.startswith(key))
            found[int(entry.name)] = value[len(key) :].decode(errors="replace")
    return found


def began(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None if there is none. With its number it names a process for good."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def of_container(mark: str) -> Callable[[str], bool]:
    """Is it exactly this container?"""
    return lambda value: value == mark


def of_run(run: str) -> Callable[[str], bool]:
    """Is it any container of this run?"""
    return lambda value: value.startswith(f"{run}/")


def end_all(belongs: Callable[[str], bool], timeout: float = 30.0) -> list[int]:
    """SIGKILL every process whose mark `belongs`, until none is left. Returns the ids that would not go within `timeout` seconds
    (a process in an uninterruptible system call)."""
    deadline = time.monotonic() + timeout
    while left := [pid for pid, mark in marks().items() if belongs(mark) and pid != os.getpid()]:
        if time.monotonic() > deadline:
            return left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
    return []


def remove(folders: Iterable[str]) -> None:
    """Remove folders with all they hold; one that is not there is fine."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(run: str, folders: Iterable[str], settle: float = 0.2) -> list[int]:
    """End every process of a run and remove its temporary folders. Safe to repeat. Returns processes that would not go."""
    end_all(of_run(run))
    # A process that was between fork and exec at the first look carries the mark only now.
    time.sleep(settle)
    left = end_all(of_run(run))
    remove(folders)
    return left
