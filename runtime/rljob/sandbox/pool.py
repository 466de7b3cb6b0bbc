"""A pool of slots in which programs run that nobody trusts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from rljob.wire.sandbox import Limits, Output, RunRequest, RunResult


@dataclass(frozen=True)
class PoolSettings:
    """What a pool is made of."""

    slots: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Runs at the same time."""
    minimum: Literal["full", "namespaces"] = "namespaces"
    """Refuse to start with less: `full` also wants cgroups for memory and processes."""
    backend: Literal["namespaces", "crun"] = "namespaces"
    retire_after: int = 2000
    """Runs after which a slot is made anew."""
    cores: float = 1.0
    """CPUs of one slot, where there are cgroups."""


@dataclass(frozen=True)
class Installed:
    """A language whose toolchain is there."""

    name: str
    version: str
    compiled: bool


class Program:
    """What was built once and runs many times."""

    compile: Output | None = None
    """None if the language has no compiler; its status is `ok` if `run` may be called."""

    async def run(self, stdin: str = "", arguments: tuple[str, ...] = (), fetch: tuple[str, ...] = ()) -> RunResult:
        """Run it within the limits of the request it was built from. Cancelling kills the run."""
        raise NotImplementedError

    async def close(self) -> None:
        """Forget what was built; repeated: nothing."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class Pool:
    """At most `slots` runs at the same time; others wait in order. A failure of ours is the status `sandbox_error`."""

    def __init__(self, settings: PoolSettings) -> None:
        self.slots = settings.slots
        self.slots_rebuilt = 0
        self.kills: dict[str, int] = {}
        self.ceiling = Limits()
        self.cgroups: Literal["v1", "v2", "none"] = "none"

    async def start(self) -> None:
        """Make the slots. ConfigurationError if this machine offers less than the minimum."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End all slots and whatever runs in them."""
        raise NotImplementedError

    def check(self, request: RunRequest) -> None:
        """ValueError with one line if the request cannot be run as it is."""
        raise NotImplementedError

    async def run(self, request: RunRequest) -> RunResult:
        """Build and run. Cancelling kills the run."""
        raise NotImplementedError

    async def build(self, request: RunRequest) -> Program:
        """Build only; `stdin`, `arguments` and `fetch` of the request do not matter."""
        raise NotImplementedError

    def protections(self) -> Mapping[str, bool]:
        """Which protections are on."""
        raise NotImplementedError

    def languages(self) -> tuple[Installed, ...]:
        """What can be run."""
        raise NotImplementedError
