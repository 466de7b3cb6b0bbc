"""Two worker nodes with one trainer in virtual time: whatever happens to one or both, both serve in the end, and neither waits for ever."""

import pytest
from tests.checkpoint_engine.twin_nodes import Pair
from tests.checkpoint_engine.twins import Fault, Kind, truth
from tests.master.virtual import run

POINTS = [
    "trainer.start", "trainer.load", "trainer.train", "trainer.checkpoint", "trainer.export", "trainer.fill", "trainer.offload",
    "trainer.onload", "engine.start", "engine.load", "engine.attest", "engine.stop", "master.register", "master.addresses",
]  # fmt: skip
KINDS: list[Kind] = ["kill", "fail", "kill-agent", "lose-arena", "master-forgets"]


def play(*faults: tuple[int, Fault], iterations: int = 2, late: float = 0.0) -> Pair:
    """A whole job; the nodes afterwards."""

    async def job() -> Pair:
        pair = Pair(iterations, faults, late)
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
