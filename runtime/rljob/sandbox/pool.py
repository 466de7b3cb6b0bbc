"""A pool of slots in which programs run that nobody trusts.

    pool = Pool(PoolSettings(slots=4))
    await pool.start()
    result = await pool.run(RunRequest(language="python", code="print(input())", stdin="hello"))
    async with await pool.build(RunRequest(language="c", code=source)) as program:
        results = [await program.run(stdin=text) for text in inputs]

What a program does is a result; what we fail at is the status `sandbox_error` and never an exception. A slot that shows anything unusual is
made anew before it is used again.
"""

import asyncio
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from rljob.api.errors import ConfigurationError, RLJobError
from rljob.sandbox import cgroups, protections, requests
from rljob.sandbox.crun import CrunSlot
from rljob.sandbox.inside.archive import ArchiveError, unpack
from rljob.sandbox.languages import Found, found
from rljob.sandbox.slot import Interior, Job, NamespaceSlot, Ran, Slot, SlotError, SlotGoneError, memory_file
from rljob.wire.sandbox import Limits, Output, RunRequest, RunResult

_log = logging.getLogger(__name__)

PRELOADED: Final = (
    "abc", "array", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "heapq", "io", "itertools", "json", "math", "operator", "os", "queue", "random", "re", "statistics", "string", "struct", "textwrap",
    "threading", "time", "traceback", "typing",
)  # fmt: skip
"""Modules that Python programs find imported."""
_names = itertools.count(1)
_AGAIN_SECONDS = (0.1, 0.5, 2.0, 5.0)
"""Between attempts to make a slot anew; the last one for ever."""
_ALONE_SECONDS = 60.0
"""That the runs beside one have to end before it is tried alone."""


