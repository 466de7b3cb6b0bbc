"""The two kinds of process that a shim runs: the trainer's ranks, and a vLLM server forked from a zygote."""

import asyncio
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from rljob.api import InfrastructureError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.checkpoint_engine.processes import Child, reader
from rljob.rollout.engine import zygote_environment
from rljob.wire.environment import Environment

TAIL_LINES = 20
LONGEST_LINE = 4096
"""Characters that are kept of a line; its beginning says most."""
ZYGOTE_RETRY = (0.5, 30.0)
"""Seconds before a dead zygote is started again: the first pause, doubled up to the last."""


class Tail:
    """Passes output on and keeps its newest lines."""

    def __init__(self, out: BinaryIO, lines: int = TAIL_LINES) -> None:
        self._out: BinaryIO | None = out
        self._lines: deque[str] = deque(maxlen=lines)
        self._open = ""
        self._bytes = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """Newest lines, oldest first; the last may be unfinished."""
        return (*self._lines, *([line] if (line := _shown(self._open)) else []))

    def add(self, data: bytes) -> None:
        """Pass on and keep. A reader of our output that went away, or a full disk behind it, costs lines and must not stop the payload."""
        self._bytes += len(data)
        if self._out is not None:
            try:
                self._out.write(data)
                self._out.flush()
            except BrokenPipeError:
                self._out = None
            except OSError:
                pass  # there may be space again for the next line
        *whole, rest = (self._open + data.decode(errors="replace")).split("\n")
        self._open = _shown(rest) + ("\r" if rest.endswith("\r") else "")
        self._lines.extend(line for line in map(_shown, whole) if line.strip())

    def note(self, text: str) -> None:
        """A line of the shim's own."""
        self.add(f"shim: {text}\n".encode())

    async def follow(self, descriptor: int) -> None:
        """Until the pipe ends; then it is closed."""
        stream = await reader(descriptor)
        while data := await stream.read(65536):
            self.add(data)

    async def settle(self) -> None:
        """Until what dead processes have left in the pipes is read: nothing new for 50 ms, half a second at most."""
        for _ in range(10):
            before = self._bytes
            await asyncio.sleep(0.05)
            if self._bytes == before:
                return


def _shown(line: str) -> str:
    """What is left of a line that goes back to its beginning again and again, as progress bars do."""
    return line.rstrip("\r").rpartition("\r")[2][:LONGEST_LINE]


