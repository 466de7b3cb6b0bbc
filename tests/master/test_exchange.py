"""What nodes that pull are told by the master: from reports alone, and never for another version than the wanted one."""

import asyncio

import pytest

from rljob.api import InfrastructureError
from rljob.master.exchange import OFTEN, SILENCE, Exchange
from rljob.master.nodes import Nodes
from rljob.wire.node import NodeReport
from rljob.wire.pieces import HEARTBEAT, HeldWeights, PullReport, cut_of, members, pieces
from rljob.wire.weights import Canary, Manifest, Shard, TensorEntry

MiB = 1 << 20
WORKER = "http://10.0.0.1:1"


def tensor(name: str, offset: int, size: int, segment: str = "w") -> TensorEntry:
    shard = Shard(node="worker-0", segment=segment, offset=offset, bytes=size, start=0, rows=size)
    return TensorEntry(name=name, dtype="U8", shape=(size,), shards=(shard,), checksum="c")


def manifest(*tensors: TensorEntry, version: int = 3) -> Manifest:
    found = tensors or tuple(tensor(f"t{i}", 4096 + i * MiB, MiB) for i in range(8))
    return Manifest(version=version, dtype="U8", tensors=found, checksum="c3", canary=Canary(tokens=(), logprobs=(), tolerance=0))


def report(node: str, have: str = "0", **more: object) -> PullReport:
    return PullReport.model_validate({"node": node, "url": f"http://{node}", "checksum": "c3", "have": have, **more})


