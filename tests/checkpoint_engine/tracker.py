"""The master's part in a pull, without the rest of the master."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rljob.master.exchange import Exchange
from rljob.master.nodes import Nodes
from rljob.wire.node import NodeReport
from rljob.wire.pieces import HeldWeights, PullPlan, PullReport
from rljob.wire.weights import Manifest


@dataclass
class Master:
    """The master's exchange, and a note of what it was told."""

    manifests: dict[int, Manifest] = field(default_factory=dict)
    told: list[PullReport] = field(default_factory=list)
    on_report: Callable[[PullReport], None] = lambda report: None

    def __post_init__(self) -> None:
        self.nodes = Nodes(1, time.time)
        self.exchange = Exchange(self.nodes, time.time)

    async def want(self, manifest: Manifest, *sources: str) -> None:
        self.manifests[manifest.version] = manifest
        self.nodes.want("rollout", manifest.version, manifest.checksum)
        for number, url in enumerate(sources):
            held = HeldWeights(version=manifest.version, checksum=manifest.checksum, url=url)
            report = NodeReport(
                node=f"worker-{number}", kind="worker", incarnation="i", seen_revision=0, step="rollout", step_started=0.0, weights=held
            )
            await self.nodes.sync(report, 0)

    async def manifest(self, version: int) -> Manifest | None:
        return self.manifests.get(version)

    async def pull(self, version: int, report: PullReport) -> PullPlan:
        self.told.append(report)
        self.on_report(report)
        return self.exchange.plan(self.manifests[version], report)
