"""What `/metrics` says. Gauges are read from the service when somebody asks."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rljob.wire.sandbox import RunResult

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
KILLS = ("time_limit", "wall_limit", "memory_limit", "output_limit", "process_limit", "disk_limit")
"""Statuses of runs that were ended for what they did."""


class Metrics:
    """In a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._runs = Counter("rljob_sandbox_runs", "Runs that ended", ["language", "status"], registry=own)
        self._run_seconds = Histogram("rljob_sandbox_run_seconds", "Wall time of one program", ["language"], buckets=_SECONDS, registry=own)
        self._wait_seconds = Histogram("rljob_sandbox_wait_seconds", "Time of one run in the queue", buckets=_SECONDS, registry=own)
        self._request_seconds = Histogram(
            "rljob_sandbox_request_seconds", "Time of one request, with its wait and all its runs", ["call"], buckets=_SECONDS, registry=own
        )
        self._verdicts = Counter("rljob_sandbox_verdicts", "Submissions judged", ["language", "verdict"], registry=own)
        self._kills = Counter("rljob_sandbox_kills", "Runs ended by force", ["reason"], registry=own)
        self._refused = Counter("rljob_sandbox_refused", "Requests that were not answered with a result", ["reason"], registry=own)
        self._waiting = Gauge("rljob_sandbox_queue", "Runs that wait for a slot", registry=own)
        self._requests = Gauge("rljob_sandbox_requests", "Requests in the service", registry=own)
        self._slots = Gauge("rljob_sandbox_slots", "Slots", ["state"], registry=own)
        self._rebuilt = Gauge("rljob_sandbox_slots_rebuilt", "Slots made anew since the start", registry=own)
        self._protections = Gauge("rljob_sandbox_protection", "1 where a protection is on", ["name"], registry=own)
        for reason in (*KILLS, "gone"):
            self._kills.labels(reason)

    def run(self, language: str, result: RunResult) -> None:
        """A run ended."""
        self._runs.labels(language, result.status).inc()
        if result.run is not None:
            self._run_seconds.labels(language).observe(result.run.wall_seconds)
        if result.status in KILLS:
            self._kills.labels(result.status).inc()

    def waited(self, seconds: float) -> None:
        """A run had to wait so long for its slot."""
        self._wait_seconds.observe(seconds)

    def verdict(self, language: str, verdict: str) -> None:
        """A submission was judged."""
        self._verdicts.labels(language, verdict).inc()

    def refused(self, reason: str) -> None:
        """`invalid`, `busy`, `late`, `draining`."""
        self._refused.labels(reason).inc()

    @contextmanager
    def request(self, call: str) -> Iterator[None]:
        """Time a request; one that is cancelled counts as gone."""
        begun = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            self._kills.labels("gone").inc()
            raise
        self._request_seconds.labels(call).observe(time.monotonic() - begun)

    def text(self, waiting: int, requests: int, slots: int, free: int, rebuilt: int, protections: Mapping[str, bool]) -> bytes:
        """The page, with what stands at this moment."""
        self._waiting.set(waiting)
        self._requests.set(requests)
        self._slots.labels("busy").set(slots - free)
        self._slots.labels("free").set(free)
        self._rebuilt.set(rebuilt)
        for name, on in protections.items():
            self._protections.labels(name).set(on)
        return generate_latest(self.registry)