class Master:
    """Nodes, exchange, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes = Nodes(1, lambda: self.now)
        self.exchange = Exchange(self.nodes, lambda: self.now)
        self.nodes.want("rollout", 3, "c3")
        self.holds("worker-0", WORKER)

    def holds(self, node: str, url: str, version: int = 3) -> None:
        """A node says that it has the whole version."""
        held = HeldWeights(version=version, checksum=f"c{version}", url=url)
        kind = "rollout" if node.startswith("rollout") else "worker"
        report = {"node": node, "kind": kind, "incarnation": "i", "seen_revision": 0, "step": "rollout", "step_started": 0.0}
        asyncio.run(self.nodes.sync(NodeReport.model_validate({**report, "weights": held}), 0))

    def leases(self, one: PullReport) -> list[tuple[str, tuple[int, ...]]]:
        plan = self.exchange.plan(manifest(), one)
        assert plan.wanted
        return [(lease.source, members(int(lease.pieces, 16))) for lease in plan.leases]


def test_a_node_gets_leases_and_no_more_than_its_streams_until_they_end() -> None:
    master = Master()
    first = master.leases(report("rollout-0"))
    assert [source for source, _ in first] == [WORKER] * 4
    assert len({piece for _, chosen in first for piece in chosen}) == 4
    under_way = [{"source": source, "pieces": f"{1 << chosen[0]:x}"} for source, chosen in first]
    assert master.leases(report("rollout-0", fetching=under_way)) == []
    assert len(master.leases(report("rollout-0", have=under_way[0]["pieces"], fetching=under_way[1:]))) == 1


def test_a_second_node_has_what_the_first_has_from_it_and_the_rest_from_the_worker() -> None:
    master = Master()
    master.leases(report("rollout-0"))
    master.leases(report("rollout-0", have="0f", fetching=[]))
    sources = {source for source, _ in master.leases(report("rollout-1"))}
    assert sources <= {WORKER, "http://rollout-0"}
    assert "http://rollout-0" in sources
    assert "http://rollout-0" not in {s for s, _ in master.leases(report("rollout-2", refused=["http://rollout-0"]))}


def test_what_a_silent_node_was_to_fetch_is_given_to_others_and_it_gives_nothing_any_more() -> None:
    master = Master()
    for number in range(3):
        master.leases(report(f"rollout-{number}"))
    assert len(master.leases(report("late"))) == 1, "every piece is on its way to another"
    master.now = SILENCE
    assert [source for source, _ in master.leases(report("late"))] == [WORKER] * 4


def test_the_more_nodes_pull_the_longer_are_the_pauses_between_their_reports() -> None:
    master = Master()
    pauses = [master.exchange.plan(manifest(), report(f"rollout-{i}")).pause for i in range(2 * OFTEN)]
    assert (pauses[0], pauses[OFTEN // 2 - 1], pauses[-1]) == (HEARTBEAT, HEARTBEAT, 2.0)
    master.now = SILENCE
    assert master.exchange.plan(manifest(), report("rollout-0")).pause == HEARTBEAT, "the others are silent"


def test_a_version_that_was_registered_anew_is_cut_anew() -> None:
    """On other nodes, say, so that other pieces are on one node together."""
    master = Master()
    master.leases(report("rollout-0", have="ff"))
    anew = manifest(*(tensor(f"t{i}", 4096 + i * MiB, MiB) for i in range(4)))
    assert master.exchange.plan(anew, report("rollout-0", have="0")).leases
    with pytest.raises(InfrastructureError, match="it has 4"):
        master.exchange.plan(anew, report("rollout-1", have="ff"))


def test_what_a_node_has_of_a_version_that_is_cut_in_another_way_is_neither_taken_up_nor_given() -> None:
    """As many pieces, and others: it is told to begin again, with the manifest that there is."""
    sizes = (2, 1, 1, 1, 1, 1, 1)
    anew = manifest(*(tensor(f"t{i}", 4096 + sum(sizes[:i]) * MiB, size * MiB) for i, size in enumerate(sizes)))
    before = manifest(*(tensor(f"t{i}", 4096 + sum(sizes[::-1][:i]) * MiB, size * MiB) for i, size in enumerate(sizes[::-1])))
    assert len(pieces(before)) == len(pieces(anew))
    master = Master()
    old, new = cut_of(pieces(before)), cut_of(pieces(anew))
    assert master.exchange.plan(before, report("rollout-0", have="0f", cut=old)).leases
    assert not master.exchange.plan(anew, report("rollout-0", have="0f", cut=old)).wanted
    plan = master.exchange.plan(anew, report("rollout-1", cut=new))
    assert {lease.source for lease in plan.leases} == {WORKER}


def test_tensors_of_one_size_in_another_order_are_another_cut() -> None:
    cuts = {cut_of(pieces(manifest(*(tensor(n, 4096 + i * MiB, MiB) for i, n in enumerate(names))))) for names in ("abc", "bac")}
    assert len(cuts) == 2


def test_a_node_that_was_started_again_takes_the_place_of_the_one_before() -> None:
    master = Master()
    master.leases(report("rollout-0", have="ff"))
    again = PullReport(node="rollout-0", url="http://elsewhere", checksum="c3", have="0")
    assert {source for source, _ in master.leases(again)} == {WORKER}


def test_a_node_that_says_that_it_is_whole_gives_everything_and_fetches_no_more() -> None:
    """Whatever it had and was told to fetch when it last asked for pieces."""
    master = Master()
    for number in range(4):
        master.leases(report(f"rollout-{number}", have="0f"))
    assert master.leases(report("late", have="0f")) == [], "the one that has the rest serves as many as it may"
    for number in range(4):
        master.holds(f"rollout-{number}", f"http://rollout-{number}")
    master.holds("worker-0", WORKER, version=4)
    assert {source for source, _ in master.leases(report("late", have="0f"))} <= {f"http://rollout-{i}" for i in range(4)}
    assert master.leases(report("later", have="0f"))


@pytest.mark.parametrize(
    ("phase", "version", "checksum"), [("train", 2, "c2"), ("rollout", 4, "c3"), ("rollout", 3, "other"), ("idle", 3, "c3")]
)
def test_a_version_that_is_not_wanted_is_not_pulled(phase: str, version: int, checksum: str) -> None:
    master = Master()
    master.nodes.desired = master.nodes.desired.model_copy(update={"phase": phase, "version": version, "checksum": checksum})
    assert not master.exchange.plan(manifest(), report("rollout-0")).wanted


def test_pieces_are_tensors_one_after_the_other_and_the_parts_of_long_ones() -> None:
    small = [tensor(f"s{i}", 4096 + i * 1000, 1000) for i in range(10)]
    large = tensor("large", 4096 + 10_000, 3 * MiB + 5)
    last = tensor("last", 14_096 + 3 * MiB + 5, 6)
    cut = large.model_copy(update={"parts": ("p0", "p1", "p2", "p3")})
    found = pieces(manifest(last, cut, *reversed(small)))
    assert [(p.offset, p.bytes, len(p.parts)) for p in found] == [
        (4096, 10_000, 10), (14_096, MiB, 1), (14_096 + MiB, MiB, 1), (14_096 + 2 * MiB, MiB, 1), (14_096 + 3 * MiB, 11, 2)
    ]  # fmt: skip
    assert [(part.name, part.checksum) for piece in found[1:] for part in piece.parts] == [
        ("large", "p0"), ("large", "p1"), ("large", "p2"), ("large", "p3"), ("last", "c")
    ]  # fmt: skip


def test_a_long_tensor_whose_manifest_names_no_parts_is_a_piece() -> None:
    """As a trainer of a version before wrote it."""
    found = pieces(manifest(tensor("large", 4096, 80 * MiB), tensor("last", 4096 + 80 * MiB, 6)))
    assert [(p.bytes, [part.checksum for part in p.parts]) for p in found] == [(80 * MiB, ["c"]), (6, ["c"])]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((tensor("a", 4096, 10), tensor("b", 4107, 10)), "a hole or an overlap between a, which ends at byte 4106, and b"),
        ((tensor("a", 4096, 10), tensor("b", 4105, 10)), "a hole or an overlap"),
        ((tensor("a", 4096, 10), tensor("b", 4106, 10, "other")), "does not lie in one segment"),
        ((tensor("a", 4096, 10).model_copy(update={"shards": tensor("a", 4096, 10).shards * 2}),), "lies in 2 shards"),
        ((tensor("a", 4096, 2 * MiB).model_copy(update={"parts": ("p",)}),), "a has 1 parts; 2097152 bytes .* are cut in 2"),
    ],
)
def test_what_cannot_be_pulled_is_refused_with_the_reason(tensors: tuple[TensorEntry, ...], message: str) -> None:
    with pytest.raises(InfrastructureError, match=message):
        pieces(manifest(*tensors))


def test_pieces_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InfrastructureError, match="rollout-0 speaks of pieces that the version does not have: it has 8"):
        Master().exchange.plan(manifest(), report("rollout-0", have="1ff"))
