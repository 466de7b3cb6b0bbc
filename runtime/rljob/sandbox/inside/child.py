"""What a process forked from the runner does to become a run: its own mounts, no rights, its files, then the program.

The order matters: nothing that a stranger wrote is read before every right is gone. Whatever goes wrong before the program begins is told
through `trouble`, which the program never sees.
"""

import atexit
import builtins
import errno
import gc
import marshal
import math
import os
import random
import resource
import signal
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rljob.sandbox.inside import archive, kernel
from rljob.sandbox.inside.root import SCRATCH, WORK

_OPEN_FILES = 256
_SIGNALS = 128
_REHEARSALS = 40
_PROC = "subset=pid,hidepid=ptraceable"
_NOT_EXECUTABLE = 126
_SCARCE = {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
"""Of the machine, whatever the program."""
_LOADER = "/lib64/ld-linux-x86-64.so.2"
"""What starts nearly every program that a compiler has built."""


@dataclass(frozen=True)
class Bounds:
    """What the kernel enforces for each process of the run."""

    cpu: float
    """Seconds."""
    processes: int
    disk: int
    """Bytes of the run's file system, and of one file."""
    inodes: int
    stack: int
    data: int | None
    """Bytes of private writable memory of one process; None if a cgroup counts what is really used."""


@dataclass(frozen=True)
class Identity:
    """Who a run is."""

    user: int
    """User and group inside the slot."""
    companions: int
    """Processes of the slot itself that the kernel counts as this user's."""
    seccomp: kernel.Seccomp
    proc: int
    """The slot's process file system, opened."""


def join(identity: Identity, bounds: Bounds) -> None:
    """Be a process of the run we were forked into, without any right."""
    be_first_to_die(identity)
    _limit(bounds, identity)
    _drop(identity)


def begin(identity: Identity, bounds: Bounds) -> None:
    """`join` as the first one, in an empty working folder."""
    # In the run's process file system nothing can be written: a run could undo `be_first_to_die`.
    kernel.mount("proc", "/proc", "proc", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, _PROC)
    size = f"size={bounds.disk},nr_inodes={bounds.inodes},mode=700,uid={identity.user},gid={identity.user}"
    kernel.mount("work", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
    settle(identity, bounds)


def be_first_to_die(identity: Identity) -> None:
    """The kernel, out of memory, takes this process and never the runner."""
    kernel.dumpable(True)
    handle = os.open("self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=identity.proc)
    os.write(handle, b"1000")
    os.close(handle)


def settle(identity: Identity, bounds: Bounds) -> None:
    """`join`, and stand in a new working folder."""
    join(identity, bounds)
    os.mkdir(WORK, 0o700)
    os.chdir(WORK)


def limit_for_ever() -> None:
    """Limits that are the same for all runs; the runner takes them on itself, so that no run needs to."""
    _set_limits(
        {
            resource.RLIMIT_NOFILE: _OPEN_FILES,
            resource.RLIMIT_SIGPENDING: _SIGNALS,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NICE: 0,
            resource.RLIMIT_RTPRIO: 0,
        }
    )


def _limit(bounds: Bounds, identity: Identity) -> None:
    limits = {
        resource.RLIMIT_CPU: math.ceil(bounds.cpu) + 1,
        resource.RLIMIT_NPROC: bounds.processes + identity.companions,
        resource.RLIMIT_FSIZE: bounds.disk,
        resource.RLIMIT_STACK: bounds.stack,
    }
    if bounds.data is not None:
        limits[resource.RLIMIT_DATA] = bounds.data
    _set_limits(limits)


def _set_limits(limits: Mapping[int, int]) -> None:
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _drop(identity: Identity) -> None:
    os.setsid()  # kill(0) reaches a process group beyond the namespace, and we were in the runner's
    if os.geteuid() != identity.user:
        os.setresgid(identity.user, identity.user, identity.user)
        os.setresuid(identity.user, identity.user, identity.user)
    kernel.drop_capabilities()
    # Its own /proc/self belongs to it; the runner's memory stays closed, see `runner`.
    kernel.dumpable(True)
    identity.seccomp.install()


def take_files(payload: Mapping[str, Any], artefact: int | None) -> None:
    """Put the request's files and what was built into the working folder."""
    if artefact is not None:
        archive.extract(artefact)
    for folder in payload["folders"]:
        os.mkdir(folder)
    for name, text in payload["files"].items():
        archive.store(name, text.encode())


def load(payload: int) -> dict[str, Any]:
    """The request as the service wrote it."""
    loaded: dict[str, Any] = marshal.loads(archive.read(payload))  # the service's own words, and in a process without rights
    return loaded


def execute(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Become another program; the exit status of one that cannot be started for what was built into it, as a shell gives it.

    A submission may be such a file: one whose interpreter does not exist, say. That is no failure of the sandbox.

    Raises:
        OSError: it cannot be started for another reason.
    """
    # Python ignores both, and a program inherits what is ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execve(arguments[0], list(arguments), dict(environment))
    except OSError as error:
        built = arguments[0].startswith(f"{WORK}/") and os.access(arguments[0], os.X_OK)
        if not built or _is_ours(error):
            raise
        os.write(2, f"{arguments[0]}: {error.strerror}\n".encode())
    return _NOT_EXECUTABLE


def _is_ours(error: OSError) -> bool:
    """Whether it is the machine that cannot start a built program.

    EIO may be either: a program gets it by naming as its interpreter a file that is too short for one, and everybody from a broken disk.
    """
    if error.errno != errno.EIO:
        return error.errno in _SCARCE
    try:
        with open(_LOADER, "rb") as loader:
            loader.read()
    except OSError as unread:
        return unread.errno == errno.EIO
    return False


def prepare_python(environment: Mapping[str, str]) -> None:
    """Do once, in the runner, what is the same for all programs of `python`."""
    os.environ.update(environment)
    sys.path.insert(0, WORK)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main


def rehearse() -> None:
    """Do in the runner, often enough, what every run does and what leaves nothing behind.

    The interpreter adapts code to what it meets and remembers where it found attributes. A run that finds this done does not write to these
    pages, and what is written is copied.
    """
    payload = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
    os.write(payload, marshal.dumps({"files": {}, "folders": [], "source": "", "arguments": []}))
    for _ in range(_REHEARSALS):
        take_files(load(payload), None)
        random.seed()
        os.geteuid()
        math.ceil(1.5)
        kernel.dumpable(False)  # as it is, and so are the limits
        limit_for_ever()
        Bounds(cpu=1.0, processes=1, disk=1, inodes=1, stack=1, data=None)
        os.close(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        exec(compile(b"int('1')", f"{WORK}/main.py", "exec", dont_inherit=True), {})
        sys.stdout.flush()
        sys.stderr.flush()
    os.close(payload)


def python(name: str, source: str, arguments: Sequence[str]) -> int:
    """Run a file (whose text is `source`) of the working folder as `python name` would; its exit status.

    Finalizers at the interpreter's end are not run.
    """
    random.seed()  # or all runs of a slot would draw the same numbers
    sys.argv = [name, *arguments]
    main = sys.modules["__main__"]
    main.__dict__["__file__"] = f"{WORK}/{name}"
    gc.enable()
    status = 0
    try:
        exec(compile(source.encode(), f"{WORK}/{name}", "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:  # noqa: BLE001 - the program's own, shown like the interpreter does
        status = _ended_by(error)
    return _finish(status)


def _ended_by(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    # Without the frame of ours that executed it.
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _finish(status: int) -> int:
    """What the interpreter does at its end and programs rely on: wait for threads, call `atexit`, flush."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            status = status or 120  # as the interpreter does if it cannot flush
    return status
