"""What the service needs of whatever isolates. `rljob.sandbox.pool.Pool` is the real thing."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from rljob.wire.sandbox import Limits, Output, RunRequest, RunResult


class LanguageInfo(Protocol):
    """A language that the pool can run."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def compiled(self) -> bool: ...


class Program(Protocol):
    """A submission that is ready to run: compiled, where its language is."""

    @property
    def compile(self) -> Output | None:
        """What the compiler said; `run` may be called only if there was none or its status is `ok`."""
        ...

    async def run(self, stdin: str, *, wall_seconds: float = math.inf) -> RunResult:
        """Run it once, isolated like any other run; for no longer than its limits and this one."""
        ...

    async def close(self) -> None:
        """Forget what was built."""
        ...


class Isolation(Protocol):
    """Runs programs. Cancelling the task that awaits a run ends the run and everything that it started.

    Nothing that a program does raises; what goes wrong on our side is the status `sandbox_error`.
    """

    @property
    def slots(self) -> int:
        """Runs at the same time."""
        ...

    @property
    def slots_rebuilt(self) -> int:
        """Slots that were made anew, since the start: worn, or not as they should be."""
        ...

    @property
    def works(self) -> bool:
        """False while none of the slots can be made anew: runs would wait, for nobody knows how long."""
        ...

    @property
    def ceiling(self) -> Limits:
        """The most that one run may use."""
        ...

    async def start(self) -> None:
        """Raises ConfigurationError if this machine cannot protect as well as is asked for."""
        ...

    async def stop(self) -> None: ...

    def check(self, request: RunRequest) -> None:
        """Raises ValueError, one line, if such a request can never be run here."""
        ...

    async def run(self, request: RunRequest) -> RunResult: ...
    async def build(self, request: RunRequest) -> Program: ...
    def languages(self) -> Sequence[LanguageInfo]: ...
    def protections(self) -> Mapping[str, bool]: ...
