"""The process tree below this process, read from /proc, and how to end it whole.

A payload's processes may fork, change their session and lose their parents. The shim is PID 1 of its container, or else declares itself
the subreaper of what it starts (`adopt_orphans`), so whatever a payload leaves behind stays a descendant and is found.

Covers: forks, daemons, new sessions, threads that outlive their leader. Does not cover: processes started through another process (a
container runtime, systemd, cron).
"""

import asyncio
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rljob.api import InfrastructureError

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KILL_DEADLINE = 30.0
"""Seconds after which a process that survives SIGKILL (uninterruptible I/O, a hung driver) is an error."""
_POLL = 0.02
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec nothing should be


@dataclass(frozen=True)
class Process:
    """One line of /proc."""

    pid: int
    parent: int
    session: int
    alive: bool
    """False for a zombie: it holds no memory and waits for its parent."""
    command: str


def processes() -> dict[int, Process]:
    """Every process that /proc shows, by pid."""
    return {p.pid: p for entry in os.listdir("/proc") if entry.isdigit() and (p := _read(int(entry))) is not None}


def descendants(table: dict[int, Process], root: int) -> Iterator[Process]:
    """Children of `root`, their children, and so on."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    waiting = list(children.get(root, ()))
    while waiting:
        process = waiting.pop()
        yield process
        waiting.extend(children.get(process.pid, ()))


def payload_processes(spare: Collection[int] = ()) -> list[Process]:
    """Living descendants of this process without those in `spare`."""
    return [p for p in descendants(processes(), os.getpid()) if p.alive and p.pid not in spare]


async def end_all(find: Callable[[], list[Process]], grace: float) -> None:
    """SIGTERM to all that `find` names, after `grace` seconds SIGKILL, again and again until `find` names none.

    Raises:
        InfrastructureError: some survive SIGKILL.
    """
    started = time.monotonic()
    asked: set[int] = set()
    while living := find():
        elapsed = time.monotonic() - started
        if elapsed > grace + KILL_DEADLINE:
            names = ", ".join(f"{p.pid} ({p.command})" for p in living)
            raise InfrastructureError(f"processes {names} are still there {KILL_DEADLINE:.0f} s after SIGKILL; restart the container")
        for process in living:
            if elapsed >= grace:
                _signal(process.pid, signal.SIGKILL)
            elif process.pid not in asked:
                asked.add(process.pid)
                _signal(process.pid, signal.SIGTERM)
        await asyncio.sleep(_POLL)


class Child:
    """A started program. Unlike asyncio's own, its end is seen even while grandchildren hold its pipes open."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, talks: bool = False, dies_with_parent: bool = False
    ) -> None:
        """Start `command` as the leader of a new session.

        `output` is the reading end of its output. With `talks`, `stdin` and `stdout` are pipes of their own and `output` is stderr alone.

        Raises:
            OSError: it cannot be executed.
        """
        self.output, write = os.pipe()
        try:
            self._popen = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else write,
                stderr=write,
                bufsize=0,
                start_new_session=True,
                preexec_fn=die_with_parent if dies_with_parent else None,
            )
        except OSError:
            os.close(self.output)
            raise
        finally:
            os.close(write)
        self.pid = self._popen.pid
        self.stdin, self.stdout = self._popen.stdin, self._popen.stdout

    @property
    def status(self) -> int | None:
        """Exit status once it has ended; negative: the signal."""
        return self._popen.poll()

    async def ended(self) -> int:
        """Its exit status, as soon as it has one."""
        if (status := self.status) is not None:
            return status
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        loop.add_reader(descriptor, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._popen.wait()


async def reader(descriptor: int) -> asyncio.StreamReader:
    """An asyncio stream that reads, and in the end closes, this pipe."""
    stream = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    return stream


def anonymous_memory(pids: Collection[int]) -> int:
    """Bytes of private memory that the processes hold (RssAnon): shared memory and mapped files are not theirs alone."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return total


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (`PR_SET_CHILD_SUBREAPER`; needless but harmless for PID 1)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """For a child just before exec: get SIGKILL when the parent ends, so that a killed shim leaves nothing."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def reap_orphans(managed: Collection[int]) -> None:
    """Collect ended children that nobody waits for; those in `managed` are left to who started them."""
    here = os.getpid()
    for process in processes().values():
        if process.parent == here and not process.alive and process.pid not in managed:
            try:
                os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                continue  # somebody was faster


def _read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # comm stands in parentheses and may itself hold any character.
    command, _, rest = text[text.index("(") + 1 :].rpartition(")")
    fields = rest.split()
    state, threads = fields[0], int(fields[17])
    # A leader that has ended while threads of it live on still holds the memory.
    return Process(pid, int(fields[1]), int(fields[3]), state not in "ZX" or threads > 1, command)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # ended meanwhile


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
