"""A node without a trainer, in virtual time: it serves what came from others once that is proven, and nothing before."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.checkpoint_engine.twins import Fault, World, manifest_of, truth
from tests.master.virtual import clock, run, until

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.node import Node
from rljob.checkpoint_engine.observe import SILENCE
from rljob.checkpoint_engine.outcome import ArenaHeld, IdentityTaken, MasterAway
from rljob.checkpoint_engine.state import Site
from rljob.wire.node import Progress
from rljob.wire.shim import StartRequest
from rljob.wire.weights import Manifest


class RolloutWorld(World):
    """The same world for a node that pulls; the first pulls come to what `answers` says."""

    answers: tuple[Exception | str | None, ...] = ()
    """An error, the content of other weights than the manifest's, or None: not wanted (yet)."""

    async def pull(self, version: int, checksum: str | None, publish: Callable[[Progress | None], None]) -> Manifest | None:
        publish(Progress(done=1, total=2))
        await self.at("peers.pull", 1.0)
        number = self.counts["peers.pull"] - 1
        answer = self.answers[number] if number < len(self.answers) else truth(version)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return None
        self.arena = (version, answer)
        return manifest_of(version, truth(version))

    def make_node(self) -> Node:
        node = super().make_node()
        plan = replace(node._plan, site=Site("rollout", "cpu", "restart"), node="rollout-0", weights_url="http://here")
        return Node(plan, replace(node._parts, peers=self), next(self.ids), clock)


def play(answers: tuple[Exception | str | None, ...] = (), faults: tuple[Fault, ...] = ()) -> RolloutWorld:
    """The job serves version 0 for a while and ends."""

    async def job() -> RolloutWorld:
        world = RolloutWorld(iterations=0, faults=faults)
        world.answers = answers
        await world.run()
        return world

    world: RolloutWorld = run(job())
    assert world.sidecars["trainer"].starts == 0
    assert not world.sidecars["engine"].alive
    assert world.removed
    return world


async def serving() -> tuple[RolloutWorld, Node, asyncio.Task[None]]:
    """A node that the master may send requests, and its life."""
    world = RolloutWorld(iterations=0)
    node = world.make_node()
    agent = asyncio.create_task(node.run())
    await until(lambda: any(r.engine is not None and r.engine.routable for r in world.master.reports))
    return world, node, agent


def test_it_pulls_proves_serves_and_can_be_pulled_from() -> None:
    world = play()
    served = [r for r in world.master.reports if r.engine is not None and r.engine.routable]
    assert served
    assert all(r.weights is not None and (r.weights.version, r.weights.checksum) == (0, truth(0)) for r in served)
    assert all(r.weights is None for r in world.master.reports if r.step == "pull")
    assert "pull" in served[-1].timings


@pytest.mark.parametrize("answer", [InfrastructureError("nobody has it"), MasterAway("no answer"), None], ids=["fails", "away", "unwanted"])
def test_what_does_not_come_is_asked_for_again(answer: Exception | None) -> None:
    world = play(answers=(answer, answer, answer))
    assert world.counts["peers.pull"] == 4
    failures = {r.failure.stage for r in world.master.reports if r.failure is not None}
    assert failures == ({"pull"} if type(answer) is InfrastructureError else set())


def test_weights_that_the_engine_refuses_are_pulled_again_and_were_never_routable() -> None:
    world = play(answers=("garbage",))
    assert world.counts["peers.pull"] == 2
    assert any(r.failure is not None and "refused" in r.failure.message for r in world.master.reports)


