"""The engines that may be asked: routable, with the wanted weights, and not failing. Requests wait here until one has room."""

import asyncio
import heapq
import itertools
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rljob.api import InfrastructureError
from rljob.master.decisions.dispatch import SILENT_SECONDS, Load, choose, reading_until, reads, relieved, slow, smoothed, trial
from rljob.master.decisions.retry import delay
from rljob.master.timing import Clock, News
from rljob.master.trajectory import Weights
from rljob.master.watch import Watch
from rljob.rollout.client import Completion, EngineMetrics, SamplingParams
from rljob.wire.node import NodeReport

log = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks at the engines' own metrics."""
LOOK = 5.0
"""Seconds that an engine has to show them: one that hangs must not keep us from the others."""
REST = 30.0
"""Seconds for which an engine that was too slow gets nothing new."""


class Engine(Protocol):
    """What the master needs of an engine; `rljob.rollout.client.EngineClient` is one. Every failure is an InfrastructureError."""

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion: ...

    async def metrics(self) -> EngineMetrics: ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """These requests are answered now, with the tokens that there are."""


@dataclass
class Seat:
    """One engine process, and what we have in flight there."""

    key: str
    node: str
    engine: Engine
    progressed: float
    """When it last answered, generated or was idle."""
    vital: bool = True
    """Its node trains as well: what fails there counts, while the job does without one that only generates."""
    requests: dict["asyncio.Task[Completion]", str] = field(default_factory=dict)
    """And the ids they were sent under."""
    promised: int = 0
    """Places given away to requests that are about to be sent, or in flight."""
    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    usable_at: float = 0.0
    leaving: bool = False
    """Its node ends it: what runs there comes back, nothing new is sent."""
    failures: int = 0
    generated: int = 0
    """Tokens by the engine's own counter since we know it."""
    reads_until: float = -math.inf
    busy_since: float = math.inf
    quiet: bool = False
    speed: float | None = None
    shown: float | None = None
    """Tokens per second of the request that it answered fastest, the time until the first one included. All that is known of an engine that
    is done before its figures were looked at twice."""
    slow_since: float | None = None
    silent_since: float | None = None
    """Since when it has not answered when asked for its metrics."""
    _counter: int | None = None
    _looked: float = 0.0

    @property
    def load(self) -> Load:
        """As the dispatch decision sees it."""
        return Load(
            self.key,
            self.promised,
            self.running,
            self.waiting,
            self.cache_usage,
            usable_at=math.inf if self.leaving else self.usable_at,
            speed=self.speed if self.speed is not None else self.shown,
            reads_until=self.reads_until,
            busy_since=self.busy_since,
            quiet=self.quiet,
            slow_since=self.slow_since,
        )

    def observe(self, metrics: EngineMetrics, max_sequences: int, now: float) -> None:
        """Take up the engine's own figures."""
        was_running = self.running
        self.running, self.waiting, self.cache_usage = metrics.running, metrics.waiting, metrics.kv_cache_usage
        fresh = max(0, metrics.generation_tokens - self._counter) if self._counter is not None else 0
        if fresh:
            self.generated += fresh
            self.progressed = now
        self.quiet = not fresh
        measured = self._counter is not None and now - self._looked < 5 * POLL  # else it was idle for some of the time
        if measured and not reads(self.load, max_sequences, now):
            self.speed = smoothed(self.speed, fresh, was_running, metrics.running, now - self._looked)
        self._counter, self._looked = metrics.generation_tokens, now


@dataclass
class Tally:
    """What came of requests, since the start of this process."""

    tokens: int = 0
    """Tokens received."""
    discarded: int = 0
    """Tokens thrown away because another policy wrote them."""
    redispatched: int = 0
    """Requests sent again."""
    taken_back: int = 0
    """Requests taken back from an engine that was too slow, or to try another; their tokens are kept."""
    discarded_before: int = 0
    """What `take_discarded` has answered so far."""

    def take_discarded(self) -> int:
        """Tokens thrown away since the last call."""
        fresh, self.discarded_before = self.discarded - self.discarded_before, self.discarded
        return fresh


@dataclass(frozen=True)
class _Wish:
    """A request that waits for a place."""

    preferred: str | None
    kind: Hashable
    place: "asyncio.Future[Seat | None]"


