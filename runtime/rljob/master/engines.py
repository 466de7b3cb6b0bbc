"""The engines that may be asked: routable, with the wanted weights, and not failing. Requests wait here until one has room."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rljob.api import InfrastructureError
from rljob.master.decisions.dispatch import Load, choose
from rljob.master.decisions.retry import delay
from rljob.master.timing import Clock, News
from rljob.master.trajectory import Weights
from rljob.master.watch import Watch
from rljob.rollout.client import Completion, EngineMetrics, SamplingParams
from rljob.wire.node import NodeReport

POLL = 1.0
"""Seconds between two looks at the engines' own metrics."""


class Engine(Protocol):
    """What the master needs of an engine; `rljob.rollout.client.EngineClient` is one. Every failure is an InfrastructureError."""

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion: ...

    async def metrics(self) -> EngineMetrics: ...


@dataclass
class Seat:
    """One engine process, and what we have in flight there."""

    key: str
    node: str
    engine: Engine
    progressed: float
    """When it last answered, generated or was idle."""
    requests: set["asyncio.Task[Completion]"] = field(default_factory=set)
    promised: int = 0
    """Places given away to requests that are about to be sent, or in flight."""
    waiting: int = 0
    cache_usage: float = 0.0
    usable_at: float = 0.0
    failures: int = 0
    generated: int = 0
    """Tokens by the engine's own counter since we know it."""
    _counter: int | None = None

    @property
    def load(self) -> Load:
        """As the dispatch decision sees it."""
        return Load(self.key, self.promised, self.waiting, self.cache_usage, self.usable_at)

    def observe(self, metrics: EngineMetrics, now: float) -> None:
        """Take up the engine's own figures."""
        self.waiting, self.cache_usage = metrics.waiting, metrics.kv_cache_usage
        if self._counter is not None and metrics.generation_tokens > self._counter:
            self.generated += metrics.generation_tokens - self._counter
            self.progressed = now
        self._counter = metrics.generation_tokens


@dataclass
class Tally:
    """What came of requests, since the start of this process."""

    tokens: int = 0
    """Tokens received."""
    discarded: int = 0
    """Tokens thrown away because another policy wrote them."""
    redispatched: int = 0
    """Requests sent again."""
    discarded_before: int = 0
    """What `take_discarded` has answered so far."""

    def take_discarded(self) -> int:
        """Tokens thrown away since the last call."""
        fresh, self.discarded_before = self.discarded - self.discarded_before, self.discarded
        return fresh