@dataclass(frozen=True)
class PoolSettings:
    """What a pool is made of."""

    slots: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Runs at the same time."""
    minimum: Literal["full", "namespaces"] = "namespaces"
    """Refuse to start with less: `full` also wants cgroups for memory, processes and CPU."""
    backend: Literal["namespaces", "crun"] = "namespaces"
    """`crun`: a container for each run, as in the paper; slower."""
    retire_after: int = 2000
    """Runs after which a slot is made anew."""
    cores: float = 1.0
    """CPUs of one slot, where there are cgroups."""
    memory_mb: int = 1024
    """The most a run may ask for, MiB."""
    use_cgroups: bool = True
    """False: as on a host that does not give any."""


@dataclass(frozen=True)
class Installed:
    """A language whose toolchain is there."""

    name: str
    version: str
    compiled: bool


class Program:
    """What was built once and runs many times; made by `Pool.build`."""

    def __init__(self, pool: "Pool", request: RunRequest, compiled: Output | None, artefact: bytes | None) -> None:
        self.compile = compiled
        """None if the language has no compiler; `run` does nothing unless its status is `ok`."""
        self._pool, self._request, self._artefact = pool, request, artefact

    async def run(
        self, stdin: str = "", arguments: tuple[str, ...] = (), fetch: tuple[str, ...] = (), *, wall_seconds: float = math.inf
    ) -> RunResult:
        """Run it within the limits of the request it was built from, and this one if it is less. Cancelling kills the run."""
        if self.compile is not None and self.compile.status != "ok":
            return RunResult(status=self.compile.status, compile=self.compile, reason=self.compile.reason)
        limits, request = self._request.limits, self._request
        if wall_seconds < limits.wall_seconds:
            request = request.model_copy(update={"limits": limits.model_copy(update={"wall_seconds": wall_seconds})})
        return await self._pool.execute(request, requests.Inputs(stdin, arguments, fetch), self.compile, self._artefact)

    async def close(self) -> None:
        """Forget what was built; repeated: nothing."""
        self._artefact = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class Pool:
    """At most `slots` runs at the same time; others wait in order."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.slots = settings.slots
        self.slots_rebuilt = 0
        self.kills: Counter[str] = Counter()
        """Runs that were killed, by reason."""
        self.ceiling = Limits(
            cpu_seconds=120, wall_seconds=300, memory_mb=settings.memory_mb, processes=256, output_kb=1 << 16, disk_mb=1024
        )
        self.cgroups: cgroups.Version = "none"
        self._found: dict[str, Found] = {}
        self._on: dict[str, bool] = {}
        self._parents = cgroups.NONE
        self._idle: asyncio.Queue[Slot] = asyncio.Queue()
        self._all: dict[int, Slot] = {}
        self._made = 0
        self._missing: set[int] = set()
        """Places of slots that could not be made anew so far."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._libraries: dict[str, asyncio.Task[int]] = {}
        """Descriptors, by language."""
        self._killed_beside_us = cgroups.killed_beside_us()
        """For memory, when somebody looked last."""
        self._one_alone = asyncio.Lock()
        self._stopped = False

    @property
    def works(self) -> bool:
        """Whether there is a slot, or one is being made and nothing is known against it."""
        return len(self._missing) < self.slots

    async def start(self) -> None:
        """Make the slots. ConfigurationError if this machine offers less than the minimum."""
        protections.check_machine()
        self._stopped = False
        self._found = found()
        if self.settings.use_cgroups:
            self._parents = cgroups.delegated(f"{os.getpid()}-{next(_names)}")
        self.cgroups = self._parents.version
        try:
            first, *_ = await asyncio.gather(*(self._make(place) for place in range(self.slots)))
        except SlotError as error:
            await self.stop()
            raise ConfigurationError(protections.refused(str(error))) from error
        self._on = {**protections.OF_EVERY_SLOT, **first, **protections.of_cgroups(self._parents)}
        if missing := protections.missing(self._on, self.settings.minimum, self.settings.backend):
            await self.stop()
            raise ConfigurationError(missing)
        _log.info("%d slots, protections: %s", self.slots, protections.described(self._on))

    async def stop(self) -> None:
        """End all slots and whatever runs in them."""
        self._stopped = True  # a run that was cancelled may give its slot back only now
        for task in (*self._tasks, *self._libraries.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        made = await asyncio.gather(*self._libraries.values(), return_exceptions=True)
        await asyncio.gather(*(slot.stop() for slot in self._all.values()))
        for library in made:
            if isinstance(library, int):
                os.close(library)
        self._libraries.clear()
        self._all.clear()
        self._idle = asyncio.Queue()
        self._parents.remove()

    def check(self, request: RunRequest) -> None:
        """ValueError with one line if the request cannot be run as it is."""
        requests.check(requests.fitted(request, self.ceiling), self._found, self.ceiling)

    async def run(self, request: RunRequest) -> RunResult:
        """Build and run. Cancelling kills the run."""
        async with await self.build(request) as program:
            return await program.run(request.stdin, request.arguments, request.fetch)

    async def build(self, request: RunRequest) -> Program:
        """Build only; `stdin`, `arguments` and `fetch` of the request do not matter."""
        self.check(request)
        request = requests.fitted(request, self.ceiling)
        entry = self._found[request.language]
        if not entry.language.build:
            return Program(self, request, None, None)
        try:
            library = await self._library(entry) if entry.language.library else None
            ran = await self._ran(requests.build_job(request, entry, library, counted=self._counted()))
            output = requests.compiled(ran, request, entry.language, os.fstat(library).st_size if library is not None else 0)
        except (SlotError, ArchiveError) as error:
            _log.warning("%s", error)
            return Program(self, request, Output(status="sandbox_error", reason=str(error)), None)
        self._count(output)
        return Program(self, request, output, ran.fetched or None)

    async def execute(self, request: RunRequest, inputs: requests.Inputs, compiled: Output | None, artefact: bytes | None) -> RunResult:
        """Run what needs no building, or has been built."""
        job = requests.run_job(request, inputs, self._found[request.language], counted=self._counted(), artefact=artefact)
        try:
            ran = await self._ran(job)
            files = {name: content.decode(errors="replace") for name, _, content in unpack(ran.fetched)}
        except (SlotError, ArchiveError) as error:
            _log.warning("%s", error)
            return RunResult(status="sandbox_error", compile=compiled, reason=str(error))
        output = requests.output(ran, request.limits)
        self._count(output)
        if output.status == "sandbox_error":
            return RunResult(status="sandbox_error", compile=compiled, reason=output.reason)
        return RunResult(status=output.status, run=output, compile=compiled, files=files, reason=output.reason)

    async def _ran(self, job: Job) -> Ran:
        """Run in the next free slot that is still there."""
        while True:
            try:
                async with self._slot() as slot:
                    ran = await self._run(slot, job)
            except SlotGoneError as error:
                _log.warning("%s", error)
                continue
            return await self._ran_alone(job, ran) if ran.machine_full else ran

    async def _run(self, slot: Slot, job: Job) -> Ran:
        killed_before = self._killed_beside_us
        ran = await slot.run(job)
        if ran.ended.status and not ran.ended.killed and not self._counted():
            self._killed_beside_us = cgroups.killed_beside_us()
            ran.machine_full = self._killed_beside_us > killed_before
        return ran

    async def _ran_alone(self, job: Job, before: Ran) -> Ran:
        """Once more while nothing runs beside it, so that it is known whose fault it is; `before` if others do not come to an end.

        A program that fills the memory of the machine, faster than anybody looks, would else be a failure of ours each time it is tried.
        """
        try:
            async with self._alone() as slot:
                self._killed_beside_us, room = cgroups.killed_beside_us(), cgroups.room_beside_us()
                ran = await self._run(slot, job)
                # What the run had is free again, what somebody else on the machine has taken meanwhile is not.
                if ran.machine_full and min(room, cgroups.room_beside_us()) >= job.memory:
                    ran.machine_full, ran.memory_killed = False, True
        except TimeoutError:
            return before
        return ran

    async def _library(self, entry: Found) -> int:
        """What builds of a language find made, made when the first one asks; whoever asked may leave, the others need it too."""
        name = entry.language.name
        task = self._libraries.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._libraries[name] = asyncio.create_task(self._make_library(entry))
        return await asyncio.shield(task)

    async def _make_library(self, entry: Found) -> int:
        """Made by a run like any other, of nothing that a stranger wrote; sealed, so that no build changes what the next one gets."""
        name = entry.language.name
        try:
            ran = await self._ran(requests.library_job(entry, self.ceiling.memory_mb, counted=self._counted()))
            if ran.ended.status or ran.ended.killed or not ran.fetched:
                last = (text.strip().rpartition("\n")[2] for text in (ran.stderr.decode(errors="replace"), ran.ended.trouble))
                said = next(filter(None, (*last, ran.ended.killed, ran.ended.unfetched)), f"status {ran.ended.status}")
                raise SlotError(f"the library of {name} could not be made ready: {said}")
            _log.info("the library of %s is ready, %.1f s of CPU", name, ran.ended.cpu)
            return memory_file(ran.fetched)
        except OSError as error:
            raise SlotError(f"the library of {name} could not be made ready: {error}") from error

    def protections(self) -> Mapping[str, bool]:
        """Which protections are on."""
        return dict(self._on)

    def languages(self) -> tuple[Installed, ...]:
        """What can be run."""
        return tuple(Installed(name, entry.version, bool(entry.language.build)) for name, entry in self._found.items())

    def _counted(self) -> bool:
        return "memory" in self._parents.parents

    def _count(self, output: Output) -> None:
        if output.status not in ("ok", "runtime_error", "compile_error"):
            self.kills[output.status] += 1

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Slot]:
        """A slot while all others are idle. TimeoutError if it takes too long until they are."""
        async with self._one_alone, AsyncExitStack() as stack:
            # All are asked for at once, so that none is given to who comes later while we wait for the next.
            async with asyncio.timeout(_ALONE_SECONDS), asyncio.TaskGroup() as tasks:
                taken = [tasks.create_task(stack.enter_async_context(self._slot())) for _ in range(self.slots)]
            yield taken[0].result()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[Slot]:
        slot = await self._idle.get()
        try:
            yield slot
        finally:
            if self._stopped:
                slot.broken = True
            elif slot.broken or slot.runs >= self.settings.retire_after:
                task = asyncio.create_task(self._renew(slot))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._idle.put_nowait(slot)

    async def _renew(self, old: Slot) -> None:
        """Make a slot anew in place of one that is used up, however long it takes."""
        place = next(place for place, slot in self._all.items() if slot is old)
        attempt = 0
        while True:
            try:
                await old.stop()
                await self._make(place)
            except (RLJobError, OSError) as error:  # of configuration too: what was taken from the machine may come back
                _log.error("a slot cannot be made anew: %s", error)
                self._missing.add(place)
                await asyncio.sleep(_AGAIN_SECONDS[min(attempt, len(_AGAIN_SECONDS) - 1)])
                attempt += 1
                continue
            self._missing.discard(place)
            self.slots_rebuilt += 1
            return

    async def _make(self, place: int) -> Mapping[str, bool]:
        self._made += 1
        cgroup = self._parents.make(f"slot-{self._made}")
        if self._parents.parents:
            cgroup.cores(self.settings.cores)
        folders = sorted({"/usr", *(folder for entry in self._found.values() for folder in entry.toolchain.folders)})
        python = self._found["python"].toolchain.programs["python"]
        interior = Interior(python, folders, PRELOADED, requests.ENVIRONMENT)
        kind = CrunSlot if self.settings.backend == "crun" else NamespaceSlot
        ids = protections.host_ids(place, os.geteuid(), Path("/proc/self/uid_map").read_text())
        slot = kind(interior, cgroup, ids)
        self._all[place] = slot
        on = await slot.start()
        self._idle.put_nowait(slot)
        return on
