"""Who gets which piece of a version from whom. Pure; `rljob.master.exchange` asks it each time that a node that pulls reports.

Every piece goes down a tree of its own. A source that has the whole version gives each piece, as far as possible, to one node only, the
next node gets the next piece, and nodes give each other what they have. So the source's link carries the version about once however many
nodes want it, and a node begins to give as soon as it has its first piece.

The decision is made anew each time from what everybody has and is fetching, so nothing has to be repaired when a node dies, stalls or
lies: it is left out (it no longer reports, or the one that pulls refuses it) and what it was to give is given by another.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32


@dataclass(frozen=True)
class Lease:
    """Pieces that one node fetches from one source, over one stream."""

    source: str
    pieces: int
    """Bit mask."""


@dataclass(frozen=True)
class Peer:
    """A node that has some of a version, or wants it."""

    have: int = 0
    """Bit mask of the pieces that it has and has checked."""
    leases: tuple[Lease, ...] = ()
    """What it is fetching."""
    refuses: frozenset[str] = field(default_factory=frozenset)
    """Sources that lied to it, stalled or went away."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the fan-out."""

    fan_out: int = 4
    """Nodes that one source serves at a time."""
    streams: int = 4
    """Leases that one node has at a time; half of them at most from whole copies, if others want the version too."""
    share: int = 32
    """A lease is at most one part in so many of all pieces, and at least one piece."""


class Peers:
    """Everybody who has or wants any of a version, by name, and what a decision asks of all of them together. It is kept from report to
    report, so that a decision costs what has changed and not a look at everybody."""

    def __init__(self, count: int, limits: Limits, peers: Mapping[str, Peer] | None = None) -> None:
        """`count`: number of pieces."""
        self.count, self.limits, self.full = count, limits, (1 << count) - 1
        self._peers: dict[str, Peer] = {}
        self._whole, self._free = set[str](), set[str]()
        """Who has everything; who has something, and serves fewer than it may."""
        self._serves = Counter[str]()
        self._fetched, self._held = _Tally(count), _Tally(count)
        """What is being fetched; what is held by whoever has not everything."""
        for name, peer in (peers or {}).items():
            self.put(name, peer)

    def __getitem__(self, name: str) -> Peer:
        return self._peers[name]

    def put(self, name: str, peer: Peer) -> None:
        """What a node has and fetches now."""
        before = self._peers.get(name, _NOBODY)
        self._peers[name] = peer
        had, has = (0 if one.have == self.full else one.have for one in (before, peer))
        self._held.add(had & ~has, -1)
        self._held.add(has & ~had, 1)
        (self._whole.add if peer.have == self.full else self._whole.discard)(name)
        if before.leases != peer.leases:
            for one, step in ((before, -1), (peer, 1)):
                for lease in one.leases:
                    self._fetched.add(lease.pieces, step)
                for source in {lease.source for lease in one.leases}:
                    self._serves[source] += step
                    self._count_in(source)
        self._count_in(name)

    def drop(self, name: str) -> None:
        """It is not heard of any more; repeated: nothing."""
        if name in self._peers:
            self.put(name, _NOBODY)
            del self._peers[name]

    def _count_in(self, source: str) -> None:
        free = self._peers.get(source, _NOBODY).have and self._serves[source] < self.limits.fan_out
        (self._free.add if free else self._free.discard)(source)

    def sources(self, name: str, missing: int) -> list["_Source"]:
        """Who could give a node any of what it misses: also one that serves as many as it may, if the node is one of them."""
        me = self._peers[name]
        mine = {lease.source for lease in me.leases} & self._peers.keys()
        return [
            _Source(n, peer.have, n in self._whole, serves)
            for n in self._free | mine
            if (peer := self._peers[n]).have & missing and n != name and n not in me.refuses
            if (serves := self._serves[n] - (n in mine)) < self.limits.fan_out
        ]

    def spread(self) -> tuple[int, int]:
        """What anybody fetches; that, and what any node has that has not everything."""
        return self._fetched.mask, self._fetched.mask | self._held.mask

    def whole(self, name: str) -> bool:
        """Whether a node has everything."""
        return name in self._whole

    def alone(self, name: str) -> bool:
        """Whether all other nodes have everything."""
        return len(self._peers) - (name in self._peers) == len(self._whole) - (name in self._whole)


