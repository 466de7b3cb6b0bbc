"""What the processes of a run use, read by its runner from the run's own /proc: for where no cgroup counts it.

What is seen is what is there when somebody looks. Not seen are processes that come and go between two looks and that nobody waits for,
shared memory that no process shows any more, and what the kernel needs for other things than page tables and sockets (locks, say).
"""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


def members() -> list[int]:
    """Processes of the run we are in, without its first."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


@dataclass
class _Process:
    """CPU seconds of a process when it was last seen."""

    started: int
    """Ticks; with its id this is who it is."""
    parent: int
    own: float
    waited: float
    """Of those of its children that it has waited for, and of theirs."""
    gone: float = 0.0
    """Of its descendants that were seen and are no more; more than `waited` if nobody waited for them."""

    @property
    def seconds(self) -> float:
        return self.own + max(self.waited, self.gone)


@dataclass
class ProcessorTime:
    """CPU seconds of a run.

    When a process ends for which nobody waits (an orphan, or a child of who ignores SIGCHLD), the kernel forgets its time. What was last
    seen of it is kept.
    """

    seconds: float = 0.0
    """As of the last look."""
    _seen: dict[int, _Process] = field(default_factory=dict)
    _orphans: float = 0.0

    def look(self, present: Sequence[int]) -> float:
        """Seconds until now, with these processes there."""
        before, self._seen = self._seen, {pid: process for pid in present if (process := _process(pid))}
        there = {pid for pid, now in self._seen.items() if pid in before and before[pid].started == now.started}
        for pid in sorted(before.keys() - there, key=lambda pid: (before[pid].started, pid), reverse=True):  # children before parents
            was = before[pid]
            if was.parent in before:
                before[was.parent].gone += was.seconds
            else:
                self._orphans += was.seconds
        for pid in there:
            self._seen[pid].gone = before[pid].gone
        self.seconds = self._orphans + sum(process.seconds for process in self._seen.values())
        return self.seconds


def _process(pid: int) -> _Process | None:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if not fields:
        return None
    own, waited = (sum(map(int, fields[start : start + 2])) / _TICKS for start in (11, 13))
    return _Process(started=int(fields[19]), parent=int(fields[1]), own=own, waited=waited)


def exceeds(most: int, present: Sequence[int], sockets: int) -> bool:
    """Whether these processes, with so many bytes in sockets, have more than `most` bytes of memory.

    Pages that they share count once. Telling that is dear, so it is done only if it matters; of a process that does not show it, having
    executed a file that it may not read, all pages count.
    """
    held = [_sizes(pid, "status") for pid in present]
    tables = sockets + _together(held, "VmPTE")
    if tables + _together(held, "RssAnon", "RssShmem") <= most:
        return False
    exact = [_sizes(pid, "smaps_rollup") or _sizes(pid, "status") for pid in present]
    return tables + _together(exact, "Pss_Anon", "Pss_Shmem", "RssAnon", "RssShmem") > most


def _together(held: Sequence[Mapping[str, str]], *names: str) -> int:
    return sum(int(sizes.get(name, 0)) for sizes in held for name in names) * 1024


def _sizes(pid: int, name: str) -> dict[str, str]:
    return dict(_KIB.findall(_read(pid, name)))


def _read(pid: int, name: str) -> str:
    """A file of a process; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


class Sockets:
    """Those of all programs of a slot together, which have a network of their own."""

    def __init__(self, proc: int) -> None:
        """`proc`: the slot's process file system, opened."""
        self._proc = proc
        one, other = socket.socketpair()
        with one, other:
            self._most = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def memory(self) -> int:
        """Bytes that they may hold: as much as the buffer of each takes, which no program can enlarge."""
        handle = os.open("self/net/sockstat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            return int(os.read(handle, 256).split()[2]) * self._most
        finally:
            os.close(handle)