class EnginePool:
    """Hands requests to engines; answers come from the wanted weights only."""

    def __init__(
        self,
        connect: Callable[[str], Engine],
        watch: Watch,
        clock: Clock,
        max_sequences: int,
        stall_seconds: float,
        name: str,
        vocabulary: int,
    ) -> None:
        """`connect` makes a client from an engine's URL; `name` makes request ids unique among masters; tokens are below `vocabulary`."""
        self._connect, self._watch, self._clock = connect, watch, clock
        self._max_sequences, self._stall_seconds, self._vocabulary = max_sequences, stall_seconds, vocabulary
        self._wanted: Weights | None = None
        self._seats: dict[str, Seat] = {}
        self._queue: list[tuple[int, int, _Wish]] = []
        """A heap: the longest answers first, for what they lack decides when the iteration ends; else first come, first served."""
        self._arrivals = itertools.count()
        self._closed = self._ahead = False
        self._homes: dict[Hashable, str] = {}
        """Which engine had the last request of a kind: it has the prefix that they share."""
        self._ids = (f"{name}-{n}" for n in itertools.count())
        self._generated_before = 0
        self.tally = Tally()
        self.news = News()

    @property
    def routable(self) -> int:
        """Engines with the wanted weights that stay."""
        return sum(not seat.leaving for seat in self._seats.values())

    @property
    def serving(self) -> Mapping[str, str]:
        """Engine key by node."""
        return {seat.node: seat.key for seat in self._seats.values()}

    def tokens(self) -> int:
        """Tokens generated since the start of this process: received, or more by the engines' own counters (for a live display)."""
        return max(self.tally.tokens, self._generated_before + sum(seat.generated for seat in self._seats.values()))

    def want(self, weights: Weights | None, reports: Mapping[str, NodeReport], ahead: bool = False) -> None:
        """From now on only engines that hold exactly these weights are asked; `ahead`: of them, those of nodes without a trainer."""
        if weights != self._wanted:
            self._homes.clear()
        self._wanted, self._closed, self._ahead = weights, False, ahead
        for seat in [s for s in self._seats.values() if s.node not in reports]:
            self._drop(seat)  # it went without a word, so that no report takes it away
        for report in reports.values():
            self.observe(report)

    def observe(self, report: NodeReport) -> None:
        """Take up a node's report: its engine comes, stays or goes."""
        engine = report.engine
        asked = report.kind == "rollout" or not self._ahead
        fits = engine is not None and asked and engine.routable and self._wanted == Weights(engine.version, engine.checksum)
        key = f"{report.node}/{engine.incarnation}" if engine is not None and fits else None
        for seat in [s for s in self._seats.values() if s.node == report.node and s.key != key]:
            self._drop(seat)
        if engine is not None and key is not None and key not in self._seats:
            self._seats[key] = Seat(key, report.node, self._connect(engine.url), self._clock(), vital=report.kind == "worker")
        if engine is not None and key is not None:
            self._seats[key].leaving = engine.leaving
        self.news.announce()
        self._grant()

    async def generate(
        self, prompt: Sequence[int], params: SamplingParams, preferred: str | None = None, written: int = 0, kind: Hashable = None
    ) -> tuple[Completion, str] | None:
        """The answer of an engine and that engine's key. A lost, failing or wrong engine only means that another is asked. None: it was
        taken back (`take_back`) before its first token.

        Args:
            preferred: the engine that has the answer's prefix.
            written: tokens that the answer has so far.
            kind: requests of one kind begin alike, such as the answers to one prompt.
        """
        while True:
            seat = await self._place(preferred, written, kind)
            if seat is None:
                return None
            if seat.key != preferred:
                seat.reads_until = reading_until(seat.reads_until, len(prompt), self._clock())
            try:
                completion = await self._ask(seat, prompt, params)
            finally:
                seat.promised -= 1
                self._grant()
            if completion is not None:
                return completion, seat.key
            if self._closed:
                return None
            self.tally.redispatched += 1

    async def take_back(self) -> None:
        """All requests end, with the tokens that there are; nobody is asked any more until `want`."""
        self._closed = True
        for _, _, wish in self._queue:
            if not wish.place.done():
                wish.place.set_result(None)
        self._queue.clear()
        asked = [request for seat in self._seats.values() for request in seat.requests]
        await asyncio.gather(*(self._abort(seat, seat.requests) for seat in list(self._seats.values()) if seat.requests))
        if asked:  # many long answers take seconds to be sent and read
            await asyncio.wait(asked, timeout=SILENT_SECONDS)

    async def _abort(self, seat: Seat, requests: Mapping["asyncio.Task[Completion]", str]) -> None:
        """Have the engine answer these now."""
        asked = tuple(requests)
        try:
            async with asyncio.timeout(LOOK):
                await seat.engine.abort(tuple(requests.values()))
        except (InfrastructureError, TimeoutError):
            for request in asked:
                request.cancel()

    async def poll(self) -> None:
        """Look at the engines' own metrics for ever; requests at an engine that has stalled go elsewhere. One that does not answer does not
        keep us from the others."""
        looks: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for seat in self._seats.values():
                    if seat.key not in looks and (seat.promised or seat.silent_since):
                        looks[seat.key] = asyncio.create_task(self._look(seat))
                if looks:
                    await asyncio.wait(looks.values(), timeout=POLL)
                for key in [key for key, look in looks.items() if look.done()]:
                    looks.pop(key).result()
                await self._relieve()
                self._grant()
                await asyncio.sleep(POLL)
        finally:
            for look in looks.values():
                look.cancel()

    async def _look(self, seat: Seat) -> None:
        asked = self._clock()
        try:
            async with asyncio.timeout(LOOK):
                metrics = await seat.engine.metrics()
        except (InfrastructureError, TimeoutError):
            seat.silent_since = seat.silent_since or asked
        else:
            seat.observe(metrics, self._max_sequences, self._clock())
            if seat.silent_since is not None and seat.usable_at == math.inf:
                seat.usable_at = asked
            seat.silent_since = None
        self._judge(seat, self._clock())

    def _judge(self, seat: Seat, now: float) -> None:
        """Give up an engine that is gone without a word (its machine, say), or works without getting anywhere."""
        if seat.silent_since is not None and now - seat.silent_since > SILENT_SECONDS and seat.usable_at < math.inf:
            self._fail(seat, "EngineSilent", f"no answer for {SILENT_SECONDS:.0f} s; its requests go to another engine")
            seat.usable_at = math.inf
            self._cancel(seat)
        if now - seat.progressed > self._stall_seconds:
            self._fail(seat, "EngineStalled", f"no token within {self._stall_seconds:.0f} s; its requests go to another engine")
            seat.progressed = now
            self._cancel(seat)

    async def _relieve(self) -> None:
        """Take back what far too slow engines write, when others have run dry. The tokens are kept."""
        now, loads, waiting = self._clock(), [seat.load for seat in self._seats.values()], self._waiting()
        lagging = frozenset[str]() if waiting else slow(loads, self._max_sequences, now)
        for seat in self._seats.values():
            seat.slow_since = (seat.slow_since or now) if seat.key in lagging else None
        for key in relieved([seat.load for seat in self._seats.values()], self._max_sequences, now) & lagging:
            if (late := self._seats.get(key)) is None:
                continue
            log.info(
                "%s writes %.3g tokens per second of an answer, far less than others: they go on with its answers",
                key,
                late.load.speed or 0,
            )
            late.usable_at, late.slow_since = max(late.usable_at, now + REST), None
            self.tally.taken_back += len(late.requests)
            await self._abort(late, late.requests)
        tried = None if waiting else trial([seat.load for seat in self._seats.values()], self._max_sequences, now)
        if tried is not None:
            await self._part(self._seats[tried], now)

    async def _part(self, seat: Seat, now: float) -> None:
        """Take back the request that it has had longest, for an engine that has nothing to do. Its tokens are kept."""
        oldest = dict(itertools.islice(seat.requests.items(), 1))
        seat.usable_at = max(seat.usable_at, now + POLL)  # else it would get the request again
        self.tally.taken_back += len(oldest)
        await self._abort(seat, oldest)

    def _waiting(self) -> bool:
        """Whether any request waits for a place."""
        return any(not wish.place.cancelled() for _, _, wish in self._queue)

    async def _place(self, preferred: str | None, written: int, kind: Hashable) -> Seat | None:
        if self._closed:
            return None
        place: asyncio.Future[Seat | None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-written, next(self._arrivals), _Wish(preferred, kind, place)))
        self._grant()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and (seat := place.result()) is not None:
                seat.promised -= 1
            raise

    def _grant(self) -> None:
        """Give places to waiting requests, as they are in the queue."""
        while self._queue:
            wish = self._queue[0][2]
            if wish.place.cancelled():
                heapq.heappop(self._queue)
                continue
            preferred = wish.preferred or self._homes.get(wish.kind)
            key = choose([s.load for s in self._seats.values()], self._max_sequences, preferred, self._clock())
            if key is None:
                return
            heapq.heappop(self._queue)
            if wish.kind is not None:
                self._homes[wish.kind] = key
            seat = self._seats[key]
            if not seat.promised:
                seat.progressed = seat.busy_since = self._clock()
            seat.promised += 1
            wish.place.set_result(seat)

    async def _ask(self, seat: Seat, prompt: Sequence[int], params: SamplingParams) -> Completion | None:
        """The engine's answer, or None if it has to be asked elsewhere."""
        if seat.key not in self._seats or self._closed:
            return None
        name, sent = next(self._ids), self._clock()
        request = asyncio.create_task(seat.engine.generate(name, prompt, params))
        seat.requests[request] = name
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
            seat.requests.pop(request, None)
        accepted = self._accepted(seat, completion)
        if accepted is not None and (seconds := self._clock() - sent) > 0:
            seat.shown = max(seat.shown or 0.0, len(accepted.tokens) / seconds)
        return accepted

    def _accepted(self, seat: Seat, completion: Completion) -> Completion | None:
        if not completion.tokens and completion.finish_reason == "abort":
            return None  # It was handed back, or taken back, before its first token.
        if not completion.tokens:
            self._fail(seat, "EmptyAnswer", f"ended a request as {completion.finish_reason!r} without a token")
            return None
        if max(completion.tokens) >= self._vocabulary:
            self._fail(seat, "NoSuchToken", f"answered token {max(completion.tokens)}, the model has {self._vocabulary}; discarded")
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
        if seat.key not in self._seats or seat.leaving or now < seat.usable_at:
            return
        seat.failures += 1
        pause = delay(seat.failures)
        seat.usable_at = now + pause
        asyncio.get_running_loop().call_later(pause, self._grant)
        self._watch.failed(seat.node, "rollout", reason, message, vital=seat.vital)

    def _drop(self, seat: Seat) -> None:
        del self._seats[seat.key]
        self._generated_before += seat.generated
        self._cancel(seat)

    def _cancel(self, seat: Seat) -> None:
        for request in seat.requests:
            request.cancel()
