"""HTTP of the reward service: `POST /v1/score`, `GET /healthz`, `GET /metrics`."""

import asyncio
from collections import Counter as Counted
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import httpx
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rljob.reward.judge import Judge, standard_judge
from rljob.reward.outside import Outside
from rljob.reward.pool import WorkerPool
from rljob.reward.registry import VERIFIERS
from rljob.reward.scorers import Scorers
from rljob.wire.crowd import CrowdTransport
from rljob.wire.reward import ScoreItem, ScoreRequest, ScoreResponse, ScoreResult

ANSWERING = 280.0
"""Seconds until a call is answered with what is judged by then; the master waits 300 s, and then has nothing of what it asked."""
CONNECTIONS = 256
"""To the sandbox and to judges, at a time."""


def create_app(
    pool: WorkerPool,
    seconds: float,
    warm: bool,
    sandbox: str | None = None,
    named: frozenset[str] = frozenset(),
    scorers: Scorers | None = None,
    answering: float = ANSWERING,
) -> Starlette:
    """The service.

    Args:
        pool: workers for killable verifiers; stopped with the service.
        seconds: hard limit of one judgement.
        warm: start the workers before the first question.
        sandbox: base address of the code sandbox.
        named: code and addresses that the job names; nobody can use others (`rljob.api.verifiers.named`).
        scorers: reward models in folders; stopped with the service.
        answering: seconds until a call is answered; what is not judged by then has failed.
    """
    # Time limits are those of each call.
    http = httpx.AsyncClient(timeout=None, transport=CrowdTransport(most=CONNECTIONS), trust_env=False)
    outside = Outside(http, sandbox, environment=pool.environment, scorers=scorers)
    judge = standard_judge(pool, seconds, outside, named)
    metrics = _Metrics(outside.tokens)

    async def score(request: Request) -> Response:
        try:
            asked = ScoreRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": f"not a ScoreRequest: {error.errors()[0]['msg']} at {error.errors()[0]['loc']}"}, 422)
        results = await _in_time(judge, asked.items, answering)
        for item, result in zip(asked.items, results, strict=True):
            metrics.count(item.verifier, result)
        return Response(ScoreResponse(results=tuple(results)).model_dump_json(), media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "verifiers": list(VERIFIERS)})

    async def show_metrics(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if warm:
            await pool.start()
        async with http:
            yield
        await pool.stop()
        if scorers is not None:
            await scorers.stop()

    routes = [
        Route("/v1/score", score, methods=["POST"]),
        Route("/healthz", health),
        Route("/v1/health", health),
        Route("/metrics", show_metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _in_time(judge: Judge, items: Sequence[ScoreItem], seconds: float) -> list[ScoreResult]:
    """A result for each item. One that takes too long takes no verdict from the others."""
    tasks = [asyncio.create_task(judge.score(item)) for item in items]
    late: set[asyncio.Task[ScoreResult]] = set()
    try:
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()
    return [_late(item, seconds) if task in late else task.result() for item, task in zip(items, tasks, strict=True)]


def _late(item: ScoreItem, seconds: float) -> ScoreResult:
    reason = (
        f"verifier {item.verifier}: no judgement within {seconds:g} s; let one take less (timeout_seconds, attempts and retries of its "
        "options), or raise spec.reward.workers or replicas"
    )
    return ScoreResult(id=item.id, verdict="failed", reward=None, reason=reason, seconds=seconds)


class _Metrics:
    """Counters of this service, in a registry of their own."""

    def __init__(self, tokens: Counted[str]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Tokens(tokens))
        self._judgements = Counter("rljob_reward_judgements", "Answers judged", ["verifier", "verdict"], registry=self.registry)
        self._seconds = Histogram("rljob_reward_seconds", "Time of one judgement", ["verifier"], registry=self.registry)

    def count(self, verifier: str, result: ScoreResult) -> None:
        known = verifier if verifier in VERIFIERS else "unknown"
        self._judgements.labels(known, result.verdict).inc()
        self._seconds.labels(known).observe(result.seconds)


class _Tokens(Collector):
    """What language models that judge have cost."""

    def __init__(self, tokens: Counted[str]) -> None:
        self._tokens = tokens

    def collect(self) -> Iterable[Metric]:
        found = CounterMetricFamily("rljob_reward_judge_tokens", "Tokens of language models that judge", labels=["kind"])
        for kind in ("prompt", "completion"):
            found.add_metric([kind], self._tokens[kind])
        calls = CounterMetricFamily("rljob_reward_judge_calls", "Answered calls of language models that judge", self._tokens["calls"])
        return found, calls