_NOBODY = Peer()


class _Tally:
    """How many sets each piece is in."""

    def __init__(self, count: int) -> None:
        self._times, self.mask = [0] * count, 0

    def add(self, pieces: int, step: int) -> None:
        """A set more (1) or less (-1)."""
        while pieces:
            lowest = pieces & -pieces
            pieces ^= lowest
            self._times[lowest.bit_length() - 1] += step
            self.mask = self.mask | lowest if self._times[lowest.bit_length() - 1] else self.mask & ~lowest


@dataclass(frozen=True)
class _Source:
    name: str
    have: int
    whole: bool
    serves: int
    """Other nodes that it serves."""


def grant(peers: Peers, name: str) -> tuple[Lease, ...]:
    """New leases of the node `name`, besides those that it has."""
    me, limits = peers[name], peers.limits
    free, missing = limits.streams - len(me.leases), peers.full & ~me.have & ~union(lease.pieces for lease in me.leases)
    if free <= 0 or not missing:
        return ()
    sources, (fetched, spread) = peers.sources(name, missing), peers.spread()
    mine, found = [lease.source for lease in me.leases], list[Lease]()
    # Streams that all wait for a whole copy, which serves others too, would have none left for what those others have by then.
    most = limits.streams if peers.alone(name) else max(1, limits.streams // 2)
    while len(found) < free:
        usable = sources if sum(map(peers.whole, mine)) < most else [s for s in sources if not s.whole]
        if (best := _best(usable, mine, missing, fetched, spread)) is None:
            break
        source, offered = best
        lease = Lease(source, _some(offered, peers.count, name, limits))
        found.append(lease)
        mine.append(source)
        missing, fetched, spread = missing & ~lease.pieces, fetched | lease.pieces, spread | lease.pieces
    return tuple(found)


def _best(sources: Sequence[_Source], mine: Sequence[str], missing: int, fetched: int, spread: int) -> tuple[str, int] | None:
    """Whom to ask next, and for which pieces.

    Args:
        mine: sources of the leases that the node has.
        missing: what it neither has nor fetches.
        fetched: what anybody fetches; `spread`: that, and what any node has that does not have everything.
    """
    found: tuple[tuple[bool, int, bool, int, str], int] | None = None
    for source in sources:
        offered = source.have & missing
        if source.whole:
            # Not twice what is on its way to another, who can give it afterwards; unless there is nothing else to do, as that may be slow.
            offered = offered & ~spread or (0 if mine else offered & ~fetched or offered)
        if offered:
            # What nobody but a whole copy has comes first: only it can give that, and everything else can come from others.
            key = (source.whole and not missing & ~spread, mine.count(source.name), not source.whole, source.serves, source.name)
            if found is None or key < found[0]:
                found = key, offered
    return (found[0][-1], found[1]) if found else None


def union(masks: Iterable[int]) -> int:
    """All pieces of some sets."""
    found = 0
    for mask in masks:
        found |= mask
    return found


def _some(offered: int, count: int, name: str, limits: Limits) -> int:
    """A lease's worth of the offered pieces: neighbours, from a place of the node's own on, so that two nodes begin apart."""
    start, left = crc32(name.encode()) % count, max(1, count // limits.share)
    chosen = 0
    for mask in (offered >> start << start, offered & ((1 << start) - 1)):
        while mask and left:
            lowest = mask & -mask
            chosen, mask, left = chosen | lowest, mask ^ lowest, left - 1
    return chosen
