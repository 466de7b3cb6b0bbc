"""Nodes: what is wanted of them, and what they report."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

from rljob.api import InfrastructureError
from rljob.master.timing import Clock, News
from rljob.wire.node import NodeAddresses, NodeDesired, NodeReport, TrainTask

SILENCE = 60.0
"""Seconds after which a node that neither polls nor reports is away: a rollout node is taken as gone, a worker node is waited for."""
LONGEST_POLL = 30.0
"""Longest wait of one sync, in seconds."""


class IdentityTaken(InfrastructureError):
    """Two agents call themselves by one name."""

    def __init__(self, node: str, first: bool) -> None:
        super().__init__(
            f"two agents call themselves {node} (RLJOB_NODE): only the one that came last is listened to; end the pod of the other, which "
            "may be left on a node that was taken for lost"
        )
        self.first = first
        """It was not said of this agent before."""


class Nodes:
    """The one place that says what nodes should do. Level-triggered: they are told the whole of it each time."""

    def __init__(self, revision: int, clock: Clock) -> None:
        """`revision` must differ from any that an earlier master of this job has used."""
        self.desired = NodeDesired(revision=revision, phase="idle", version=0, checksum=None)
        self.news = News()
        self._clock = clock
        self._revised = News()
        self._reports: dict[str, NodeReport] = {}
        self._heard: dict[str, float] = {}
        self._polling: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._came: dict[str, list[str]] = {}
        """Incarnations of a node's agent, in the order in which they were first heard."""
        self._refused: set[str] = set()
        self._closed = False
        self.observers: list[Callable[[NodeReport], None]] = []
        """Called with every report."""

    def want(
        self,
        phase: Literal["train", "rollout", "idle", "stop"],
        version: int,
        checksum: str | None,
        task: TrainTask | None = None,
        ahead: bool = False,
    ) -> None:
        """State what is wanted; the same as before changes nothing."""
        wanted = self.desired.model_copy(update={"phase": phase, "version": version, "checksum": checksum, "task": task, "ahead": ahead})
        if wanted != self.desired:
            self.desired = wanted.model_copy(update={"revision": self.desired.revision + 1})
            self._revised.announce()

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired:
        """Take a report; answer what is wanted, at once if the node has not seen it yet, else when it changes or after `wait` seconds.

        Raises:
            IdentityTaken: another agent of this name came later, and lives.
        """
        node = report.node
        self._admit(report)
        self._heard[node] = self._clock()
        self._polling[node] = self._polling.get(node, 0) + 1
        try:
            if self._is_news(report):
                self._reports[node] = report
                for observe in self.observers:
                    observe(report)
                self.news.announce()
            if self.desired.revision == report.seen_revision and not self._closed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, LONGEST_POLL)):
                        await self._revised.wait()
        finally:
            self._polling[node] -= 1
            self._heard[node] = self._clock()
        self._told[node] = self.desired.revision
        self.news.announce()
        return self.desired

    def _is_news(self, report: NodeReport) -> bool:
        """An agent gives up a poll when it has something to report, and what it reports may overtake that poll."""
        known = self._reports.get(report.node)
        return known is None or known.incarnation != report.incarnation or known.number <= report.number

    def _admit(self, report: NodeReport) -> None:
        node, came = report.node, self._came.setdefault(report.node, [])
        if came and came[-1] == report.incarnation:
            return
        lives = bool(self._polling.get(node)) or self._clock() - self._heard.get(node, -math.inf) < LONGEST_POLL
        if report.incarnation in came and lives:
            first = report.incarnation not in self._refused
            self._refused.add(report.incarnation)
            raise IdentityTaken(node, first)
        came[:] = [*(each for each in came if each != report.incarnation), report.incarnation][-8:]

    def close(self) -> None:
        """Let no node wait any longer: the master is about to end."""
        self._closed = True
        self._revised.announce()

    @property
    def reports(self) -> Mapping[str, NodeReport]:
        """Newest report of every node that is there, by name."""
        return {name: report for name, report in sorted(self._reports.items()) if not self._gone(report)}

    def _gone(self, report: NodeReport) -> bool:
        patience = 0.0 if report.engine is not None and report.engine.leaving else SILENCE
        return report.kind == "rollout" and self._silent(report, patience)

    def _silent(self, report: NodeReport, patience: float = SILENCE) -> bool:
        return not self._polling.get(report.node) and self._clock() - self._heard[report.node] > patience

    def workers_away(self) -> bool:
        """A worker node that has been there is away: its pod is lost, and the next one waits for a place, say."""
        return any(self._silent(report) for report in self.workers())

    def workers(self) -> list[NodeReport]:
        """Newest reports of the worker nodes."""
        return [r for r in self.reports.values() if r.kind == "worker"]

    def addresses(self) -> NodeAddresses:
        """Where they give their weights."""
        workers = {report.node: report.weights_url for report in self.workers() if report.weights_url}
        return NodeAddresses(weights=workers, held={node: r.weights.version for node, r in self.reports.items() if r.weights is not None})

    def step_seconds(self) -> dict[str, float]:
        """Seconds of every step of the hand-over since it was asked for; the slowest worker's."""
        steps: dict[str, float] = {}
        for report in self.workers():
            for step, seconds in report.timings.items():
                if step not in ("rollout", "idle"):
                    steps[step] = max(steps.get(step, 0.0), seconds)
        return steps

    def all_told(self) -> bool:
        """True if every node that is there has been answered with what is wanted now."""
        return all(self._told.get(node) == self.desired.revision for node in self.reports)

    async def until[T](self, condition: Callable[[], T | None]) -> T:
        """Wait until `condition` answers something; it is asked again after every report and registration."""
        while (found := condition()) is None:
            await self.news.wait()
        return found
