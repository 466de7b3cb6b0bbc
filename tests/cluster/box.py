"""A box: a set of Linux namespaces (network, processes, mounts) with a first process, and what runs in it.

All that runs in a box ends when its first process does, by the kernel's hand, and with it go the box's mounts, network devices and
addresses. That makes
cleaning up after a crash one kill.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_NAMESPACES = ("net", "mnt", "pid")


class ClusterError(Exception):
    """Something in the test cluster did not do what it should; the message says what, and what its log says."""


class ContainerGone(ClusterError):
    """The container does not run any more: it ended, and may have been started again since its pod's status was written."""


@dataclass(frozen=True)
class Identity:
    """A process for good: its id can be used again by another, id and start time (clock ticks since boot) not."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """Of a process that is there now; None if it is not, or only its remains."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in ("Z", "X") else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to this very process; to nobody if it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Checked after opening: what the descriptor means does not change any more.
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)


class Box:
    """Namespaces, entered by one thread of this process; all commands for the box are started from that thread.

    A thread can live in other namespaces than its process (setns(2)), so a child of it starts there without a wrapper, and its id is known
    here.
    """

    def __init__(self, thread: ThreadPoolExecutor, first: Identity, children: "list[subprocess.Popen[bytes]]") -> None:
        self._thread = thread
        self._children = children
        self.first = first

    @classmethod
    def make(cls, init: Sequence[str | Path], detached: bool) -> "Box":
        """New namespaces with the command `init` as first process. Unless `detached`, the box dies with this process, however that ends."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="box")

        def enter() -> "subprocess.Popen[bytes]":
            # With a file system view of its own (CLONE_FS) a thread may change its mounts; the next child is the first process of the new
            # process namespace.
            os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_FS)
            prefix = [] if detached else ["setpriv", "--pdeathsig", "KILL"]
            # It outlives its maker if it is detached; with the maker's output in hand it would keep a reader of that waiting.
            nothing = subprocess.DEVNULL
            return subprocess.Popen([*prefix, *init], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)

        child = thread.submit(enter).result()
        box = cls(thread, _identity(child.pid), [child])
        # In this order: first nothing that is mounted here may reach the machine, then /proc has to be the box's own.
        box.run(["mount", "--make-rprivate", "/"])
        box.run(["mount", "-t", "proc", "proc", "/proc"])
        box.run(["ip", "link", "set", "lo", "up"])
        return box

    @classmethod
    def enter(cls, first: Identity) -> "Box":
        """A box that was made by another process. Raises `ClusterError` if it is gone."""
        if not first.alive():
            raise ClusterError(f"process {first.pid}, the first of a box, is gone")
        thread = ThreadPoolExecutor(1, thread_name_prefix="box")

        def join() -> None:
            os.unshare(os.CLONE_FS)
            descriptors = [os.open(f"/proc/{first.pid}/ns/{kind}", os.O_RDONLY) for kind in _NAMESPACES]
            for descriptor in descriptors:
                os.setns(descriptor)
                os.close(descriptor)

        thread.submit(join).result()
        return cls(thread, first, [])

    def start(self, argv: Sequence[str | Path], log: IO[bytes], environment: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Starts a command in the box, its own session, its output in `log`."""

        def popen() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                [*argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **(environment or {})}
            )

        child = self._thread.submit(popen).result()
        self._children.append(child)
        return child

    def run(self, argv: Sequence[str | Path], timeout: float = 60) -> str:
        """Runs a command in the box to its end and returns what it printed. Raises `ClusterError` with what it said on stderr."""

        def run() -> "subprocess.CompletedProcess[str]":
            return subprocess.run([*argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)

        done = self._thread.submit(run).result()
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(map(str, argv))} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def leave(self) -> None:
        """Stops looking into a box that goes on."""
        self._thread.shutdown()

    def close(self) -> None:
        """Ends everything in the box."""
        self.first.kill()
        # The first process is not gone before each of the others has been waited for by its parent, which is this process.
        for child in reversed(self._children):
            child.wait(timeout=60)
        self._thread.shutdown()


def _identity(pid: int) -> Identity:
    found = Identity.of(pid)
    if found is None:
        raise ClusterError(f"process {pid}, the first of a new box, ended at once")
    return found
