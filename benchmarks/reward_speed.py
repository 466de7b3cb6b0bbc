"""Mathematical answers judged per second by the reward service, and what hostile answers cost the others.

    python benchmarks/reward_speed.py [--answers 6000] [--workers 2] [--json]

The service runs as a job runs it, a process with two workers, and is asked over HTTP as the master does it: two calls at a time, 64 answers
each, every answer some 300 characters of reasoning and a box. References are like those of competition mathematics (`MIX`); of each, eight
answers, half of them right, in other spellings or with other values. In the same run, on a sample of the same answers:

- *a process each*: every answer judged by math-verify in a fork of its own, which is what isolation costs without anything else;
- *unguarded*: math-verify in a loop in one process, where the first hostile answer ends everything.

Then one honest answer after the other is asked about, alone and beside a client that sends hostile ones without a pause (`HOSTILE`: huge
powers, factorials, nesting, endless sums and integrals, no two of them equal).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from rljob.api import RLJob
from rljob.reward import worker
from rljob.wire.reward import ScoreItem, ScoreRequest, ScoreResponse, ScoreResult

BATCH, CALLS, SAMPLES = 64, 2, 8
LIMIT = 2.0
"""Seconds, `spec.reward.timeoutSeconds`."""
REASONING = "First we write down what is known, then we solve for the unknown, and check that it fits. " * 3
WANTED = {"answers_per_s": 1000, "cut_off": 1.0, "others_p99_ratio": 2.0}


def _integer(chance: random.Random) -> list[str]:
    n = chance.randrange(2, 5000)
    return [f"{n}", f"{n}.0", f"{n + 1}", f"-{n}"]


def _fraction(chance: random.Random) -> list[str]:
    a, b = chance.randrange(1, 60), chance.choice([3, 7, 9, 11, 13])
    return [f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\frac{{{a + 1}}}{{{b}}}", f"\\dfrac{{{b}}}{{{a + b}}}"]


def _decimal(chance: random.Random) -> list[str]:
    n = chance.randrange(100, 9999)
    return [f"{n / 100}", f"\\frac{{{n}}}{{100}}", f"{n / 10}", f"{n}"]


def _root(chance: random.Random) -> list[str]:
    a, b = chance.randrange(2, 12), chance.choice([2, 3, 5, 6, 7])
    return [f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{{{b + 4}}}", f"\\sqrt{{{a}}}"]


def _pi(chance: random.Random) -> list[str]:
    a, b = chance.randrange(1, 12), chance.choice([5, 7])
    return [f"\\frac{{{a}\\pi}}{{{b}}}", f"\\frac{{{a}}}{{{b}}}\\pi", f"\\frac{{{a}\\pi}}{{{b + 6}}}", f"{a}\\pi"]


def _polynomial(chance: random.Random) -> list[str]:
    a, b = chance.randrange(1, 30), chance.randrange(1, 30)
    return [f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"x^2+{a}x+{b + 1}", f"(x-{a})(x+{b})"]


def _point(chance: random.Random) -> list[str]:
    a, b = chance.randrange(-20, 20), chance.randrange(1, 20)
    return [f"({a},{b})", f"\\left({a}, {b}\\right)", f"({b},{a - 1})", f"({a}, {b + 1})"]


def _set(chance: random.Random) -> list[str]:
    a, b = chance.sample(range(1, 60), 2)
    return [f"\\{{{a},{b}\\}}", f"\\{{{b}, {a}\\}}", f"\\{{{a},{b + 60}\\}}", f"\\{{{a - 61},{b}\\}}"]


def _equation(chance: random.Random) -> list[str]:
    a, b = chance.randrange(2, 99), chance.randrange(1, 99)
    return [f"y={a}x+{b}", f"y = {a}x+{b}", f"y={a}x-{b}", f"x={b}"]


MIX: Sequence[tuple[int, Callable[[random.Random], list[str]]]] = (
    (58, _integer), (14, _fraction), (6, _decimal), (6, _root), (4, _pi), (5, _polynomial), (3, _point), (2, _set), (2, _equation),
)  # fmt: skip
"""Per hundred references: their kind. A kind gives the reference, another spelling of it, and two wrong results."""
HOSTILE: Sequence[Callable[[int], str]] = (
    lambda n: f"9^{{9^{{9^{{{n}}}}}}}",
    lambda n: f"{10_000_000 + n}!",
    lambda n: f"2^{{{10**10 + n}}}",
    lambda n: f"{n}" + "\\frac{1}{" * 150 + "2" + "}" * 150,
    lambda n: "{" * 900 + f"{n}" + "}" * 900,
    lambda n: f"\\sum_{{i=1}}^{{10^9}} \\frac{{{n}}}{{i}}",
    lambda n: f"\\int_0^1 \\sin(\\sin(x^{{{n}x}})) dx",
    lambda n: f"\\prod_{{i=1}}^{{10^8}} (i+{n})",
    lambda n: f"(x+{n})^{{5000}}",
    lambda n: f"\\sqrt{{2}}^{{{10**9 + n}}}",
)


def _item(name: str, result: str, reference: str) -> ScoreItem:
    return ScoreItem(id=name, verifier="math", prompt="", answer=f"{REASONING}\\boxed{{{result}}}", reference=reference, finished=True)


def honest(count: int, seed: int) -> list[ScoreItem]:
    """Answers in the order in which a policy would finish them: any."""
    chance = random.Random(seed)
    kinds = [kind for share, kind in MIX for _ in range(share)]
    found = []
    for group in range(count // SAMPLES):
        reference, other, *wrong = chance.choice(kinds)(chance)
        results = [reference, reference, reference, other, *chance.choices(wrong, k=SAMPLES - 4)]
        found += [_item(f"{group}-{i}", result, reference) for i, result in enumerate(results)]
    chance.shuffle(found)
    return found


@contextlib.contextmanager
def service(workers: int) -> Iterator[str]:
    """A reward service as the job starts it; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = {
        "model": {"source": {"path": "x"}},
        "data": {"train": {"path": "x.jsonl"}},
        "reward": {"verifier": "math", "timeoutSeconds": LIMIT, "workers": workers},
    }
    job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": spec})
    with tempfile.TemporaryDirectory(prefix="rljob-bench-") as folder:
        Path(folder, "job.json").write_text(job.model_dump_json(by_alias=True))
        given = {"RLJOB_JOB": f"{folder}/job.json", "RLJOB_LISTEN_REWARD": f"127.0.0.1:{port}"}
        process = subprocess.Popen([sys.executable, "-m", "rljob.reward"], env=dict(os.environ) | given)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@contextlib.asynccontextmanager
