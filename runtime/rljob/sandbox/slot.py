"""One slot as the service sees it: a process that runs one program after another, each in namespaces of its own (`inside.runner`)."""

import asyncio
import errno
import fcntl
import json
import logging
import marshal
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from rljob.api.errors import InfrastructureError
from rljob.sandbox.cgroups import Cgroup
from rljob.sandbox.inside import archive
from rljob.sandbox.inside.runner import MESSAGE, Ended, kill

_log = logging.getLogger(__name__)

USER: Final = 1000
"""Who a run is inside its slot."""
KILL_AT: Final = 16
"""A run that writes so many times what is kept of its output is killed."""
_START_SECONDS = 60.0
_GRACE_SECONDS = 20.0
"""On top of a run's wall limit, after which the slot is given up."""
_LAST_WORDS_SECONDS = 2.0
"""For what it says at its end."""
_SOURCES = str(Path(__file__).parents[2])
_ENTRY = "import sys; sys.path.insert(0, {sources!r}); from rljob.sandbox.inside.runner import main; del sys.path[0]; main({descriptor})"
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LD_BIND_NOW": "1"}
_KEPT = ("RLJOB_CONTAINER",)
"""By this `rljob run` finds what belongs to a container; runs do not see it."""
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # no more seals, no shrinking, no growing, no writing
_F_ADD_SEALS = 1033
_PLAIN = 2  # version of marshal without interned strings, each of which a run would write into a table that it shares until then
_READS = 32
"""Of 64 KiB, more than a pipe holds."""
_LAST_READS = 4096
"""More than a pipe holds of the packets into which O_DIRECT cuts an output: there is one in each of its pages."""


class SlotError(InfrastructureError):
    """The slot failed, not the program: another one may be tried, and nothing is known about the program."""


class SlotGoneError(SlotError):
    """The slot was not there any more; the program has not begun."""


@dataclass(frozen=True)
class Job:
    """One program for a slot."""

    payload: Mapping[str, Any]
    """What the run itself reads: files, folders, command or source, arguments, environment, names to fetch."""
    bounds: Mapping[str, Any]
    """Arguments of `inside.child.Bounds`."""
    python: bool
    stdin: bytes
    wall: float
    cpu: float
    memory: int
    """Bytes of all processes and files."""
    output: int
    """Bytes kept of each of stdout and stderr."""
    artefact: bytes | int | None = None
    """An archive for the working folder, or a descriptor of one that `memory_file` has made."""


@dataclass
class Ran:
    """What a slot says about a program."""

    ended: Ended
    stdout: bytes
    stderr: bytes
    truncated: bool
    fetched: bytes
    """An archive, empty if nothing was to be fetched."""
    memory_killed: bool
    """The kernel has killed for memory."""
    forks_refused: bool
    machine_full: bool = False
    """It failed while the kernel killed something beside the service for want of memory, and no cgroup of its own says what."""

    @property
    def too_big(self) -> bool:
        """Whether it did not begin because its own files do not fit."""
        return any(words in self.ended.trouble for words in ("No space left", "File too large", "MemoryError"))


class Slot(Protocol):
    """What a pool needs of a place where programs run."""

    broken: bool
    """Not to be used again."""
    runs: int

    async def start(self) -> Mapping[str, bool]:
        """Make it; which protections are on. ConfigurationError or SlotError if it cannot be made."""
        ...

    async def run(self, job: Job) -> Ran:
        """Run a program to its end. Cancelling kills it. SlotError if that is the slot's end, too."""
        ...

    async def stop(self) -> None:
        """End it and whatever runs in it; repeated: nothing."""
        ...


@dataclass
class Stream:
    """What comes out of a pipe: the first `most` bytes are kept, and `flooded` is called when it becomes far too much."""

    descriptor: int
    most: int
    kept: bytearray = field(default_factory=bytearray)
    total: int = 0

    def read_rest(self) -> None:
        """Take what is left once the program has ended."""
        self.read(_LAST_READS)

    def read(self, times: int = _READS) -> bool:
        """Take what is there, but not for ever; False at the end."""
        for _ in range(times):
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.total += len(data)
            self.kept += data[: max(0, self.most - len(self.kept))]
        return True

    @property
    def flooded(self) -> bool:
        """Whether the program is to be killed for it."""
        return self.total > KILL_AT * self.most


@dataclass(frozen=True)
class Interior:
    """What a slot holds."""

    python: str
    """The interpreter that its runs are forked from."""
    folders: Sequence[str]
    """What of the machine can be read."""
    modules: Sequence[str]
    """What Python programs find imported."""
    environment: Mapping[str, str]
    """Theirs."""