class Payload(Protocol):
    """What a shim needs to know about the kind of process it runs."""

    tail: Tail

    @property
    def ready(self) -> bool:
        """False while a start would have to wait for preparations."""

    @property
    def spare(self) -> frozenset[int]:
        """Processes below the shim that are not part of the payload."""

    @property
    def managed(self) -> frozenset[int]:
        """Children that this object waits for itself."""

    async def care(self) -> None:
        """Runs as long as the shim."""

    async def launch(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start and return the leader's pid.

        Raises:
            InfrastructureError: it could not be started.
        """

    async def ended(self) -> int:
        """Exit status of the running payload, once it ends by itself."""


class TrainerPayload:
    """The ranks of a trainer on this node; when one ends, the payload has ended (its collectives would hang)."""

    def __init__(self, command: Sequence[str], tail: Tail) -> None:
        self.tail = tail
        self._command = tuple(command)
        self._ranks: list[Child] = []
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return True

    @property
    def spare(self) -> frozenset[int]:
        return frozenset()

    @property
    def managed(self) -> frozenset[int]:
        return frozenset(rank.pid for rank in self._ranks)

    async def care(self) -> None:
        return

    async def launch(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        self._ranks = []
        for variables in rank_environments({**_torchrun(os.environ), **env}, free_port()):
            rank = Child([*self._command, *argv], {**os.environ, **variables}, dies_with_parent=True)
            self._ranks.append(rank)
            pump = asyncio.create_task(self.tail.follow(rank.output))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)
        return self._ranks[0].pid

    async def ended(self) -> int:
        waits = [asyncio.create_task(rank.ended()) for rank in self._ranks]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return verdict([status for rank in self._ranks if (status := rank.status) is not None])


def rank_environments(env: Mapping[str, str], port: int) -> list[dict[str, str]]:
    """What each rank of this node is started with, from LOCAL_WORLD_SIZE and, with several nodes, NNODES, NODE_RANK, MASTER_ADDR and
    MASTER_PORT (torch's names); on a single node the ranks meet on this machine, on `port`."""
    local, nodes, node = int(env.get("LOCAL_WORLD_SIZE", "1")), int(env.get("NNODES", "1")), int(env.get("NODE_RANK", "0"))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **env, "LOCAL_WORLD_SIZE": str(local), "WORLD_SIZE": str(local * nodes)}
    return [{**common, "LOCAL_RANK": str(i), "RANK": str(node * local + i)} for i in range(local)]


def _torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """What the plan says about ranks, in the shim's own environment."""
    return {name: environ[name] for name in ("LOCAL_WORLD_SIZE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name in environ}


def verdict(statuses: Sequence[int]) -> int:
    """Exit status of a payload whose processes ended like this: what the user must change comes first, then any failure."""
    if EXIT_CONFIGURATION in statuses:
        return EXIT_CONFIGURATION
    return next((status for status in statuses if status), 0)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Zygote:
    """One zygote process and what it said.

    Protocol, one JSON object a line (`rljob.rollout.zygote`): it says `{"ready": seconds}`; asked `{"start": {argv, env, log}}` it answers
    `{"started": pid}` or `{"error": why}`, and later says `{"exited": {"pid", "status"}}`. When its stdin ends, it kills its engine and
    ends.
    """

    def __init__(self, process: Child) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.ready = asyncio.Event()
        self.started: asyncio.Future[int] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.gone: asyncio.Future[int] = loop.create_future()
        self.starting = False

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        loop = asyncio.get_running_loop()
        self.started, self.exited, self.starting = loop.create_future(), loop.create_future(), True
        # The engine's output goes where the zygote's messages go: the pipe that the shim reads.
        self.say({"start": {"argv": list(argv), "env": dict(env), "log": "/dev/stderr"}})
        try:
            await self.first(self.started)
            return self.started.result()
        finally:
            self.starting = not self.started.done()  # asked and without an answer, it may still fork

    def say(self, message: dict[str, Any]) -> None:
        if self.process.stdin is None:
            raise ValueError("a zygote is started with talks=True")
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return  # it has died: `gone` says so

    def hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ready.set()
        if "started" in message and not self.started.done():
            self.started.set_result(int(message["started"]))
        if "error" in message and not self.started.done():
            self.started.set_exception(InfrastructureError(str(message["error"])))
        if "exited" in message and not self.exited.done():
            self.exited.set_result(int(message["exited"]["status"]))

    async def first(self, *awaited: "asyncio.Future[int] | asyncio.Task[bool]") -> None:
        """Until one of them is there.

        Raises:
            InfrastructureError: the zygote died before.
        """
        await asyncio.wait([*awaited, self.gone], return_when=asyncio.FIRST_COMPLETED)
        if not any(future.done() for future in awaited):
            raise InfrastructureError(f"the process that vLLM is forked from ended with status {self.gone.result()}; see the log above")


class EnginePayload:
    """A vLLM server, forked from a process that has imported vLLM already; that zygote is kept running."""

    def __init__(self, command: Sequence[str], tail: Tail, env: Mapping[str, str] | None = None) -> None:
        """`env` is the zygote's whole environment; None: ours."""
        self.tail = tail
        self._command, self._env = tuple(command), env
        self._zygote: _Zygote | None = None
        self._changed = asyncio.Condition()

    @property
    def ready(self) -> bool:
        return self._zygote is not None and self._zygote.ready.is_set()

    @property
    def spare(self) -> frozenset[int]:
        # A zygote that was asked for an engine and has not answered may fork one at any moment: it goes too.
        return frozenset() if self._zygote is None or self._zygote.starting else self.managed

    @property
    def managed(self) -> frozenset[int]:
        return frozenset() if self._zygote is None else frozenset([self._zygote.process.pid])

    async def care(self) -> None:
        pause = ZYGOTE_RETRY[0]
        while True:
            try:
                zygote = _Zygote(Child(self._command, self._env, talks=True))
            except OSError as error:  # no process or memory to be had now
                self.tail.note(f"the vLLM zygote cannot be started ({error}); it is tried again in {pause:.1f} s")
                await asyncio.sleep(pause)
                pause = min(2 * pause, ZYGOTE_RETRY[1])
                continue
            await self._set(zygote)
            began = time.monotonic()
            status = await self._attend(zygote)
            await self._set(None)
            self.tail.note(f"the vLLM zygote ended with status {status}; it is started again in {pause:.1f} s")
            await asyncio.sleep(pause)
            healthy = zygote.ready.is_set() and time.monotonic() - began > ZYGOTE_RETRY[1]
            pause = ZYGOTE_RETRY[0] if healthy else min(2 * pause, ZYGOTE_RETRY[1])

    async def launch(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: self._zygote is not None)
            zygote = self._zygote
        if zygote is None:
            raise InfrastructureError("the vLLM zygote ended while an engine was asked for")
        imported = asyncio.create_task(zygote.ready.wait())
        try:
            await zygote.first(imported)
        finally:
            imported.cancel()
        return await zygote.start(argv, env)

    async def ended(self) -> int:
        zygote = self._zygote
        if zygote is None:
            return 1  # it has died with its zygote
        await asyncio.wait([zygote.exited, zygote.gone], return_when=asyncio.FIRST_COMPLETED)
        return zygote.exited.result() if zygote.exited.done() else zygote.gone.result() or 1

    async def _set(self, zygote: _Zygote | None) -> None:
        async with self._changed:
            self._zygote = zygote
            self._changed.notify_all()

    async def _attend(self, zygote: _Zygote) -> int:
        """Listen to the zygote until it ends; its exit status."""
        follow = asyncio.create_task(self.tail.follow(zygote.process.output))
        listen = asyncio.create_task(self._listen(zygote))
        try:
            status = await zygote.process.ended()
            await self.tail.settle()
        finally:
            listen.cancel()
            follow.cancel()
        zygote.gone.set_result(status)
        return status

    async def _listen(self, zygote: _Zygote) -> None:
        if zygote.process.stdout is None:
            raise ValueError("a zygote is started with talks=True")
        lines = await reader(os.dup(zygote.process.stdout.fileno()))
        while line := await lines.readline():
            message = _parse(line)
            if message is None:
                self.tail.add(line)  # something printed to stdout
            else:
                zygote.hear(message)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def payload_of(kind: str, tail: Tail) -> Payload:
    """The payload of a sidecar: `trainer` or `vllm`.

    Raises:
        ConfigurationError: the environment names no job.
    """
    if kind == "trainer":
        return TrainerPayload([sys.executable, "-m", "rljob.trainer"], tail)
    return EnginePayload([sys.executable, "-m", "rljob.rollout.zygote"], tail, zygote_environment(Environment.current().job))
