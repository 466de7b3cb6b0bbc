"""`python -m rljob.checkpoint_engine.together --member [NAME=VALUE...] COMMAND... --member ...`: several processes, one container.

For `accelerator.sharing: single`, where one container holds the devices: the shims are members, and last the node agent, whose end is the
container's. A shim that ends ends the container too, which is then started again. Processes that lost their parents are reaped.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

GRACE = 15
"""Seconds between SIGTERM to what is left and SIGKILL."""


@dataclass(frozen=True)
class Member:
    """One command, and what it gets besides the container's environment."""

    command: tuple[str, ...]
    env: Mapping[str, str]


def members(arguments: Sequence[str]) -> Iterator[Member]:
    """The members in the order in which they are written."""
    starts = [index for index, word in enumerate(arguments) if word == "--member"]
    for start, end in zip(starts, [*starts[1:], len(arguments)], strict=True):
        words = list(arguments[start + 1 : end])
        env = {}
        while words and "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        yield Member(tuple(words), env)


def exit_status(status: int) -> int:
    """A wait status as a shell would say it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class Group:
    """The running members; the last one leads."""

    def __init__(self, found: Sequence[Member]) -> None:
        self.pids = [os.posix_spawnp(m.command[0], m.command, {**os.environ, **m.env}) for m in found]
        self.leader = self.pids[-1]

    def run(self) -> int:
        """Until the leader ends or a member fails, then until all have ended; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_end)
        signal.signal(signal.SIGALRM, self._out_of_patience)
        verdict: int | None = None
        living = set(self.pids)
        while living:
            pid, status = os.waitpid(-1, 0)
            if pid not in living:
                continue  # somebody's orphan
            living.remove(pid)
            if verdict is None:
                # A shim never ends by itself: also its exit status 0 is a failure.
                verdict = exit_status(status) if pid == self.leader else exit_status(status) or 1
                self._end(living)
        return verdict or 0

    def _end(self, living: set[int]) -> None:
        signal.alarm(GRACE)
        for pid in living:
            os.kill(pid, signal.SIGTERM)

    def _asked_to_end(self, _number: int, _frame: FrameType | None) -> None:
        # The agent first: it reports to the master while everything else still stands.
        self._signal(self.leader, signal.SIGTERM)

    def _out_of_patience(self, _number: int, _frame: FrameType | None) -> None:
        for pid in self.pids:
            self._signal(pid, signal.SIGKILL)

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it has ended and is reaped


def main(arguments: Sequence[str]) -> int:
    """Entry point; returns the exit status."""
    return Group(list(members(arguments))).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
