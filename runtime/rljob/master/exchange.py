"""Who has which pieces of the wanted version, as far as nodes have said, and what a node that pulls it is told.

Nothing of it is durable: nodes say all of it again with each report.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rljob.api import InfrastructureError
from rljob.master.decisions.fanout import Lease, Limits, Peer, grant
from rljob.master.nodes import Nodes
from rljob.master.timing import Clock
from rljob.wire.node import NodeReport
from rljob.wire.pieces import PullLease, PullPlan, PullReport, mask_of, pieces, text_of
from rljob.wire.weights import Manifest

SILENCE = 10.0
"""Seconds after which a node that pulled and has not been heard of since gets nothing more and gives nothing more."""


@dataclass(frozen=True)
class _Pull:
    """A node's newest report, and what it was told to fetch since."""

    node: str
    peer: Peer
    heard: float


class Exchange:
    """Brings those who want a version together with those who have it."""

    def __init__(self, nodes: Nodes, clock: Clock, limits: Limits | None = None) -> None:
        self._nodes, self._clock, self._limits = nodes, clock, limits or Limits()
        self._label: tuple[int, str] | None = None
        self._count = 0
        """Pieces of that version."""
        self._pulls: dict[str, _Pull] = {}
        """By address of the weight server."""

    def plan(self, manifest: Manifest, report: PullReport) -> PullPlan:
        """Take up a report; what its node is to fetch.

        Raises:
            InfrastructureError: the version cannot be pulled, or the report does not fit it.
        """
        desired = self._nodes.desired
        label = (manifest.version, manifest.checksum)
        serves = desired.phase in ("rollout", "train") and desired.version == manifest.version
        wanted = serves and desired.checksum in (None, manifest.checksum)
        if not wanted or report.checksum != manifest.checksum:
            return PullPlan(wanted=False)
        if self._label != label:
            self._label, self._count, self._pulls = label, len(pieces(manifest)), {}
        now = self._clock()
        me = self._take_up(report)
        whole = _whole(self._nodes.reports, label, (1 << self._count) - 1)
        # Who says that it has all of it by now fetches no more, whatever it was told when it last asked.
        pulling = {url: pull for url, pull in self._pulls.items() if url not in whole and pull.node != report.node}
        self._pulls = {url: pull for url, pull in pulling.items() if now - pull.heard < SILENCE}
        peers = whole | {url: pull.peer for url, pull in self._pulls.items()} | {report.url: me}
        leases = grant(self._count, peers, report.url, self._limits)
        self._pulls[report.url] = _Pull(report.node, Peer(me.have, (*me.leases, *leases), me.refuses), now)
        return PullPlan(wanted=True, leases=tuple(PullLease(source=lease.source, pieces=text_of(lease.pieces)) for lease in leases))

    def _take_up(self, report: PullReport) -> Peer:
        leases = tuple(Lease(lease.source, mask_of(lease.pieces)) for lease in report.fetching)
        have = mask_of(report.have)
        if any(mask >> self._count for mask in (have, *(lease.pieces for lease in leases))):
            raise InfrastructureError(f"{report.node} speaks of pieces that the version does not have: it has {self._count}")
        return Peer(have, leases, frozenset(report.refused))


def _whole(reports: Mapping[str, NodeReport], label: tuple[int, str], full: int) -> dict[str, Peer]:
    """Nodes that have the whole version."""
    held = [report.weights for report in reports.values() if report.weights is not None]
    return {weights.url: Peer(full) for weights in held if (weights.version, weights.checksum) == label}
