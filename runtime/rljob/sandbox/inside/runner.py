"""The first process of a slot: closes the slot around itself, then forks one run after another.

Two processes: the outer one makes the namespaces and waits; the inner one (process 1 of the slot) is the runner. Between it and the service
is one socket of messages (JSON, numbers and our own words only) that carry descriptors; what strangers wrote passes as descriptors and is
read by the run itself. Every run has namespaces of its own (processes, mounts, IPC, host name), held by a process that does nothing; the
runner is the parent of both, so it knows the program's real status and ends all of the run with that process.

The runner cannot be reached from a run: other namespace of processes, another user where the machine has more than one to give, memory
closed (not dumpable) and a system call filter. It is single-threaded, keeps nothing of a run, and ends when the service's socket does.
"""

import json
import math
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rljob.sandbox.inside import archive, child, kernel, root, seccomp, sharing, usage

DESCRIPTORS: Final = 8
"""At most in one message."""
MESSAGE: Final = 1 << 16
TROUBLE: Final = 99
"""Exit status of a process that did not get as far as the program."""
_TICK = 0.05
_TICK_WATCHING = 0.01
"""Seconds between looks at a run: for its CPU time, and where no cgroup counts memory for that too."""
_FETCH_SECONDS = 5.0
_OF_A_RUN = {"pid": kernel.NEWPID, "mnt": kernel.NEWNS, "ipc": kernel.NEWIPC, "uts": kernel.NEWUTS}
_FRESH = kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS
_REQUIRED = kernel.NEWUSER | kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWPID


@dataclass(frozen=True)
class Task:
    """One run, as the service asks for it."""

    number: int
    bounds: child.Bounds
    wall: float
    cpu: float
    memory: int | None
    """Bytes to watch for; None if a cgroup does."""
    python: bool
    artefact: bool
    """Whether descriptor 4 is what was built."""
    fetch: bool
    """Whether the last descriptor takes what is fetched."""


@dataclass
class Ended:
    """What became of it."""

    number: int
    status: int = 0
    """Exit status, or minus the signal."""
    killed: str = ""
    """Why it was killed, if it was: wall, cpu, memory, processes, or what the service said."""
    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    """Bytes, of its biggest process, which began as a copy of the runner."""
    full: bool = False
    """Whether its file system was full at the end."""
    trouble: str = ""
    """What kept it from beginning."""
    unfetched: str = ""
    """What kept its files from being fetched."""


