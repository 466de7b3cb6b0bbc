"""How long an iteration's generation takes on several rollout replicas, with answers of very different lengths.

    python benchmarks/rollout_simulator.py [--replicas 1,2,4] [--prompts 64] [--samples 8] [--median 500] [--longest 8192] [--json]

What hands requests to engines is the production code (`rljob.master.engines.EnginePool` with `decisions/dispatch.py`), in virtual time;
only the engines are made up, because replicas on one machine would share its cores. So this shows what dispatch does, not how fast an
engine is.

What is assumed:
- An engine runs 64 sequences at a time. With b of them each gets 60 / (1 + b / 32) tokens per second: 58 alone, 1,280 together.
- A request first reads its tokens at 8,000 per second, those that this engine has not read or written before.
- Lengths are log-normal (sigma 1), cut at `--longest`; the same for every row. Verdicts take no time.

Rows: every answer where the pool puts it; `fixed`: prompts dealt out in turn, each engine with a queue of its own, as a comparison; one of
the engines eight times as slow; one that dies without a word after 20 s; the answers cut at 1,024 tokens an iteration
(`rollout.tokenBudget`).

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

SEQUENCES, ALONE, HALF, READS = 64, 60.0, 32, 8000.0
TICK = 0.1
"""Seconds of one step of an engine."""
WEIGHTS = Weights(1, "c")


def together(running: int) -> float:
    """Tokens per second of an engine that runs so many sequences."""
    return running * ALONE / (1 + running / HALF)


@dataclass(eq=False)
class Request:
    """An answer's next part, on an engine."""

    answer: int
    wanted: int
    reads: float
    done: "asyncio.Future[Completion]"
    written: float = 0.0
    given_up: bool = False


@dataclass
class Engine:
    """Writes what it is asked for, all sequences at once."""

    slowness: float = 1.0
    dies_at: float = float("inf")
    requests: dict[str, Request] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)
    """Tokens of each answer that it has in its cache."""
    written: float = 0.0

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion:
        answer, length = prompt[0], len(prompt)
        unread = max(0, length - self.known.get(answer, 0))
        request = Request(answer, params.max_tokens, unread / READS, asyncio.get_running_loop().create_future())
        self.requests[request_id] = request
        try:
            completion = await request.done
        finally:
            self.requests.pop(request_id, None)
        self.known[answer] = length + len(completion.tokens)
        return completion

    async def metrics(self) -> EngineMetrics:
        if asyncio.get_running_loop().time() > self.dies_at:
            await asyncio.Event().wait()
        running = min(SEQUENCES, len(self.requests))
        return EngineMetrics(running, len(self.requests) - running, int(self.written), running / SEQUENCES)

    async def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            if name in self.requests:
                self.requests[name].given_up = True

    async def live(self) -> None:
        """For ever, step by step."""
        while True:
            await asyncio.sleep(TICK)
            if asyncio.get_running_loop().time() <= self.dies_at:
                self._step(list(self.requests.values())[:SEQUENCES])

    def _step(self, running: Sequence[Request]) -> None:
        each = together(len(running)) / max(1, len(running)) / self.slowness * TICK
        for request in running:
            if request.reads > 0:
                request.reads -= TICK
                continue
            fresh = min(each, request.wanted - request.written)
            request.written += fresh
            self.written += fresh
            if request.given_up or request.written >= request.wanted:
                count = int(request.written)
                label = WEIGHTS.label if count else ""
                if not request.done.done():
                    request.done.set_result(Completion((0,) * count, (0.0,) * count, "abort" if request.given_up else "length", label))


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


async def grow(pool: EnginePool, answer: int, prompt: int, length: int) -> None:
    """One answer to its end, as `rljob.master.generation` does it."""
    written, engine = 0, None
    while written < length:
        params = SamplingParams(max_tokens=min(slice_after(written), length - written))
        # The answer's number stands for its tokens, of which only the count matters here.
        answered = await pool.generate((answer,) * (200 + written), params, engine, written, prompt)
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


async def play(name: str, engines: dict[str, Engine], lengths: Sequence[int], samples: int, fixed: bool = False) -> Row:
    """One iteration."""
    pools = [pool_of({key: engine}) for key, engine in engines.items()] if fixed else [pool_of(engines)]
    beside = [asyncio.create_task(engine.live()) for engine in engines.values()]
    beside += [asyncio.create_task(pool.poll()) for pool in pools]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for answer, length in enumerate(lengths):
            prompt = answer // samples
            tasks.create_task(grow(pools[prompt % len(pools)], answer, prompt, length))
    seconds = loop.time() - begun
    for task in beside:
        task.cancel()
    total, written = sum(lengths), sum(engine.written for engine in engines.values())
    power = sum(together(SEQUENCES) / engine.slowness for engine in engines.values())
    bound = max(max(lengths) / together(1), total / power)
    return Row(name, len(engines), seconds, bound, 1 - total / (power * seconds), written / total - 1)


def lengths_of(count: int, median: float, longest: int, seed: int = 7) -> list[int]:
    """Long-tailed."""
    chance = random.Random(seed)
    return [max(1, min(longest, int(median * chance.lognormvariate(0, 1)))) for _ in range(count)]


def rows(replicas: Sequence[int], lengths: Sequence[int], samples: int) -> list[Row]:
    """All experiments."""

    def engines(count: int, last: Engine | None = None) -> dict[str, Engine]:
        found = {f"rollout-{i}": Engine() for i in range(count)}
        found[f"rollout-{count - 1}"] = last or Engine()
        return found

    found = [run(play("pool", engines(n), lengths, samples)) for n in replicas]
    found += [run(play("fixed", engines(n), lengths, samples, fixed=True)) for n in replicas if n > 1]
    most = max(replicas)
    found.append(run(play("one 8 times as slow", engines(most, Engine(slowness=8.0)), lengths, samples)))
    found.append(run(play("fixed, one 8 times as slow", engines(most, Engine(slowness=8.0)), lengths, samples, fixed=True)))
    found.append(run(play("one dies after 20 s", engines(most, Engine(dies_at=20.0)), lengths, samples)))
    found.append(run(play("cut at 1,024", engines(most), [min(1024, length) for length in lengths], samples)))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", default="1,2,4")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--median", type=float, default=500)
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lengths = lengths_of(options.prompts * options.samples, options.median, options.longest)
    found = rows([int(n) for n in options.replicas.split(",")], lengths, options.samples)
    if options.json:
        print(json.dumps([vars(row) for row in found]))
        return
    head = f"{len(lengths)} answers, {sum(lengths):,} tokens, the longest {max(lengths):,}"
    table = Table("engines", "replicas", "seconds", "bound", "times the bound", "idle", "written twice", title=head)
    add_bar_column(table, "seconds")
    for row, bar in zip(found, bars([row.seconds for row in found]), strict=True):
        table.add_row(*row.cells(), bar)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