async def client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A connection to the service, which is up."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as http:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                await http.get("/healthz")
                break
            if time.monotonic() > deadline:
                raise TimeoutError("the reward service did not start")
        yield http


async def score(http: httpx.AsyncClient, items: Sequence[ScoreItem]) -> tuple[ScoreResult, ...]:
    """One call."""
    answer = await http.post("/v1/score", content=ScoreRequest(items=tuple(items)).model_dump_json())
    return ScoreResponse.model_validate_json(answer.content).results


async def throughput(http: httpx.AsyncClient, items: Sequence[ScoreItem]) -> float:
    """Answers per second; every verdict is checked against what the answer was made as."""
    batches = iter([items[i : i + BATCH] for i in range(0, len(items), BATCH)])

    async def caller() -> None:
        for batch in batches:
            for item, result in zip(batch, await score(http, batch), strict=True):
                right = int(item.id.rpartition("-")[2]) < SAMPLES // 2
                assert result.verdict == ("right" if right else "wrong"), (item.answer[len(REASONING) :], item.reference, result)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLS)))
    return len(items) / (time.perf_counter() - began)


async def latencies(http: httpx.AsyncClient, items: Sequence[ScoreItem]) -> list[float]:
    """Seconds of one honest answer after the other."""
    found = []
    for item in items:
        began = time.perf_counter()
        await score(http, [item])
        found.append(time.perf_counter() - began)
    return found


async def beside_hostile(http: httpx.AsyncClient, items: Sequence[ScoreItem]) -> tuple[list[float], list[ScoreResult]]:
    """Seconds of honest answers while another client sends hostile ones, and what became of those."""
    results: list[ScoreResult] = []
    done = asyncio.Event()

    async def attacker() -> None:
        number = 2
        while not done.is_set():
            batch = [_item(f"h{number}-{i}", make(number), "7") for i, make in enumerate(HOSTILE)]
            results.extend(await score(http, batch))
            number += 1

    attack = asyncio.create_task(attacker())
    await asyncio.sleep(0.5)
    found = await latencies(http, items)
    done.set()
    await attack
    return found, results


def unguarded(items: Sequence[ScoreItem]) -> float:
    """Answers per second of math-verify in a loop in this process."""
    from math_verify import parse, verify

    began = time.perf_counter()
    for item in items:
        wanted = parse(f"\\boxed{{{item.reference}}}", parsing_timeout=None)
        verify(wanted, parse(item.answer, parsing_timeout=None), timeout_seconds=None)
    return len(items) / (time.perf_counter() - began)


def a_process_each(items: Sequence[ScoreItem]) -> float:
    """Answers per second of one worker that forks for every answer."""
    began = time.perf_counter()
    for item in items:
        worker.handle(item, 30.0)
    return len(items) / (time.perf_counter() - began)


def p99(values: Sequence[float]) -> float:
    """Milliseconds."""
    return 1000 * statistics.quantiles(values, n=100)[98]


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """All figures."""
    items = honest(arguments.answers, seed=1)
    figures: dict[str, float] = {}
    with service(arguments.workers) as address:
        async with client(address) as http:
            await throughput(http, honest(BATCH * CALLS, seed=2))
            figures["answers_per_s"] = round(await throughput(http, items))
            quiet = await latencies(http, honest(arguments.singles, seed=3))
            attacked, hostile = await beside_hostile(http, honest(arguments.singles, seed=4))
    figures["hostile"] = len(hostile)
    figures["cut_off"] = sum(result.verdict == "wrong" for result in hostile) / len(hostile)
    figures["hostile_failed"] = sum(result.verdict == "failed" for result in hostile)
    figures["p50_ms"], figures["p99_ms"] = round(1000 * statistics.median(quiet), 1), round(p99(quiet), 1)
    figures["p50_beside_hostile_ms"] = round(1000 * statistics.median(attacked), 1)
    figures["p99_beside_hostile_ms"] = round(p99(attacked), 1)
    figures["others_p99_ratio"] = round(p99(attacked) / p99(quiet), 2)
    figures["a_process_each_per_s"] = round(a_process_each(items[:300]))
    figures["unguarded_per_s"] = round(unguarded(items[:1000]))
    return figures


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=6000)
    parser.add_argument("--singles", type=int, default=400, help="honest answers asked about one by one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    figures = asyncio.run(measure(arguments))
    table = Table(title=f"reward service, math, {arguments.workers} workers, {os.cpu_count()} cores")
    table.add_column("figure")
    table.add_column("", justify="right")
    table.add_column("wanted", justify="right")
    for name, value in figures.items():
        sign = "≤" if name == "others_p99_ratio" else "≥"
        table.add_row(name, f"{value:g}", f"{sign} {WANTED[name]:g}" if name in WANTED else "")
    Console().print(table)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