def memory_file(data: bytes, *, seal: bool = True) -> int:
    """A descriptor of a new file without a name; sealed, nobody can change it any more."""
    descriptor = os.memfd_create("data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    position = 0
    while position < len(data):
        position += os.pwrite(descriptor, memoryview(data)[position:], position)
    if seal:
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    return descriptor


class NamespaceSlot:
    """A slot of our own making; see `inside.runner` for what protects whom from what."""

    def __init__(self, interior: Interior, cgroup: Cgroup, host_ids: tuple[int, int] | None) -> None:
        """`host_ids`: two user ids of the machine for runner and runs; None where the service is not privileged to give any."""
        self.broken = False
        self.runs = 0
        self.cgroup = cgroup
        self._interior, self._host_ids = interior, host_ids
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._diagnosis = bytearray()
        self._base = 0
        self._resident = 0
        self._killed = self._refused = 0
        self._unaccounted = False

    async def start(self) -> Mapping[str, bool]:
        """Make it."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                protections = await self._start()
        except (OSError, TimeoutError) as error:
            await self.stop()
            raise SlotError(f"a slot could not be started: {error or 'it took too long'}{self._said()}") from error
        except (SlotError, asyncio.CancelledError):
            await self.stop()
            raise
        self._base, self._resident = self.cgroup.memory_now(), self.cgroup.processes() or 0
        self._killed, self._refused = self.cgroup.killed(), self.cgroup.refused()
        return protections

    async def _start(self) -> Mapping[str, bool]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._control = ours
        entry = _ENTRY.format(sources=_SOURCES, descriptor=theirs.fileno())
        environment = _ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ}
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                self._interior.python, "-s", "-P", "-X", "utf8", "-c", entry, pass_fds=(theirs.fileno(),), env=environment,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._listener = asyncio.create_task(self._listen(self._process))
        pid = self._process.pid
        self.cgroup.attach(pid)
        mapped = self._host_ids is not None
        config = {
            "folders": list(self._interior.folders),
            "modules": list(self._interior.modules),
            "environment": dict(self._interior.environment),
            "user": USER,
            "cgroups": self.cgroup.version,
            "mapped": mapped,
        }
        usage = self.cgroup.usage_file()
        socket.send_fds(ours, [json.dumps(config).encode()], [usage] if usage is not None else [])
        if usage is not None:
            os.close(usage)
        await self._hear("unshared")
        self._map_users(pid)
        await self._send({"go": True})
        protections: Mapping[str, bool] = (await self._hear("ready"))["ready"]
        return protections

    def _map_users(self, pid: int) -> None:
        process = Path("/proc", str(pid))
        if self._host_ids is None:
            (process / "setgroups").write_text("deny")
            (process / "uid_map").write_text(f"{USER} {os.geteuid()} 1")
            (process / "gid_map").write_text(f"{USER} {os.getegid()} 1")
        else:
            lines = f"0 {self._host_ids[0]} 1\n{USER} {self._host_ids[1]} 1\n"
            (process / "uid_map").write_text(lines)
            (process / "gid_map").write_text(lines)

    async def run(self, job: Job) -> Ran:
        """Run a program to its end."""
        self.runs += 1
        number = self.runs
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            streams, theirs = self._outputs(job, stack)
            fetched = self._memory_file(stack, b"", seal=False) if job.payload["fetch"] else None
            payload = marshal.dumps(dict(job.payload), _PLAIN)
            descriptors = [self._memory_file(stack, job.stdin), *theirs, self._memory_file(stack, payload)]
            if job.artefact is not None:
                descriptors.append(job.artefact if isinstance(job.artefact, int) else self._memory_file(stack, job.artefact))
            descriptors += [fetched] if fetched is not None else []
            try:
                await self._ready(job)
                if self._unaccounted:  # what befell a run that was cancelled is not said of this one
                    self._killed, self._refused, self._unaccounted = self.cgroup.killed(), self.cgroup.refused(), False
                self.cgroup.limit(self._base + job.memory, job.bounds["processes"] + self._resident + 2)
                self._order(number, job, descriptors, fetched is not None)
            except OSError as error:
                self.broken = True
                raise SlotGoneError(f"a slot does not take orders: {error}{self._said()}") from error
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
            for stream in streams:
                loop.add_reader(stream.descriptor, self._read, loop, stream, number)
            try:
                ended = await self._end(number, job.wall)
            finally:
                for stream in streams:
                    loop.remove_reader(stream.descriptor)
            for stream in streams:
                stream.read_rest()
            data = archive.read(fetched) if fetched is not None and not (ended.trouble or ended.unfetched) else b""
        return self._account(ended, streams, data)

    async def _ready(self, job: Job) -> None:
        """Be able to take an order; OSError if not."""

    def _account(self, ended: Ended, streams: Sequence[Stream], fetched: bytes) -> Ran:
        memory_killed = forks_refused = False
        if ended.status or ended.killed or ended.unfetched:
            killed, refused = self.cgroup.killed(), self.cgroup.refused()
            memory_killed, forks_refused = killed > self._killed, refused > self._refused
            self._killed, self._refused = killed, refused
            self._check_left()
        stdout, stderr = streams
        truncated = any(stream.total > len(stream.kept) for stream in streams)
        ran = Ran(ended, bytes(stdout.kept), bytes(stderr.kept), truncated, fetched, memory_killed, forks_refused)
        if ended.trouble and not ran.too_big:
            _log.warning("a run could not begin; its slot is given up: %s", ended.trouble.strip().rpartition("\n")[2])
            self.broken = True
        return ran

    def _check_left(self) -> None:
        """Give the slot up if anything outlived a run."""
        left = self.cgroup.processes()
        if left is not None and left > self._resident:
            _log.warning("%d processes outlived a run; the slot is given up", left - self._resident)
            self.broken = True

    def _outputs(self, job: Job, stack: ExitStack) -> tuple[list[Stream], list[int]]:
        streams, theirs = [], []
        for _ in range(2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, reading)
            os.set_blocking(reading, False)
            os.fchmod(writing, 0o666)  # or /dev/stdout could not be opened by another user
            streams.append(Stream(reading, job.output))
            theirs.append(writing)
        return streams, theirs

    def _memory_file(self, stack: ExitStack, data: bytes, *, seal: bool = True) -> int:
        descriptor = memory_file(data, seal=seal)
        stack.callback(os.close, descriptor)
        return descriptor

    def _order(self, number: int, job: Job, descriptors: Sequence[int], fetch: bool) -> None:
        assert self._control is not None
        counted = "memory" in self.cgroup.folders
        order = {
            "run": number, "bounds": dict(job.bounds), "wall": job.wall, "cpu": job.cpu, "memory": None if counted else job.memory,
            "python": job.python, "artefact": job.artefact is not None, "fetch": fetch,
        }  # fmt: skip
        socket.send_fds(self._control, [json.dumps(order).encode()], list(descriptors))

    def _read(self, loop: asyncio.AbstractEventLoop, stream: Stream, number: int) -> None:
        if not stream.read():
            loop.remove_reader(stream.descriptor)
        elif stream.flooded:
            loop.remove_reader(stream.descriptor)
            self._kill(number, "output")

    def _kill(self, number: int, why: str) -> None:
        assert self._control is not None
        try:
            self._control.send(json.dumps({"kill": number, "why": why}).encode())
        except OSError:
            self.broken = True

    async def _end(self, number: int, wall: float) -> Ended:
        try:
            async with asyncio.timeout(wall + _GRACE_SECONDS):
                return await self._ended(number)
        except TimeoutError as error:
            self.broken = True
            raise SlotError(f"a slot did not answer within {wall + _GRACE_SECONDS:g} s{self._said()}") from error
        except asyncio.CancelledError:
            self._kill(number, "cancelled")
            self._unaccounted = True
            # Bounded, and the slot is used again only if it said that the run is gone.
            ending = asyncio.ensure_future(self._ended(number))
            gone = False
            try:
                done, _ = await asyncio.wait({ending}, timeout=_GRACE_SECONDS)
                gone = bool(done) and ending.exception() is None
            finally:
                if not gone:
                    ending.cancel()
                    self.broken = True
            raise

    async def _ended(self, number: int) -> Ended:
        message = await self._receive()
        if message.get("number") != number:
            self.broken = True
            raise SlotError(f"a slot answered {message!r} about run {number}{self._said()}")
        return Ended(**message)

    async def _hear(self, word: str) -> dict[str, Any]:
        message = await self._receive()
        if word not in message:
            raise SlotError(str(message.get("failed", message)))
        return message

    async def _receive(self) -> dict[str, Any]:
        control, loop = self._control, asyncio.get_running_loop()
        assert control is not None
        there = asyncio.Event()
        loop.add_reader(control, there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(control)
        # Nothing is taken before we are sure to return it: cancelled until here, the message waits for the next who asks.
        try:
            data = control.recv(MESSAGE)
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                raise
            data = b""
        if not data:
            self.broken = True
            await asyncio.wait({self._listener}, timeout=_LAST_WORDS_SECONDS)
            raise SlotError(f"a slot ended{self._said()}")
        message: dict[str, Any] = json.loads(data)
        return message

    async def _send(self, message: Mapping[str, Any]) -> None:
        assert self._control is not None
        await asyncio.get_running_loop().sock_sendall(self._control, json.dumps(message).encode())

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(4096):
            self._diagnosis += data
            del self._diagnosis[:-4096]

    def _said(self) -> str:
        """The last line of what it wrote, which is for its developers."""
        line = self._diagnosis.decode(errors="replace").strip().rpartition("\n")[2]
        return f"; it said: {line[-500:]}" if line else ""

    async def _empty(self) -> None:
        """Take the cgroup away as soon as the last process has left it."""
        deadline = asyncio.get_running_loop().time() + _GRACE_SECONDS
        while (left := self.cgroup.members()) and asyncio.get_running_loop().time() < deadline:
            for pid in left:
                kill(pid)
            await asyncio.sleep(0.005)
        self.cgroup.remove()

    async def stop(self) -> None:
        """End it and whatever runs in it."""
        self.broken = True
        # Forgotten only at the end: if this is cancelled, whoever asks again finishes it.
        if (process := self._process) is not None:
            if process.returncode is None:
                process.kill()  # the runner dies with it, and the kernel ends its namespace of processes
            await process.wait()
            await asyncio.wait({self._listener})
        if self._control is not None:
            self._control.close()
        await self._empty()
        self._process = self._control = None
