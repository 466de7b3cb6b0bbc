"""How long an iteration's generation takes on several rollout replicas, with answers of very different lengths.

    python benchmarks/rollout_simulator.py [--replicas 1,2,4] [--prompts 64] [--samples 8] [--median 500] [--longest 8192] [--prompt 200]
        [--draws 5] [--json]

What hands requests to engines is the production code (`rljob.master.engines.EnginePool` with `decisions/dispatch.py`), in virtual time;
only the engines are made up, because replicas on one machine would share its cores. So this shows what dispatch does, not how fast an
engine is.

What is assumed:
- An engine runs 64 sequences at a time. With b of them each gets 60 / (1 + b / 32) tokens per second: 58 alone, 1,280 together.
- It reads 8,000 tokens per second, one request after the other in the order in which they came, and writes in what is left of its time. It
  need not read a prompt that it has read for another sample, or what it has read or written of an answer before, as long as that is in its
  KV cache. Samples share the reading of a prompt, not its room there.
- A request that it has not begun to read waits: for a sequence, for the reader, or for room in the KV cache, which a running answer takes
  from the beginning to its end. If running answers grow out of the cache, the last one goes back and is read again. The cache takes
  524,288 tokens, more than all sequences need, if the row does not say otherwise.
- A prompt has `--prompt` tokens (200). Lengths are log-normal (sigma 1), cut at `--longest`; the same for every row. Verdicts take no time.
- What every row shows is the mean of `--draws` such iterations: in one, much depends on where the longest answer happens to be.

Rows: every answer where the pool puts it; `fixed`: prompts dealt out in turn, each engine with a queue of its own, as a comparison; one of
the engines eight times as slow; one that dies without a word after 20 s; the answers cut at 1,024 tokens an iteration
(`rollout.tokenBudget`); KV caches of 32,768 tokens, so that half of the sequences fill them; one engine with such a cache beside others;
prompts of 4,000 tokens, which keep every engine reading for eight seconds when an iteration begins.

Reported: seconds; the bound that no dispatch can beat (the longest answer alone, or all tokens at full speed); how much of what the engines
could have written in that time they did not (idle); tokens that were written twice.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bars import add_bar_column, bars
from rich.console import Console
from rich.table import Table
from tests.master.virtual import clock, run

from rljob.master.decisions.partial import slice_after
from rljob.master.engines import EnginePool
from rljob.master.trajectory import Weights
from rljob.master.watch import Watch
from rljob.rollout.client import Completion, EngineMetrics, SamplingParams
from rljob.wire.node import EngineReport, NodeReport

SEQUENCES, ALONE, HALF, READS, CACHE = 64, 60.0, 32, 8000.0, 524_288
SMALL_CACHE, PROMPT, LONG_PROMPT = 32_768, 200, 4000
TICK = 0.1
"""Seconds of one step of an engine."""
WEIGHTS = Weights(1, "c")


def together(running: int) -> float:
    """Tokens per second of an engine that runs so many sequences."""
    return running * ALONE / (1 + running / HALF)


@dataclass(eq=False)
class Request:
    """An answer's next part, on an engine."""

    prompt: int
    answer: int
    begins: int
    """Tokens of the prompt."""
    length: int
    """Tokens that it came with."""
    wanted: int
    unread: float
    done: "asyncio.Future[Completion]"
    written: float = 0.0
    given_up: bool = False

    @property
    def held(self) -> float:
        """Tokens that it takes of the KV cache."""
        return self.length + self.written


