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
from rljob.sandbox.inside.runner import Ended, Runner, Task, end_all, wipe_command_line


class ContainedRunner(Runner):
    """A runner for one run."""

    def run(self, task: Task, descriptors: Sequence[int]) -> Ended:
        """Run a program here."""
        return self.attend(task, descriptors, end_all)


def begin(identity: child.Identity, bounds: child.Bounds) -> None:
    """What the program does first."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child.settle(identity, bounds)
    os.close(identity.proc)


def main() -> None:
    """Entry point: the runner's end of the socket is descriptor 0, the environment of programs the only argument."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _, (proc,), _, _ = socket.recv_fds(control, 16, 1, socket.MSG_CMSG_CLOEXEC)
    identity = child.Identity(os.geteuid(), 1, kernel.Seccomp(seccomp.program()), proc)
    child.limit_for_ever()
    kernel.dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the kernel drops, for process 1
    environment = json.loads(sys.argv[1])
    wipe_command_line()
    child.prepare_python(environment)
    ContainedRunner(control, identity, None, begin=begin).serve(1)
