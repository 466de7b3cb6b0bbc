"""Figures of the operator, as /metrics shows them."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client import Counter as Count


@dataclass
class Metrics:
    """One registry per operator: two in one process (tests) do not meet."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Count:
            return Count(f"rljob_operator_{name}", text, labels, registry=self.registry)

        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.looks = Histogram(
            "rljob_operator_reconcile_seconds",
            "Time of one look at a job",
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=self.registry,
        )
        self.errors = counter("reconcile_errors", "Looks at a job that failed and are tried again")
        self.depth = Gauge("rljob_operator_queue_depth", "Jobs that wait for a look", registry=self.registry)
        self.requests = counter("api_requests", "Requests to the API server", "verb", "kind", "code")
        self.polls = counter("progress_polls", "Masters asked for their progress", "result")
        self.phases = Gauge("rljob_operator_jobs", "Jobs", ["phase"], registry=self.registry)
        self.denied = Gauge("rljob_operator_namespaces_denied", "Namespaces of which the API server tells nothing", registry=self.registry)
        self.leading = Gauge("rljob_operator_leading", "1 while this operator acts, 0 while it stands by", registry=self.registry)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Time of one look."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.looks.observe(time.perf_counter() - start)

    def count_phases(self, phases: Iterable[str]) -> None:
        """Jobs by phase; phases that no job has any more are gone."""
        self.phases.clear()
        for phase, count in Counter(phases).items():
            self.phases.labels(phase or "New").set(count)