class EnginePool:
    """Hands requests to engines; answers come from the wanted weights only."""

    def __init__(
        self, connect: Callable[[str], Engine], watch: Watch, clock: Clock, max_sequences: int, stall_seconds: float, name: str
    ) -> None:
        """`connect` makes a client from an engine's URL; `name` makes request ids unique among masters."""
        self._connect, self._watch, self._clock = connect, watch, clock
        self._max_sequences, self._stall_seconds = max_sequences, stall_seconds
        self._wanted: Weights | None = None
        self._seats: dict[str, Seat] = {}
        self._queue: deque[tuple[str | None, asyncio.Future[Seat]]] = deque()
        self._ids = (f"{name}-{n}" for n in itertools.count())
        self._generated_before = 0
        self.tally = Tally()
        self.news = News()

    @property
    def routable(self) -> int:
        """Engines with the wanted weights."""
        return len(self._seats)

    @property
    def serving(self) -> Mapping[str, str]:
        """Engine key by node."""
        return {seat.node: seat.key for seat in self._seats.values()}

    def tokens(self) -> int:
        """Tokens generated since the start of this process: received, or more by the engines' own counters (for a live display)."""
        return max(self.tally.tokens, self._generated_before + sum(seat.generated for seat in self._seats.values()))

    def want(self, weights: Weights | None, reports: Mapping[str, NodeReport]) -> None:
        """From now on only engines that hold exactly these weights are asked."""
        self._wanted = weights
        for report in reports.values():
            self.observe(report)

    def observe(self, report: NodeReport) -> None:
        """Take up a node's report: its engine comes, stays or goes."""
        engine = report.engine
        fits = engine is not None and engine.routable and self._wanted == Weights(engine.version, engine.checksum)
        key = f"{report.node}/{engine.incarnation}" if engine is not None and fits else None
        for seat in [s for s in self._seats.values() if s.node == report.node and s.key != key]:
            self._drop(seat)
        if engine is not None and key is not None and key not in self._seats:
            self._seats[key] = Seat(key, report.node, self._connect(engine.url), self._clock())
        self.news.announce()
        self._grant()

    async def generate(self, prompt: Sequence[int], params: SamplingParams, preferred: str | None = None) -> tuple[Completion, str]:
        """The answer of an engine and that engine's key. A lost, failing or wrong engine only means that another is asked."""
        while True:
            seat = await self._place(preferred)
            try:
                completion = await self._ask(seat, prompt, params)
            finally:
                seat.promised -= 1
                self._grant()
            if completion is not None:
                return completion, seat.key
            self.tally.redispatched += 1

    async def poll(self) -> None:
        """Look at the engines' own metrics for ever; requests at an engine that has stalled go elsewhere."""
        while True:
            await asyncio.gather(*(self._look(seat) for seat in list(self._seats.values()) if seat.promised))
            self._grant()
            await asyncio.sleep(POLL)

    async def _look(self, seat: Seat) -> None:
        now = self._clock()
        try:
            seat.observe(await seat.engine.metrics(), now)
        except InfrastructureError:
            pass  # A dead engine also fails its requests, where it is counted; a hung one stalls, below.
        if now - seat.progressed > self._stall_seconds:
            self._fail(seat, "EngineStalled", f"no token within {self._stall_seconds:.0f} s; its requests go to another engine")
            seat.progressed = now
            self._cancel(seat)

    async def _place(self, preferred: str | None) -> Seat:
        place: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._queue.append((preferred, place))
        self._grant()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                place.result().promised -= 1
            raise

    def _grant(self) -> None:
        """Give places to waiting requests, first come, first served."""
        while self._queue:
            if self._queue[0][1].cancelled():
                self._queue.popleft()
                continue
            key = choose([s.load for s in self._seats.values()], self._max_sequences, self._queue[0][0], self._clock())
            if key is None:
                return
            seat, (_, place) = self._seats[key], self._queue.popleft()
            if not seat.promised:
                seat.progressed = self._clock()
            seat.promised += 1
            place.set_result(seat)

    async def _ask(self, seat: Seat, prompt: Sequence[int], params: SamplingParams) -> Completion | None:
        """The engine's answer, or None if it has to be asked elsewhere."""
        if seat.key not in self._seats:
            return None
        request = asyncio.create_task(seat.engine.generate(next(self._ids), prompt, params))
        seat.requests.add(request)
        try:
            completion = await request
        except InfrastructureError as error:
            self._fail(seat, "RequestFailed", str(error))
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if request.cancelled() and (task is None or not task.cancelling()):
                return None  # We gave the engine up; nobody gave this answer up.
            raise
        finally:
            seat.requests.discard(request)
        return self._accepted(seat, completion)

    def _accepted(self, seat: Seat, completion: Completion) -> Completion | None:
        if not completion.tokens:
            self._fail(seat, "EmptyAnswer", f"ended a request as {completion.finish_reason!r} without a token")
            return None
        wanted = self._wanted.label if self._wanted is not None else None
        if completion.weight_version != wanted:
            self.tally.discarded += len(completion.tokens)
            self._fail(seat, "WrongWeights", f"answered with weights {completion.weight_version}, wanted are {wanted}; discarded")
            return None
        self.tally.tokens += len(completion.tokens)
        seat.failures, seat.progressed = 0, self._clock()
        return completion

    def _fail(self, seat: Seat, reason: str, message: str) -> None:
        """Leave the engine alone for a while. Many requests that fail at once are one failure of the engine."""
        now = self._clock()
        if seat.key not in self._seats or now < seat.usable_at:
            return
        seat.failures += 1
        pause = delay(seat.failures)
        seat.usable_at = now + pause
        asyncio.get_running_loop().call_later(pause, self._grant)
        self._watch.failed(seat.node, "rollout", reason, message)

    def _drop(self, seat: Seat) -> None:
        del self._seats[seat.key]
        self._generated_before += seat.generated
        self._cancel(seat)

    def _cancel(self, seat: Seat) -> None:
        for request in seat.requests:
            request.cancel()
