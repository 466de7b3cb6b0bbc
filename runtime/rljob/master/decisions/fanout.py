"""Who gets which piece of a version from whom. Pure; `rljob.master.exchange` asks it each time that a node that pulls reports.

Every piece goes down a tree of its own. A source that has the whole version gives each piece, as far as possible, to one node only, the
next node gets the next piece, and nodes give each other what they have. So the source's link carries the version about once however many
nodes want it, and a node begins to give as soon as it has its first piece.

The decision is made anew each time from what everybody has and is fetching, so nothing has to be repaired when a node dies, stalls or
lies: it is left out (it no longer reports, or the one that pulls refuses it) and what it was to give is given by another.
"""

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


@dataclass(frozen=True)
class _Source:
    name: str
    have: int
    whole: bool
    serves: int
    """Other nodes that it serves."""


def grant(count: int, peers: Mapping[str, Peer], name: str, limits: Limits) -> tuple[Lease, ...]:
    """New leases of the node `name`, besides those that it has.

    Args:
        count: number of pieces.
        peers: every node that has or wants any of it, by name; `name` is one of them.
    """
    full, me = (1 << count) - 1, peers[name]
    free, missing = limits.streams - len(me.leases), full & ~me.have & ~union(lease.pieces for lease in me.leases)
    if free <= 0 or not missing:
        return ()
    busy = load(peers, name)
    sources = [
        _Source(n, p.have, p.have == full, busy.get(n, 0))
        for n, p in peers.items()
        if p.have & missing and busy.get(n, 0) < limits.fan_out and n != name and n not in me.refuses
    ]
    fetched = union(lease.pieces for peer in peers.values() for lease in peer.leases)
    spread = fetched | union(peer.have for peer in peers.values() if peer.have != full)
    mine, found = [lease.source for lease in me.leases], list[Lease]()
    # Streams that all wait for a whole copy, which serves others too, would have none left for what those others have by then.
    alone = not any(peer.have != full for n, peer in peers.items() if n != name)
    whole = {n for n, peer in peers.items() if peer.have == full}
    most = limits.streams if alone else max(1, limits.streams // 2)
    while len(found) < free:
        usable = sources if sum(n in whole for n in mine) < most else [s for s in sources if not s.whole]
        if (best := _best(usable, mine, missing, fetched, spread)) is None:
            break
        source, offered = best
        lease = Lease(source, _some(offered, count, name, limits))
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


def load(peers: Mapping[str, Peer], apart_from: str = "") -> dict[str, int]:
    """How many nodes each source serves."""
    count: dict[str, int] = {}
    for name, peer in peers.items():
        if name != apart_from:
            for source in {lease.source for lease in peer.leases}:
                count[source] = count.get(source, 0) + 1
    return count


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
