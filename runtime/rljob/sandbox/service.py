"""Takes requests in, gives each run its turn in a slot, and tries again what failed on our side."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rljob.sandbox import judge
from rljob.sandbox.harness import HARNESSES
from rljob.sandbox.isolation import Isolation, Program
from rljob.sandbox.metrics import Metrics
from rljob.sandbox.queue import Admission, Pace, Place
from rljob.sandbox.scheduler import Draining, Slots
from rljob.wire.sandbox import JudgeRequest, JudgeResult, Language, Languages, RunRequest, RunResult

ATTEMPTS = 3
"""Of a run that ends with `sandbox_error`; each is in another slot, or in one made anew."""
MOST_BYTES = 256 << 20
"""Of the requests that are in the service at the same time."""


class Busy(Exception):
    """There is no room now."""

    def __init__(self, retry_after: int, reason: str) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds."""


class CannotFit(Exception):
    """Too much even for an empty service."""


@dataclass
class Service:
    """What the HTTP routes call. One event loop."""

    pool: Isolation
    capacity: int
    """Requests in the service at the same time, waiting and running."""
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False

    def __post_init__(self) -> None:
        self.slots = Slots(self.pool.slots)
        self.admission = Admission(self.capacity, MOST_BYTES)
        self.pace = Pace()
        self.runs_ahead = 0
        """Runs of the admitted requests, as far as they are known."""
        self._admitted = 0

    def drain(self) -> None:
        """Take nothing new, and give up what waits and was not begun."""
        self.draining = True
        self.slots.drain()

    def languages(self) -> Languages:
        """What may be asked for."""
        known = [Language(name=x.name, version=x.version, compiled=x.compiled, calls=x.name in HARNESSES) for x in self.pool.languages()]
        return Languages(languages=tuple(known), limits=self.pool.ceiling, protections=dict(self.pool.protections()))

    def check(self, request: RunRequest | JudgeRequest) -> None:
        """Refuse what can never be run.

        Raises:
            ValueError: one line that names the field.
        """
        if isinstance(request, RunRequest):
            self.pool.check(request)
            return
        self.pool.check(judge.check(request))
        if request.checker.code is not None:
            self.pool.check(RunRequest(language="python", code=request.checker.code))

    @contextmanager
    def admit(self, requests: Sequence[RunRequest | JudgeRequest], size: int) -> Iterator[list[Place]]:
        """Take requests in, all or none; each gets its place in the queue. They count until the end of the block.

        Raises:
            CannotFit: they would not even fit into an empty service.
            Busy: there is no room now.
            Draining: nothing new is taken.
        """
        if self.draining:
            raise Draining
        if len(requests) > self.admission.requests or size > self.admission.size:
            raise CannotFit(
                f"items: are {len(requests)} with {size} bytes, one request may hold {self.admission.requests} with {self.admission.size}; "
                "split it"
            )
        if not self.admission.fits(len(requests), size):
            waiting = self.pace.retry_after(self.runs_ahead, self.slots.count)
            raise Busy(waiting, f"{self.admission.requests_in} requests are waiting or running; try again in {waiting} s")
        runs = sum(len(request.tests) if isinstance(request, JudgeRequest) else 1 for request in requests)
        now = asyncio.get_running_loop().time()
        places = []
        for request in requests:
            self._admitted += 1
            deadline = None if request.deadline_seconds is None else now + request.deadline_seconds
            places.append(Place(self._admitted, request.priority, deadline))
        self.admission.enter(len(requests), size)
        self.runs_ahead += runs
        try:
            yield places
        finally:
            self.runs_ahead -= runs
            self.admission.leave(len(requests), size)

    async def run(self, request: RunRequest, place: Place) -> RunResult:
        """Run an admitted request.

        Raises:
            TooLate: its deadline passed before it had a slot.
            Draining: the service is stopped before it had one.
        """
        with self.metrics.request("run"):
            return await Turn(self, place).run(request)

    async def judge(self, request: JudgeRequest, place: Place) -> JudgeResult:
        """Judge an admitted request.

        Raises:
            TooLate: its deadline passed before it had a slot.
            Draining: the service is stopped before it had one.
            CheckerFault: its checker does not work.
        """
        with self.metrics.request("judge"):
            result = await judge.Judge(Turn(self, place), request).judge()
        self.metrics.verdict(request.language, result.verdict)
        return result


@dataclass
class Turn:
    """Slots for the runs of one request, which all stand at its place in the queue."""

    service: Service
    place: Place

    @property
    def free(self) -> int:
        """Slots that nobody holds or waits for."""
        return self.service.slots.free

    async def run(self, request: RunRequest) -> RunResult:
        """Run once."""
        return await self._counted(request, lambda: self.service.pool.run(request))

    async def run_program(self, program: Program, request: RunRequest, stdin: str, left: Callable[[], float]) -> RunResult:
        """Run what was built of `request`, for no longer than are `left` once it has a slot."""
        return await self._counted(request, lambda: program.run(stdin, wall_seconds=left()))

    async def build(self, request: RunRequest) -> Program:
        """Compile. A failure of ours is tried again and then left in the program's `compile`."""
        compiled = any(language.compiled for language in self.service.pool.languages() if language.name == request.language)
        for attempt in range(ATTEMPTS):
            program = await self._in_slot(lambda: self.service.pool.build(request), paced=compiled)
            if program.compile is not None and program.compile.status != "ok":  # as a run that never came to its program
                self.service.metrics.run(request.language, RunResult(status=program.compile.status, compile=program.compile))
            if program.compile is None or program.compile.status != "sandbox_error" or attempt == ATTEMPTS - 1:
                return program
            await program.close()
        raise AssertionError("ATTEMPTS is positive")

    async def _counted(self, request: RunRequest, run: Callable[[], Awaitable[RunResult]]) -> RunResult:
        for attempt in range(ATTEMPTS):
            result = await self._in_slot(run)
            self.service.metrics.run(request.language, result)
            if result.status != "sandbox_error" or attempt == ATTEMPTS - 1:
                return result
        raise AssertionError("ATTEMPTS is positive")

    async def _in_slot[R](self, work: Callable[[], Awaitable[R]], *, paced: bool = True) -> R:
        """`paced`: whether it says something of how long runs take; a build that does nothing does not."""
        asked = time.monotonic()
        async with self.service.slots.take(self.place):
            self.place = replace(self.place, deadline=None, begun=True)  # what was begun is finished
            begun = time.monotonic()
            self.service.metrics.waited(begun - asked)
            try:
                return await work()
            finally:
                if paced:
                    self.service.pace.observe(time.monotonic() - begun)
