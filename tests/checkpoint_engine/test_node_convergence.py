"""Two worker nodes with one trainer in virtual time: whatever happens to one or both, both serve in the end, and neither waits for ever."""

import pytest
from tests.checkpoint_engine.twin_nodes import Pair
from tests.checkpoint_engine.twins import Fault, Kind, manifest_of, truth
from tests.master.virtual import run

from rljob.checkpoint_engine.act import Actor
from rljob.checkpoint_engine.state import EngineSeen, Known, Observed, Pull, TrainerSeen
from rljob.wire.node import NodeAddresses

POINTS = [
    "trainer.start", "trainer.load", "trainer.train", "trainer.checkpoint", "trainer.export", "trainer.fill", "trainer.offload",
    "trainer.onload", "engine.start", "engine.load", "engine.attest", "engine.stop", "master.register", "master.addresses",
]  # fmt: skip
KINDS: list[Kind] = ["kill", "fail", "kill-agent", "lose-arena", "master-forgets"]


def play(*faults: tuple[int, Fault], iterations: int = 2, late: float = 0.0, fill: float = 0.5) -> Pair:
    """A whole job; the nodes afterwards."""

    async def job() -> Pair:
        pair = Pair(iterations, faults, late, fill)
        await pair.run()
        return pair

    return run(job())


def check_end(pair: Pair) -> None:
    assert pair.committed == pair.iterations
    assert {v: m.checksum for v, m in pair.manifests.items()} == {v: truth(v) for v in range(pair.iterations + 1)}
    for world in pair.worlds:
        assert not any(sidecar.alive for sidecar in world.sidecars.values())
        assert world.arena is None


def test_an_undisturbed_job_on_two_nodes() -> None:
    pair = play()
    check_end(pair)
    for world in pair.worlds:
        assert world.sidecars["trainer"].starts == 1
        assert world.counts["trainer.export"] == 3
        assert all(r.failure is None for r in world.master.reports)
    assert pair.pulls == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
def test_both_serve_after_one_fault_anywhere(point: str, kind: Kind) -> None:
    for node, nth in ((0, 2), (1, 1), (1, 2)):
        check_end(play((node, Fault(point, nth, kind))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
def test_both_serve_after_the_same_on_both_nodes(point: str, kind: Kind) -> None:
    """Both lose their arenas, both agents start again, and so on."""
    check_end(play((0, Fault(point, 2, kind)), (1, Fault(point, 2, kind))))


@pytest.mark.parametrize("kind", ["kill", "kill-agent", "master-forgets"])
@pytest.mark.parametrize("point", POINTS)
def test_both_serve_if_one_loses_its_arena_while_something_happens_to_the_other(point: str, kind: Kind) -> None:
    for node in (0, 1):
        check_end(play((node, Fault(point, 2, kind)), (1 - node, Fault(point, 2, "lose-arena"))))


def test_an_agent_that_begins_late_is_waited_for() -> None:
    pair = play(late=40.0)
    check_end(pair)
    assert pair.pulls == []


def test_a_lost_arena_comes_from_the_other_node_and_nothing_is_exported() -> None:
    pair = play((1, Fault("rollout", 2, "lose-arena")), (1, Fault("engine.attest", 2, "lose-arena")))
    check_end(pair)
    assert pair.pulls == [("worker-1", 1)]
    assert [world.counts["trainer.export"] for world in pair.worlds] == [3, 3]
    assert [world.sidecars["trainer"].starts for world in pair.worlds] == [1, 1]


@pytest.mark.parametrize("holder", ["worker-0", "worker-1"])
def test_a_worker_that_has_lost_its_copy_does_not_pull_from_itself(holder: str) -> None:
    """The master, which has not heard of the loss yet, still names it."""

    async def job() -> tuple[Pair, Known]:
        pair = Pair()
        world, other = pair.worlds
        pair.manifests[1] = manifest_of(1, truth(1))
        other.arena = (1, truth(1)) if holder == other.name else None

        async def addresses() -> NodeAddresses:
            return NodeAddresses(weights={one.name: f"http://{one.name}" for one in pair.worlds}, held={holder: 1})

        world.master.addresses = addresses  # type: ignore[method-assign]
        seen = Observed(world.plan().site, TrainerSeen(), EngineSeen(), None, Known())
        return pair, await Actor(world.plan(), world.parts(), lambda _: None).act(Pull(1, truth(1)), seen)

    pair, known = run(job())
    assert (pair.pulls, known.nobody_has) == (([], 1) if holder == "worker-0" else ([("worker-0", 1)], None))


def test_what_both_have_lost_is_exported_by_both() -> None:
    pair = play((0, Fault("engine.attest", 2, "lose-arena")), (1, Fault("engine.attest", 2, "lose-arena")))
    check_end(pair)
    assert pair.pulls == []
    assert [world.counts["trainer.export"] for world in pair.worlds] == [4, 4]


@pytest.mark.parametrize("node", [0, 1])
def test_a_fill_that_failed_goes_on_with_the_same_export(node: int) -> None:
    """It is not the trainer's failure; the other node, which is whole by then, gives what it has."""
    pair = play((node, Fault("trainer.fill", 2, "fail")))
    check_end(pair)
    assert [world.counts["trainer.export"] for world in pair.worlds] == [3, 3]
    assert [world.sidecars["trainer"].starts for world in pair.worlds] == [1, 1]


def test_a_fill_that_gets_on_may_take_longer_than_any_step() -> None:
    pair = play(fill=70.0)
    check_end(pair)
    assert [world.counts["trainer.export"] for world in pair.worlds] == [3, 3]
    assert [world.sidecars["trainer"].starts for world in pair.worlds] == [1, 1]


@pytest.mark.parametrize("point", ["trainer.export", "trainer.fill", "master.addresses"])
@pytest.mark.parametrize("node", [0, 1])
def test_an_agent_killed_in_the_export_costs_no_trainer(point: str, node: int) -> None:
    pair = play((node, Fault(point, 2, "kill-agent")))
    check_end(pair)
    assert [world.sidecars["trainer"].starts for world in pair.worlds] == [1, 1]


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_whose_agent_forgot_the_training_trains_again_with_the_other(node: int) -> None:
    """Otherwise one trainer would load what the other has to make first, for ever."""
    pair = play((node, Fault("master.addresses", 2, "kill-agent")), (1 - node, Fault("master.addresses", 2, "lose-arena")))
    check_end(pair)
