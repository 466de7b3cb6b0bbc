"""A pool in memory: programs are Python functions that the test gives, and whoever asks can see what went in."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rljob.wire.sandbox import Limits, Output, RunRequest, RunResult

Behaviour = Callable[[RunRequest], Awaitable[RunResult]]


@dataclass(frozen=True)
class TwinLanguage:
    """A language of the twin."""

    name: str
    version: str = "1"
    compiled: bool = False


def printed(stdout: str, **more: object) -> RunResult:
    """A run that ended well."""
    run = Output.model_validate({"status": "ok", "exit_code": 0, "stdout": stdout, "wall_seconds": 0.001} | more)
    return RunResult(status=run.status, run=run)


def ended(status: str, reason: str = "", stderr: str = "") -> RunResult:
    """A run that did not."""
    run = Output.model_validate({"status": status, "exit_code": 1 if status == "runtime_error" else None, "stderr": stderr})
    return RunResult(status=run.status, run=run, reason=reason)


async def echo(request: RunRequest) -> RunResult:
    """A program that prints its input."""
    return printed(request.stdin)


@dataclass
class TwinProgram:
    """What `build` of the twin gives."""

    pool: "TwinPool"
    request: RunRequest
    compile: Output | None = None
    closed: bool = False

    async def run(self, stdin: str, *, wall_seconds: float = math.inf) -> RunResult:
        limits = self.request.limits.model_copy(update={"wall_seconds": min(self.request.limits.wall_seconds, wall_seconds)})
        return await self.pool.run(self.request.model_copy(update={"stdin": stdin, "limits": limits}))

    async def close(self) -> None:
        self.closed = True


@dataclass
class TwinPool:
    """Satisfies `rljob.sandbox.isolation.Isolation`."""

    behaviour: Behaviour = echo
    slots: int = 2
    ceiling: Limits = field(default_factory=Limits)
    compiles: Callable[[RunRequest], Output | None] = lambda request: None
    slots_rebuilt: int = 0
    works: bool = True
    seen: list[RunRequest] = field(default_factory=list)
    """Every run, in the order of their starts."""
    programs: list[TwinProgram] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    started: bool = False

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.started = False

    def check(self, request: RunRequest) -> None:
        known = [language.name for language in self.languages()]
        if request.language not in known:
            raise ValueError(f"language: is {request.language!r}, this sandbox has {', '.join(known)}")

    async def run(self, request: RunRequest) -> RunResult:
        self.seen.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.behaviour(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def build(self, request: RunRequest) -> TwinProgram:
        program = TwinProgram(self, request, self.compiles(request))
        self.programs.append(program)
        return program

    def languages(self) -> Sequence[TwinLanguage]:
        return (TwinLanguage("python", "3.13"), TwinLanguage("cpp", "14", compiled=True), TwinLanguage("javascript", "22"))

    def protections(self) -> Mapping[str, bool]:
        return {"user": True, "seccomp": True, "cgroup_memory": False}


def in_turn(*results: RunResult) -> Behaviour:
    """A program whose runs end so, one after the other."""
    left = list(results)

    async def behave(request: RunRequest) -> RunResult:
        return left.pop(0)

    return behave


class Gate:
    """A program that prints its input once it is let: no test has to wait for a time."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        """Inputs of the runs that have begun."""
        self._keys: dict[str, asyncio.Event] = {}

    async def __call__(self, request: RunRequest) -> RunResult:
        self.begun.put_nowait(request.stdin)
        await self._key(request.stdin).wait()
        return printed(request.stdin)

    def _key(self, stdin: str) -> asyncio.Event:
        return self._keys.setdefault(stdin, asyncio.Event())

    def let(self, *inputs: str) -> None:
        """Runs with these inputs end."""
        for stdin in inputs:
            self._key(stdin).set()


async def until(holds: Callable[[], bool]) -> None:
    """Let other tasks go on until something holds."""
    async with asyncio.timeout(20):
        for _ in iter(holds, True):
            await asyncio.sleep(0)
