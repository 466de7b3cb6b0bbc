"""The first process of a container that somebody else has made (`rljob.sandbox.crun`): runs one program and reports.

The same runner, but the container is the run: nothing lives longer, no namespaces are to be made, the file systems are mounted. It and the
program are the same user; the program cannot kill it (it is process 1, and no signal has a handler in it) and not look into it (it is not
dumpable).
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

from rljob.sandbox.inside import child, kernel, seccomp
from rljob.sandbox.inside.runner import Ended, Runner, Task, end_all


class ContainedRunner(Runner):
    """A runner for one run."""

    def run(self, task: Task, descriptors: Sequence[int]) -> Ended:
        """Run a program here."""
        return self.attend(task, descriptors, end_all)


def begin(identity: child.Identity, bounds: child.Bounds) -> None:
    """What the program does first."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child.settle(identity, bounds)


def main() -> None:
    """Entry point: the runner's end of the socket is descriptor 0, the environment of programs the only argument."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    identity = child.Identity(os.geteuid(), 1, kernel.Seccomp(seccomp.program()), os.open("/proc", os.O_PATH | os.O_CLOEXEC))
    child.limit_for_ever()
    kernel.dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the kernel drops, for process 1
    child.prepare_python(json.loads(sys.argv[1]))
    ContainedRunner(control, identity, None, begin=begin).serve(1)