@dataclass
class Runner:
    """The loop and what all runs have in common."""

    control: socket.socket
    identity: child.Identity
    cpu_usage: Callable[[], float] | None
    """CPU seconds of the slot's cgroup so far."""
    begin: Callable[[child.Identity, child.Bounds], None] = child.begin
    """What the first process of a run does to be it."""
    stack: kernel.Stack = field(default_factory=kernel.Stack)
    home: tuple[int, ...] = field(
        default_factory=lambda: tuple(os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _OF_A_RUN)
    )
    trouble: tuple[int, int] = field(default_factory=lambda: os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    sockets: usage.Sockets = field(init=False)

    def __post_init__(self) -> None:
        self.sockets = usage.Sockets(self.identity.proc)

    def serve(self, most: float = math.inf) -> None:
        """So many runs, or until the socket ends."""
        while most > 0:
            message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            if not message:
                return
            order = json.loads(message)
            if "run" not in order:
                continue  # a late order to kill a run that has ended
            bounds = child.Bounds(**order.pop("bounds"))
            task = Task(number=order.pop("run"), bounds=bounds, **order)
            ended = self.run(task, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            self.control.send(json.dumps(vars(ended)).encode())
            most -= 1

    def run(self, task: Task, descriptors: Sequence[int]) -> Ended:
        """Run a program in namespaces of its own."""
        # The runner itself enters the namespaces (but for that of processes, where only what it forks is) and leaves them at the end.
        os.unshare(_FRESH)
        # Orphans of the run become children of this process, which then need no one to wait for them. Of the other signals that a run may
        # send to it the kernel drops all but those that have a handler, as this one has in Python.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
        init = kernel.pausing(self.stack)
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            return self.attend(task, descriptors, lambda: kill(init))
        finally:
            kill(init)
            # It is gone when all of the run is. That would never be if a process of the run were a child of ours that nobody waits for.
            while os.waitpid(-1, 0)[0] != init:
                pass
            for descriptor, kind in zip(self.home, _OF_A_RUN.values(), strict=True):
                os.setns(descriptor, kind)

    def attend(self, task: Task, descriptors: Sequence[int], end: Callable[[], None]) -> Ended:
        """Start the program, wait for it or `end` the run that we are in, and fetch what is wanted."""
        ended = Ended(task.number)
        began = time.monotonic()
        program = self._fork(lambda: self._program(task, descriptors))
        self._watch(task, ended, program, end, began)
        _, status, used = os.wait4(program, 0)
        ended.wall = time.monotonic() - began
        ended.status = os.waitstatus_to_exitcode(status)
        ended.cpu = max(ended.cpu, used.ru_utime + used.ru_stime)
        ended.peak = used.ru_maxrss * 1024
        if ended.status and not ended.killed:
            space = os.statvfs(root.SCRATCH)
            ended.full = space.f_bavail == 0 or space.f_favail == 0
        ended.trouble = self._hear()  # not the status says it: a program may end with any
        if task.fetch and not ended.killed and not ended.trouble:
            self._fetch(task, ended, end, descriptors)
        return ended

    def _fork(self, act: Callable[[], int]) -> int:
        pid = kernel.fork()
        if pid == 0:
            status = TROUBLE
            try:
                status = act()
            except BaseException:  # noqa: BLE001 - process boundary: the runner tells the service
                self._tell(traceback.format_exc())
            finally:
                os._exit(status)
        return pid

    def _program(self, task: Task, descriptors: Sequence[int]) -> int:
        self.begin(self.identity, task.bounds)
        loaded = child.load(descriptors[3])
        child.take_files(loaded, descriptors[4] if task.artefact else None)
        for target in range(3):
            os.dup2(descriptors[target], target)
        if task.python:
            self.control.detach()
            os.closerange(3, 1 << 20)
            return child.python(loaded["source"], loaded["files"][loaded["source"]], loaded["arguments"])
        self.trouble = (-1, os.dup2(self.trouble[1], 3, inheritable=False))
        os.closerange(4, 1 << 20)
        return child.execute(loaded["command"], loaded["environment"])

    def _watch(self, task: Task, ended: Ended, program: int, end: Callable[[], None], began: float) -> None:
        """Until the program has ended or has been killed."""
        finished = os.pidfd_open(program)
        poll = select.poll()
        poll.register(finished, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        used_before = self.cpu_usage() if self.cpu_usage else 0.0
        seen = usage.ProcessorTime()
        tick = _TICK_WATCHING if task.memory is not None else _TICK
        try:
            while True:
                left = began + task.wall - time.monotonic()
                events = {descriptor for descriptor, _ in poll.poll(max(0.0, min(left, tick)) * 1000)}
                if finished in events:
                    return
                if self.control.fileno() in events:
                    ended.killed = self._order(task.number)
                elif left <= 0:
                    ended.killed = "wall"
                else:
                    ended.killed = self._beyond(task, used_before, seen)
                if ended.killed:
                    return end()
        finally:
            os.close(finished)
            ended.cpu = seen.seconds

    def _beyond(self, task: Task, used_before: float, seen: usage.ProcessorTime) -> str:
        if self.cpu_usage and self.cpu_usage() - used_before > task.cpu:
            return "cpu"
        if self.cpu_usage and task.memory is None:
            return ""
        # Not everything is counted by a cgroup.
        present = usage.members()
        if len(present) > task.bounds.processes:
            return "processes"  # RLIMIT_NPROC stops all users but the machine's root before that
        if not self.cpu_usage and seen.look(present) > task.cpu:
            return "cpu"
        if task.memory is not None and usage.exceeds(task.memory, present, self.sockets.memory()):
            return "memory"
        return ""

    def _order(self, number: int) -> str:
        message = self.control.recv(MESSAGE)
        if not message:
            os._exit(0)  # the service is gone, and with process 1 goes the slot
        order = json.loads(message)
        return str(order["why"]) if order.get("kill") == number else ""

    def _fetch(self, task: Task, ended: Ended, end: Callable[[], None], descriptors: Sequence[int]) -> None:
        """Let a process without rights, the last one of the run, pack the files that are wanted."""
        pid = self._fork(lambda: self._pack(task, descriptors))
        finished = os.pidfd_open(pid)
        if not select.select([finished], [], [], _FETCH_SECONDS)[0]:
            end()
        os.close(finished)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            # The program's doing: too many or too big files, or processes of it that fought this one.
            ended.unfetched = self._hear().strip().rpartition("\n")[2] or f"status {status}"

    def _pack(self, task: Task, descriptors: Sequence[int]) -> int:
        # All of the run but this process and its first. Done before we are the run's user, who could kill us.
        end_all()
        child.join(self.identity, task.bounds)
        os.chdir(root.WORK)
        wanted = child.load(descriptors[3])["fetch"]
        names = (name for entry in wanted for name in (archive.walk(entry[:-1]) if entry.endswith("/") else (entry,)))
        archive.pack(names, descriptors[-1], task.bounds.disk)
        return 0

    def _tell(self, text: str) -> None:
        try:
            os.write(self.trouble[1], text.strip().encode(errors="replace")[-2000:])
        except OSError:
            pass

    def _hear(self) -> str:
        try:
            return os.read(self.trouble[0], 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return ""


def kill(pid: int) -> None:
    """SIGKILL; nothing if it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end_all() -> None:
    """SIGKILL to all of this namespace of processes but its first and us. Once is enough: no fork escapes it."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass


def usage_reader(descriptor: int | None, kind: str) -> Callable[[], float] | None:
    """CPU seconds from an open file of a cgroup: `cpuacct.usage` (v1) or `cpu.stat` (v2)."""
    if descriptor is None:
        return None
    if kind == "v1":
        return lambda: int(os.pread(descriptor, 64, 0)) / 1e9
    return lambda: int(os.pread(descriptor, 4096, 0).split()[1]) / 1e6


def enter_namespaces(say: Callable[[Mapping[str, Any]], None]) -> dict[str, bool]:
    """Leave all namespaces of the machine but that of processes, which begins with the next fork."""
    try:
        os.unshare(_REQUIRED)
    except OSError as error:
        say({"failed": f"the kernel refuses new namespaces (unshare: {error.strerror})"})
        raise SystemExit(1) from error
    optional = {}
    for name, flag in (("cgroup", kernel.NEWCGROUP), ("time", kernel.NEWTIME)):
        try:
            os.unshare(flag)
            optional[name] = True
        except OSError:
            optional[name] = False
    optional["time"] = optional["time"] and _start_clocks_at_zero()
    return dict.fromkeys(("user", "pid", "mount", "net", "ipc", "uts"), True) | optional


def _start_clocks_at_zero() -> bool:
    """How long the machine has been up is nobody's business. False if the kernel refuses, and runs see the machine's clocks."""
    lines = []
    for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME)):
        seconds = time.clock_gettime_ns(clock) // 10**9
        lines.append(f"{name} -{seconds} 0")
    try:
        with open("/proc/self/timens_offsets", "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
    except OSError:
        return False
    return True


def take_user(user: int) -> None:
    """Be a user (and group) of the slot."""
    os.setgroups(())
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def close_slot(config: Mapping[str, Any]) -> None:
    """From here on nothing of the machine is in reach but what `root` shows."""
    trees = root.take(config["folders"])
    if config["mapped"]:
        take_user(0)
    root.build(trees, config["user"])
    socket.sethostname("sandbox")
    child.limit_for_ever()
    kernel.drop_bounding_set()
    kernel.no_new_privileges()
    kernel.die_with_parent()
    os.chdir("/")


def wipe_command_line() -> None:
    """Overwrite our arguments and environment, which every run would find in /proc/self."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    for start, end in (fields[45:47], fields[47:49]):
        kernel.wipe(int(start), int(end))
    os.environ.clear()


def be_runner(control: socket.socket, config: Mapping[str, Any], protections: Mapping[str, bool], counted: int | None) -> None:
    """The inner process."""
    close_slot(config)
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    identity = child.Identity(config["user"], 0 if config["mapped"] else 3, kernel.Seccomp(seccomp.program()), proc)
    runner = Runner(control, identity, usage_reader(counted, config["cgroups"]))
    kernel.dumpable(False)  # its /proc/self is closed to itself, too
    sharing.warm(config["modules"])
    wipe_command_line()
    child.prepare_python(config["environment"])
    child.rehearse()
    sharing.keep()
    control.send(json.dumps({"ready": dict(protections)}).encode())
    runner.serve()


def main(descriptor: int) -> None:
    """Entry point: `descriptor` is the runner's end of the socket."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    config = json.loads(message)

    def say(text: Mapping[str, Any]) -> None:
        control.send(json.dumps(text).encode())

    protections = enter_namespaces(say)
    say({"unshared": True})
    config |= json.loads(control.recv(MESSAGE))
    runner = os.fork()
    if runner == 0:
        status = 1
        try:
            be_runner(control, config, protections, descriptors[0] if descriptors else None)
            status = 0
        except BaseException as error:  # noqa: BLE001 - process boundary: told to the service
            traceback.print_exc()
            say({"failed": f"the slot could not be made: {error}"})
        finally:
            os._exit(status)
    control.close()
    if config["mapped"]:
        take_user(0)
    kernel.die_with_parent()
    os.waitpid(runner, 0)
    os._exit(0)