@dataclass
class Engine:
    """Writes what it is asked for, all sequences at once."""

    slowness: float = 1.0
    dies_at: float = float("inf")
    cache: int = CACHE
    requests: dict[str, Request] = field(default_factory=dict)
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    known: dict[tuple[str, int], float] = field(default_factory=dict)
    """Tokens of prompts, and of answers that are not running, that are still in its cache, the oldest first."""
    written: float = 0.0

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion:
        done: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        number, answer, begins = prompt[:3]
        request = Request(number, answer, begins, len(prompt), params.max_tokens, len(prompt), done)
        self.requests[request_id] = request
        self.waiting.append(request)
        try:
            return await request.done
        finally:
            self.requests.pop(request_id, None)
            for queue in (self.waiting, self.running):
                if request in queue:
                    queue.remove(request)

    async def metrics(self) -> EngineMetrics:
        if asyncio.get_running_loop().time() > self.dies_at:
            await asyncio.Event().wait()
        return EngineMetrics(len(self.running), len(self.waiting), int(self.written), min(1.0, self._held / self.cache))

    async def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            if name in self.requests:
                self.requests[name].given_up = True

    async def live(self) -> None:
        """For ever, step by step."""
        while True:
            await asyncio.sleep(TICK)
            if asyncio.get_running_loop().time() <= self.dies_at:
                self._step()

    @property
    def _held(self) -> float:
        return sum(request.held for request in self.running)

    def _step(self) -> None:
        self._shrink()
        reads = budget = READS * TICK / self.slowness
        for request in self.running:
            budget = self._read(request, budget)
        while self.waiting and budget > 0 and self._has_room(self.waiting[0]):
            request = self.waiting.pop(0)
            known = max(self.known.pop(("answer", request.answer), 0), self.known.pop(("prompt", request.prompt), 0))
            request.unread = max(0.0, request.held - known)
            self.known["prompt", request.prompt] = request.begins
            self.running.append(request)
            budget = self._read(request, budget)
        self._forget()
        writing = [request for request in self.running if request.unread == 0]
        each = together(len(writing)) / max(1, len(writing)) / self.slowness * TICK * budget / reads
        for request in writing:
            self._write(request, each)
        for request in [r for r in self.waiting if r.given_up]:
            self._end(request, self.waiting)

    def _has_room(self, request: Request) -> bool:
        return not self.running or (len(self.running) < SEQUENCES and self._held + request.held <= self.cache)

    def _read(self, request: Request, budget: float) -> float:
        """What is left of the budget."""
        read = min(budget, request.unread)
        request.unread -= read
        return budget - read

    def _write(self, request: Request, tokens: float) -> None:
        fresh = min(tokens, request.wanted - request.written)
        request.written += fresh
        self.written += fresh
        if request.given_up or request.written >= request.wanted:
            self.known["answer", request.answer] = request.held
            self._end(request, self.running)

    def _end(self, request: Request, queue: list[Request]) -> None:
        queue.remove(request)
        count = int(request.written)
        label = WEIGHTS.label if count else ""
        if not request.done.done():
            request.done.set_result(Completion((0,) * count, (0.0,) * count, "abort" if request.given_up else "length", label))

    def _shrink(self) -> None:
        """Running answers that have grown out of the cache go back, the last one first."""
        while len(self.running) > 1 and self._held > self.cache:
            self.waiting.insert(0, self.running.pop())

    def _forget(self) -> None:
        """What nobody runs makes room, the oldest first."""
        room = self.cache - self._held - sum(self.known.values())
        for one in list(self.known):
            if room >= 0:
                return
            room += self.known.pop(one)


@dataclass(frozen=True)
class Row:
    """One experiment."""

    name: str
    replicas: int
    seconds: float
    bound: float
    idle: float
    twice: float

    def cells(self) -> list[str]:
        return [self.name, str(self.replicas), f"{self.seconds:.0f}", f"{self.bound:.0f}", f"{self.seconds / self.bound:.2f}",
                f"{self.idle:.0%}", f"{max(0.0, self.twice):.1%}"]  # fmt: skip


async def grow(pool: EnginePool, answer: int, prompt: int, length: int, begins: int) -> None:
    """One answer to its end, as `rljob.master.generation` does it."""
    written, engine = 0, None
    while written < length:
        params = SamplingParams(max_tokens=min(slice_after(written), length - written))
        # Of the tokens only the count matters here, and what they belong to.
        tokens = (prompt, answer, begins) + (0,) * (begins + written - 3)
        answered = await pool.generate(tokens, params, engine, written, prompt)
        assert answered is not None
        completion, engine = answered
        written += len(completion.tokens)


def pool_of(engines: dict[str, Engine]) -> EnginePool:
    """The production dispatch over these engines."""
    pool = EnginePool(lambda url: engines[url], Watch(1000), clock, SEQUENCES, 300.0, "sim", 2**31)
    pool.want(WEIGHTS, {name: _report(name) for name in engines})
    return pool


