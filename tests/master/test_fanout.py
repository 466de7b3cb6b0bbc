"""The fan-out: whoever dies, stalls or lies, everybody gets everything; no source serves too many or sends much more than one version."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from rljob.master.decisions.fanout import Lease, Limits, Peer, Peers, grant, union


def granted(count: int, peers: Mapping[str, Peer], name: str, limits: Limits) -> tuple[Lease, ...]:
    return grant(Peers(count, limits, peers), name)


def load(peers: Mapping[str, Peer]) -> Counter[str]:
    """How many nodes each source serves."""
    return Counter(source for peer in peers.values() for source in {lease.source for lease in peer.leases})


@dataclass
class Swarm:
    """Nodes that follow the plan, and some that do not."""

    count: int
    limits: Limits
    peers: dict[str, Peer]
    pulling: set[str]
    liars: frozenset[str] = frozenset()
    dead: set[str] = field(default_factory=set)
    origin: dict[tuple[str, int], str] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    @property
    def full(self) -> int:
        return (1 << self.count) - 1

    def complete(self) -> bool:
        return all(self.peers[name].have == self.full for name in self.pulling)

    def ask(self, name: str) -> bool:
        """Let a node ask for leases; whether it got any."""
        leases = granted(self.count, self.peers, name, self.limits)
        peer = self.peers[name]
        for lease in leases:
            assert lease.pieces
            assert lease.source not in peer.refuses
            assert lease.pieces & self.peers[lease.source].have == lease.pieces, "a source is asked for what it does not have"
        self.peers[name] = Peer(peer.have, (*peer.leases, *leases), peer.refuses)
        held = [lease.pieces for lease in self.peers[name].leases]
        assert sum(mask.bit_count() for mask in held) == union(held).bit_count(), "a piece is fetched twice"
        assert max(load(self.peers).values(), default=0) <= self.limits.fan_out
        assert len(self.peers[name].leases) <= self.limits.streams
        return bool(leases)

    def end(self, name: str, index: int, lies: bool) -> None:
        """One lease of a node ends: it arrives, its source is gone, or its source lied."""
        peer = self.peers[name]
        lease, leases = peer.leases[index], peer.leases[:index] + peer.leases[index + 1 :]
        if lease.source in peer.refuses:
            self.peers[name] = Peer(peer.have, leases, peer.refuses)
            return
        if lease.source in self.dead or (lies and lease.source in self.liars):
            kept = peer.have
            if lease.source not in self.dead:
                for piece in range(self.count):
                    if self.origin.get((name, piece)) == lease.source:
                        kept &= ~(1 << piece)
            self.peers[name] = Peer(kept, leases, peer.refuses | {lease.source})
            return
        for piece in range(self.count):
            if lease.pieces >> piece & 1:
                self.origin[name, piece] = lease.source
                self.sent[lease.source] = self.sent.get(lease.source, 0) + 1
        self.peers[name] = Peer(peer.have | lease.pieces, leases, peer.refuses)

    def die(self, name: str) -> None:
        """It is not heard of any more: the plan is made without it."""
        self.dead.add(name)
        del self.peers[name]
        self.pulling.discard(name)


@st.composite
def swarms(draw: st.DrawFn) -> Swarm:
    pieces = draw(st.integers(1, 12))
    full = (1 << pieces) - 1
    masks = st.integers(0, full)
    steady = draw(st.lists(masks, max_size=2))
    # Whatever those do not have, the last one has: one honest source of each byte lives.
    steady.append(full & ~union(steady) | draw(masks))
    peers = {f"steady-{i}": Peer(mask) for i, mask in enumerate(steady)}
    peers |= {f"mortal-{i}": Peer(mask) for i, mask in enumerate(draw(st.lists(masks, max_size=2)))}
    liars = {f"liar-{i}": Peer(mask) for i, mask in enumerate(draw(st.lists(masks, max_size=2)))}
    pullers = {f"puller-{i}": Peer() for i in range(draw(st.integers(1, 5)))}
    limits = Limits(draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 8)))
    return Swarm(pieces, limits, {**peers, **liars, **pullers}, set(pullers), frozenset(liars))


@settings(max_examples=300, deadline=None)
@given(swarm=swarms(), data=st.data())
def test_everybody_gets_everything_as_long_as_one_honest_source_of_each_byte_lives(swarm: Swarm, data: st.DataObject) -> None:
    mortal = [name for name in swarm.peers if name.startswith(("mortal", "puller"))]
    for name in data.draw(st.lists(st.sampled_from(mortal), unique=True, max_size=len(mortal) - 1)) if mortal else ():
        for other in sorted(swarm.pulling):
            swarm.ask(other)
            if (count := len(swarm.peers[other].leases)) and data.draw(st.booleans()):
                swarm.end(other, data.draw(st.integers(0, count - 1)), data.draw(st.booleans()))
        swarm.die(name)
    for _ in range(10_000):
        if swarm.complete():
            break
        moved = False
        for name in sorted(swarm.pulling):
            moved |= swarm.ask(name)
            if swarm.peers[name].leases:
                swarm.end(name, 0, data.draw(st.booleans()) if swarm.peers[name].leases[0].source in swarm.liars else False)
                moved = True
        assert moved, "nobody can go on"
    assert swarm.complete()
    for name in swarm.pulling:
        condemned = swarm.peers[name].refuses - swarm.dead
        assert not any(swarm.origin[name, piece] in condemned for piece in range(swarm.count)), "bytes of a liar were kept"


def spread(replicas: int, pieces: int, limits: Limits | None = None) -> Swarm:
    """One source, some replicas, everybody equally fast."""
    swarm = Swarm(pieces, limits or Limits(), {"worker": Peer((1 << pieces) - 1)}, set())
    swarm.pulling = {f"rollout-{i}" for i in range(replicas)}
    swarm.peers |= {name: Peer() for name in swarm.pulling}
    while not swarm.complete():
        for name in sorted(swarm.pulling):
            swarm.ask(name)
        for name in sorted(swarm.pulling):
            if swarm.peers[name].leases:
                swarm.end(name, 0, False)
    return swarm


def test_a_single_replica_pulls_in_several_streams() -> None:
    leases = granted(64, {"worker": Peer((1 << 64) - 1), "rollout-0": Peer()}, "rollout-0", Limits())
    assert [lease.source for lease in leases] == ["worker"] * 4
    assert [lease.pieces.bit_count() for lease in leases] == [2] * 4


def test_a_version_leaves_its_source_about_once_however_many_replicas_want_it() -> None:
    for replicas in (1, 2, 4, 8, 32):
        swarm = spread(replicas, 64)
        assert 64 <= swarm.sent["worker"] <= 1.5 * 64, f"{replicas} replicas"


def test_what_is_on_its_way_to_another_is_taken_again_only_if_there_is_nothing_else_to_do() -> None:
    peers = {"worker": Peer(0b1111), "a": Peer(leases=(Lease("worker", 0b0011),)), "b": Peer()}
    leases = granted(4, peers, "b", Limits())
    assert union(lease.pieces for lease in leases) == 0b1100
    peers["b"] = Peer(have=0b1100)
    assert len(granted(4, peers, "b", Limits())) == 1
    peers["a"] = Peer(have=0b0001, leases=(Lease("worker", 0b0010),))
    assert granted(4, peers, "b", Limits()) == (Lease("a", 0b0001),)


def test_a_source_that_serves_as_many_as_it_may_is_left_alone() -> None:
    busy = {f"n{i}": Peer(leases=(Lease("worker", 1 << i),)) for i in range(4)}
    peers = {"worker": Peer(0xFF), "late": Peer(), **busy}
    assert granted(8, peers, "late", Limits()) == ()
    del peers["n0"]
    assert granted(8, peers, "late", Limits())[0].source == "worker"


def test_of_what_others_want_too_half_the_streams_wait_for_whole_copies() -> None:
    peers = {"worker": Peer((1 << 64) - 1), "a": Peer(), "b": Peer()}
    a, b = (granted(64, peers, name, Limits()) for name in "ab")
    assert [lease.source for lease in (*a, *b)] == ["worker"] * 4
    assert not union(lease.pieces for lease in a) & union(lease.pieces for lease in b), "they begin apart"


def test_a_node_that_a_source_serves_already_may_have_more_streams_from_it() -> None:
    peers = {"worker": Peer(0b1111), "a": Peer(leases=(Lease("worker", 0b0001),)), "b": Peer()}
    assert [lease.source for lease in granted(4, peers, "a", Limits(fan_out=1))] == ["worker"]
    assert granted(4, peers, "b", Limits(fan_out=1)) == ()


def test_what_only_a_whole_copy_has_comes_first_and_then_what_others_have() -> None:
    peers = {"worker": Peer(0b1111), "a": Peer(0b0001), "b": Peer()}
    assert granted(4, peers, "b", Limits(streams=1))[0].source == "worker"
    peers["b"] = Peer(0b1110)
    assert granted(4, peers, "b", Limits(streams=1))[0].source == "a"


def test_who_serves_fewer_is_asked_first() -> None:
    busy = {f"n{i}": Peer(leases=(Lease("first", 1 << i),)) for i in range(2)}
    peers = {"first": Peer(0b1111), "second": Peer(0b1111), "late": Peer(), **busy}
    assert granted(4, peers, "late", Limits())[0].source == "second"


def test_what_nobody_fetches_is_taken_before_what_somebody_does() -> None:
    """Also where a node that has it is refused."""
    for name in "cdefgh":
        peers = {"worker": Peer(0b11), "a": Peer(leases=(Lease("worker", 0b01),)), "b": Peer(0b10), name: Peer(refuses=frozenset("b"))}
        assert granted(2, peers, name, Limits(streams=1)) == (Lease("worker", 0b10),)


NAMES = ("worker", "a", "b", "c")
PEERS = st.builds(
    Peer,
    have=st.integers(0, 15),
    leases=st.lists(st.builds(Lease, source=st.sampled_from(NAMES), pieces=st.integers(1, 15)), max_size=3).map(tuple),
    refuses=st.sets(st.sampled_from(NAMES)).map(frozenset),
)


@settings(max_examples=300, deadline=None)
@given(reports=st.lists(st.tuples(st.sampled_from(NAMES), st.none() | PEERS)), last=PEERS)
def test_what_is_kept_from_report_to_report_decides_as_if_all_was_said_at_once(reports: list[tuple[str, Peer | None]], last: Peer) -> None:
    limits = Limits(fan_out=1, streams=4, share=4)
    kept, said = Peers(4, limits), dict[str, Peer]()
    for name, peer in [*reports, ("a", last)]:
        if peer is None:
            kept.drop(name)
            said.pop(name, None)
        else:
            kept.put(name, peer)
            said[name] = peer
    for name in said:
        assert grant(kept, name) == granted(4, said, name, limits)
