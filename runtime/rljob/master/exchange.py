"""Who has which pieces of the wanted version, as far as nodes have said, and what a node that pulls it is told.

Nothing of it is durable: nodes say all of it again with each report.
"""

from rljob.api import InfrastructureError
from rljob.master.decisions.fanout import Lease, Limits, Peer, Peers, grant
from rljob.master.nodes import Nodes
from rljob.master.timing import Clock
from rljob.wire.node import NodeReport
from rljob.wire.pieces import HEARTBEAT, HeldWeights, PullLease, PullPlan, PullReport, cut_of, mask_of, pieces, text_of
from rljob.wire.weights import Manifest

SILENCE = 10.0
"""Seconds after which a node that pulled and has not been heard of since gets nothing more and gives nothing more."""
OFTEN = 250
"""Heartbeats that are taken in a second: the more nodes pull, the longer are the pauses between those of one."""
LOOK = 0.5
"""Seconds after which it is looked again who is gone."""


def pause(pulling: int) -> float:
    """Seconds between two heartbeats of each of so many nodes that pull."""
    return min(max(HEARTBEAT, pulling / OFTEN), SILENCE / 2)


class Exchange:
    """Brings those who want a version together with those who have it."""

    def __init__(self, nodes: Nodes, clock: Clock, limits: Limits | None = None) -> None:
        self._nodes, self._clock, self._limits = nodes, clock, limits or Limits()
        self._manifest: Manifest | None = None
        self._cut = ""
        """The pieces of it (`cut_of`)."""
        self._peers = Peers(0, self._limits)
        """By address of the weight server: those that pull that version, and those that have it."""
        self._pulls: dict[str, tuple[str, float]] = {}
        """Nodes that pull: address, and when they were last heard of."""
        self._held: dict[str, HeldWeights | None] = {}
        """What each node last said that it has."""
        self._whole = set[str]()
        """Addresses of those that have all of that version."""
        self._looked: float | None = None
        """When; None: something is new."""
        nodes.observers.append(self._hear)

    def plan(self, manifest: Manifest, report: PullReport) -> PullPlan:
        """Take up a report; what its node is to fetch.

        Raises:
            InfrastructureError: the version cannot be pulled, or the report does not fit it.
        """
        desired = self._nodes.desired
        serves = desired.phase in ("rollout", "train") and desired.version == manifest.version
        wanted = serves and desired.checksum in (None, manifest.checksum)
        if not wanted or report.checksum != manifest.checksum:
            return PullPlan(wanted=False)
        if self._manifest is not manifest and self._manifest != manifest:
            found = pieces(manifest)
            self._peers, self._pulls, self._looked, self._cut = Peers(len(found), self._limits), {}, None, cut_of(found)
        self._manifest = manifest
        if report.cut not in ("", self._cut):
            return PullPlan(wanted=False)  # it was registered anew meanwhile: begin again with that manifest and what is there
        me, now = self._take_up(report), self._clock()
        if self._looked is None or now - self._looked >= LOOK:
            self._look(manifest, now)
        address, _ = self._pulls.get(report.node, (report.url, now))
        if address != report.url:
            self._peers.drop(address)
        self._pulls[report.node] = report.url, now
        self._peers.put(report.url, me)
        leases = grant(self._peers, report.url)
        self._peers.put(report.url, Peer(me.have, (*me.leases, *leases), me.refuses))
        told = tuple(PullLease(source=lease.source, pieces=text_of(lease.pieces)) for lease in leases)
        return PullPlan(wanted=True, leases=told, pause=pause(len(self._pulls)))

    def _hear(self, report: NodeReport) -> None:
        if self._held.get(report.node) != report.weights:
            self._held[report.node] = report.weights
            self._looked = None

    def _look(self, manifest: Manifest, now: float) -> None:
        """Leave out who is silent; who says that it has all of it by now fetches no more, whatever it was told when it last asked."""
        held = [report.weights for report in self._nodes.reports.values() if report.weights is not None]
        whole = {weights.url for weights in held if (weights.version, weights.checksum) == (manifest.version, manifest.checksum)}
        living = {url for url, heard in self._pulls.values() if now - heard < SILENCE}
        silent = {url for url, _ in self._pulls.values()} - living
        self._pulls = {node: pull for node, pull in self._pulls.items() if pull[0] not in silent | whole}
        for url in silent | self._whole - whole:
            self._peers.drop(url)
        for url in whole:
            self._peers.put(url, Peer(self._peers.full))
        self._whole, self._looked = whole, now

    def _take_up(self, report: PullReport) -> Peer:
        leases = tuple(Lease(lease.source, mask_of(lease.pieces)) for lease in report.fetching)
        have = mask_of(report.have)
        if any(mask >> self._peers.count for mask in (have, *(lease.pieces for lease in leases))):
            raise InfrastructureError(f"{report.node} speaks of pieces that the version does not have: it has {self._peers.count}")
        return Peer(have, leases, frozenset(report.refused))