def _report(name: str) -> NodeReport:
    engine = EngineReport(url=name, incarnation=name, version=1, checksum="c", routable=True)
    return NodeReport(node=name, kind="rollout", incarnation="i", seen_revision=0, step="rollout", step_started=0.0, engine=engine)


async def play(
    name: str, engines: dict[str, Engine], lengths: Sequence[int], samples: int, fixed: bool = False, begins: int = PROMPT
) -> Row:
    """One iteration; prompts have `begins` tokens."""
    pools = [pool_of({key: engine}) for key, engine in engines.items()] if fixed else [pool_of(engines)]
    beside = [asyncio.create_task(engine.live()) for engine in engines.values()]
    beside += [asyncio.create_task(pool.poll()) for pool in pools]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for answer, length in enumerate(lengths):
            prompt = answer // samples
            tasks.create_task(grow(pools[prompt % len(pools)], answer, prompt, length, begins))
    seconds = loop.time() - begun
    for task in beside:
        task.cancel()
    total, written = sum(lengths), sum(engine.written for engine in engines.values())
    power = sum(together(SEQUENCES) / engine.slowness for engine in engines.values())
    bound = max(max(lengths) / together(1), total / power)
    return Row(name, len(engines), seconds, bound, 1 - total / (power * seconds), written / total - 1)


def mean(of: Sequence[Row]) -> Row:
    """One experiment with several draws of lengths."""
    return Row(
        of[0].name,
        of[0].replicas,
        fmean(row.seconds for row in of),
        fmean(row.bound for row in of),
        fmean(row.idle for row in of),
        fmean(row.twice for row in of),
    )


def lengths_of(count: int, median: float, longest: int, seed: int) -> list[int]:
    """Long-tailed."""
    chance = random.Random(seed)
    return [max(1, min(longest, int(median * chance.lognormvariate(0, 1)))) for _ in range(count)]


def rows(replicas: Sequence[int], lengths: Sequence[int], samples: int, begins: int = PROMPT) -> list[Row]:
    """All experiments."""

    def engines(count: int, last: Engine | None = None, cache: int = CACHE) -> dict[str, Engine]:
        found = {f"rollout-{i}": Engine(cache=cache) for i in range(count)}
        found[f"rollout-{count - 1}"] = last or Engine(cache=cache)
        return found

    def one(name: str, among: dict[str, Engine], lengths: Sequence[int] = lengths, fixed: bool = False, begins: int = begins) -> Row:
        return run(play(name, among, lengths, samples, fixed, begins))

    most = max(replicas)
    return [
        *(one("pool", engines(n)) for n in replicas),
        *(one("fixed", engines(n), fixed=True) for n in replicas if n > 1),
        one("one 8 times as slow", engines(most, Engine(slowness=8.0))),
        one("fixed, one 8 times as slow", engines(most, Engine(slowness=8.0)), fixed=True),
        one("one dies after 20 s", engines(most, Engine(dies_at=20.0))),
        one("cut at 1,024", engines(most), [min(1024, length) for length in lengths]),
        one("small KV caches", engines(most, cache=SMALL_CACHE)),
        one("one small KV cache", engines(most, Engine(cache=SMALL_CACHE))),
        one("long prompts", engines(most), begins=LONG_PROMPT),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", default="1,2,4")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--median", type=float, default=500)
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--prompt", type=int, default=PROMPT, help="tokens of a prompt")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    replicas = [int(n) for n in options.replicas.split(",")]
    draws = [lengths_of(options.prompts * options.samples, options.median, options.longest, seed) for seed in range(options.draws)]
    found = [mean(row) for row in zip(*(rows(replicas, lengths, options.samples, options.prompt) for lengths in draws), strict=True)]
    if options.json:
        print(json.dumps([vars(row) for row in found]))
        return
    tokens, longest = fmean(map(sum, draws)), fmean(map(max, draws))
    head = f"{len(draws[0])} answers, {tokens:,.0f} tokens, the longest {longest:,.0f}: means of {len(draws)} draws"
    table = Table("engines", "replicas", "seconds", "bound", "times the bound", "idle", "written twice", title=head)
    add_bar_column(table, "seconds")
    for row, bar in zip(found, bars([row.seconds for row in found]), strict=True):
        table.add_row(*row.cells(), bar)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