def test_an_engine_that_reads_what_an_agent_before_had_it_load_makes_room() -> None:
    class Held(RolloutWorld):
        """The engine reads the file that the next version comes into, and does not say so."""

        async def pull(self, version: int, checksum: str | None, publish: Callable[[Progress | None], None]) -> Manifest | None:
            if self.sidecars["engine"].status_now.incarnation == "old":
                raise ArenaHeld("w.next is in use: an engine serves from it")
            return await super().pull(version, checksum, publish)

    async def job() -> Held:
        world = Held(iterations=0)
        await world.sidecars["engine"].start(StartRequest(incarnation="old"))
        await asyncio.sleep(10)
        await world.run()
        return world

    world = run(job())
    assert world.sidecars["engine"].starts == 2
    assert max(r.failures for r in world.master.reports) == 1


@pytest.mark.parametrize("point", ["peers.pull", "engine.start", "engine.load", "engine.attest", "rollout", "master.sync"])
@pytest.mark.parametrize("kind", ["kill-agent", "kill", "kill-shim", "master-away"])
def test_whatever_dies_it_serves_in_the_end(point: str, kind: Any) -> None:
    play(faults=(Fault(point, 1, kind),))


def test_sigterm_hands_back_what_the_engine_writes_once_the_master_sends_nothing_more() -> None:
    async def job() -> RolloutWorld:
        world, node, agent = await serving()
        node.end()
        await until(lambda: world.counts["engine.hand-back"] > 0)
        assert world.master.reports[-1].engine is not None
        assert world.master.reports[-1].engine.leaving
        assert world.sidecars["engine"].alive
        await agent
        return world

    world: RolloutWorld = run(job())
    assert not world.sidecars["engine"].alive
    assert world.removed


def test_who_leaves_says_so_also_when_its_sidecar_has_too_much_to_do_to_answer() -> None:
    """Otherwise it would look as if nobody was served here, and what the master has sent would end as a failure."""

    async def job() -> RolloutWorld:
        world, node, agent = await serving()
        world.sidecars["engine"].away_until = clock() + 3
        node.end()
        await agent
        return world

    world: RolloutWorld = run(job())
    assert any(r.engine is not None and r.engine.leaving for r in world.master.reports)
    assert world.counts["engine.hand-back"] == 1


@pytest.mark.parametrize(("seconds", "lives", "serves"), [(5, True, True), (5, False, False), (2 * SILENCE, True, False)])
def test_a_late_answer_of_its_sidecar_costs_nothing_that_it_is_writing(seconds: float, lives: bool, serves: bool) -> None:
    """As long as the engine itself says that it is what was attested, and not for ever."""

    async def job() -> bool:
        world, node, agent = await serving()
        world.master.refuses = MasterAway("it goes on as it is")
        sidecar = world.sidecars["engine"]
        sidecar.away_until = clock() + seconds
        if not lives:
            sidecar.die()
        served = True
        while served and clock() < sidecar.away_until:
            await asyncio.sleep(0.5)
            served = (engine := node.report().engine) is not None and engine.routable
        agent.cancel()
        return served

    assert run(job()) is serves


def test_a_master_that_is_slow_gets_the_time_to_hear_that_a_node_leaves() -> None:
    async def job() -> RolloutWorld:
        world, node, agent = await serving()
        world.master.pause = 7
        node.end()
        await agent
        return world

    assert run(job()).counts["engine.hand-back"] == 1


def test_a_master_that_is_away_does_not_keep_a_node_that_has_to_go() -> None:
    async def job() -> float:
        world, node, agent = await serving()
        world.master_away_until = begun = clock()
        world.master_away_until += 600
        node.end()
        await agent
        return clock() - begun

    assert run(job()) < 10


def test_a_node_whose_name_another_has_takes_no_step_until_it_is_alone_again() -> None:
    async def job() -> RolloutWorld:
        world, node, agent = await serving()
        world.master.refuses = IdentityTaken("two agents call themselves rollout-0")
        await asyncio.sleep(30)
        engine = node.report().engine
        assert engine is not None
        assert not engine.routable
        assert world.sidecars["engine"].alive
        assert not agent.done(), "the job is over by now, which the other one was told"
        world.master.refuses = None
        await agent
        return world

    assert run(job()).removed
