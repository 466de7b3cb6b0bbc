"""Whole jobs in virtual time: whatever dies, and whenever, the node converges, and no engine is routable with wrong weights."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checkpoint_engine.twins import Fault, GiB, Kind, World, manifest_of, truth
from tests.master.virtual import clock, run

from rljob.checkpoint_engine.act import Actor
from rljob.checkpoint_engine.clients import HttpMaster
from rljob.checkpoint_engine.node import Node
from rljob.checkpoint_engine.state import EngineSeen, EngineState, Gate, Known, Observed, TrainerSeen
from rljob.wire.node import NodeDesired, NodeReport, TrainTask
from rljob.wire.shim import StartRequest

POINTS = [
    "trainer.start", "trainer.load", "trainer.train", "trainer.checkpoint", "trainer.export", "trainer.offload", "trainer.onload",
    "engine.start", "engine.load", "engine.attest", "engine.stop", "trainer.stop", "rollout",
    "master.sync", "master.batch", "master.register",
]  # fmt: skip
KINDS: list[Kind] = ["kill", "fail", "hang", "kill-shim", "kill-agent", "master-away", "corrupt-arena"]


def play(**world: Any) -> World:
    """A whole job; the world afterwards."""

    async def job() -> World:
        made = World(**world)
        await made.run()
        return made

    return run(job())


def check_end(world: World) -> None:
    assert world.master.committed == world.iterations
    assert {v: m.checksum for v, m in world.master.manifests.items()} == {v: truth(v) for v in range(world.iterations + 1)}
    assert not any(sidecar.alive for sidecar in world.sidecars.values())
    assert world.removed
    assert world.arena is None


def test_an_undisturbed_job_takes_these_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rljob.checkpoint_engine.node")
    world = play(iterations=2)
    check_end(world)
    to_engine = ["offload", "gate", "start-engine", "load-engine", "attest"]
    to_trainer = ["stop-engine", "gate", "onload", "train", "start-engine"]
    # The checkpoint is begun, and durable by the time that the engine, which was forked ahead, has proven its weights.
    beside = ["export", "offload", "checkpoint", "start-engine", "gate", "load-engine", "attest", "register"]
    start = ["gate", "start-trainer", "load", "export", "register"]
    steps = [record.args[0] for record in caplog.records if isinstance(record.args, tuple) and record.msg.startswith("%s: %.2f s")]
    assert steps == [*start, *to_engine, *to_trainer, *beside, *to_trainer, *beside]
    assert world.sidecars["trainer"].starts == 1
    assert world.sidecars["engine"].starts == 3
    last = next(r for r in reversed(world.master.reports) if "train" in r.timings)
    assert set(last.timings) == {*to_trainer, *beside}
    assert last.timings["train"] == pytest.approx(10, abs=0.2)
    assert (last.switch_policy, last.switch_reason) == ("restart", "switch.policy is restart")


def test_no_two_engines_draw_the_same_random_numbers() -> None:
    started = [request.argv for request in play(iterations=2).sidecars["engine"].requests]
    assert len({argv[:2] for argv in started}) == len(started) == 3
    assert all(argv[0] == "--seed" and argv[2:] == ("--x",) for argv in started), "what the job says comes later, and counts"


def test_sleep_keeps_the_engine_and_loads_into_it_again() -> None:
    world = play(iterations=3, policy="sleep")
    check_end(world)
    assert world.sidecars["engine"].starts == 1
    report = world.master.reports[-1]
    assert report.switch_policy == "sleep"
    assert "on CPU it is paused and keeps its memory" in report.switch_reason


@pytest.mark.parametrize(("accelerator", "starts", "policy"), [("cpu", 4, "restart"), ("nvidia", 1, "sleep")])
def test_auto_sleeps_where_that_frees_memory(accelerator: str, starts: int, policy: str) -> None:
    world = play(iterations=3, policy="auto", accelerator=accelerator)
    check_end(world)
    assert world.sidecars["engine"].starts == starts
    assert world.master.reports[-1].switch_policy == policy


def test_auto_restarts_after_a_sleeping_engine_has_kept_too_much() -> None:
    async def job() -> World:
        world = World(iterations=3, policy="auto", accelerator="nvidia")
        read = world.read

        async def leaking(leaving: Any) -> Any:
            reading = await read(leaving)
            if leaving == "engine" and reading.rest and world.master.committed >= 1:
                return type(reading)(reading.free, reading.rest + GiB)
            return reading

        object.__setattr__(world, "read", leaking)
        await world.run()
        return world

    world = run(job())
    check_end(world)
    last = world.master.reports[-1]
    assert last.switch_policy == "restart"
    assert "it leaks and is restarted" in last.switch_reason
    assert world.sidecars["engine"].starts == 3


@pytest.mark.parametrize(("accelerator", "free", "keeps"), [
    ("cpu", 100, [False, False, True, True]),
    ("cpu", 5, [False, False, False, False]),  # 2 GiB are kept for an engine of 2 GiB
    ("nvidia", 100, [False, False, False, False]),
])  # fmt: skip
def test_a_trainer_keeps_what_it_has_freed_while_memory_is_plenty(accelerator: str, free: int, keeps: list[bool]) -> None:
    """On CPU, and once it has shown, untrained and trained, what it has left without that."""
    world = play(iterations=3, accelerator=accelerator, free=free * GiB, freed=2 * GiB)
    check_end(world)
    assert world.trainer.offloads == keeps
    assert world.sidecars["trainer"].starts == 1


def test_a_trainer_gives_back_what_it_kept_when_an_engine_would_not_fit() -> None:
    async def job() -> World:
        world = World(iterations=3, freed=2 * GiB)

        async def crowd() -> None:
            await world.until(lambda: world.trainer.kept > 0)
            world.free = 3 * GiB
            world.sidecars["engine"].die()

        world.keep(crowd())
        await world.run()
        return world

    world = run(job())
    check_end(world)
    assert world.trainer.offloads[2:] == [True, False, False]
    assert world.sidecars["trainer"].starts == 1


def test_a_trainer_that_comes_back_need_not_get_what_it_kept() -> None:
    async def job() -> World:
        world = World(iterations=3, freed=2 * GiB)

        async def crowd() -> None:
            await world.until(lambda: world.trainer.kept > 0)
            world.free = 2 * GiB + GiB // 2  # 0.5 GiB beside what it keeps; it needs 2 and holds 3

        world.keep(crowd())
        await world.run()
        return world

    world = run(job())
    check_end(world)
    assert world.sidecars["trainer"].starts == 1


def told_of_a_leak(**settings: Any) -> str:
    """What the node reports of a trainer that begins to keep 2 GiB more, and is restarted for it, once."""

    async def job() -> World:
        world = World(iterations=4, **settings)

        async def leak() -> None:
            await world.until(lambda: world.master.committed >= 2)
            await world.until(lambda: world.trainer.resident)
            world.rest["trainer"] = 3 * GiB
            await world.until(lambda: world.sidecars["trainer"].starts == 2)
            world.rest["trainer"] = GiB

        world.keep(leak())
        await world.run()
        return world

    world = run(job())
    check_end(world)
    assert world.sidecars["trainer"].starts == 2
    failure = next(r.failure for r in world.master.reports if r.failure is not None)
    assert (failure.stage, failure.reason) == ("gate", "GateFailed")
    return failure.message


@pytest.mark.parametrize("freed", [0, 2 * GiB], ids=["given back", "kept"])
def test_a_trainer_that_leaks_is_restarted(freed: int) -> None:
    assert "holds 3.0 GiB, 2.0 GiB more than at its first hand-over" in told_of_a_leak(freed=freed)


@pytest.mark.parametrize("policy", ["auto", "sleep", "restart"])
@pytest.mark.parametrize("warm", [False, True], ids=["rollout first", "training first"])
def test_what_trainer_and_engine_keep_on_a_device_is_no_leak_of_either(warm: bool, policy: str) -> None:
    """The device does not tell whose it is, and it grows: with the engine's start, and with the trainer's first step."""

    async def job() -> World:
        world = World(iterations=4, policy=policy, accelerator="nvidia")  # type: ignore[arg-type]
        if warm:
            world.master.want(phase="train", version=0, task=TrainTask(version=1, kind="sft", steps=1, iteration=0))
        await world.run()
        return world

    world = run(job())
    assert world.master.committed == world.iterations
    assert not [r.failure for r in world.master.reports if r.failure is not None]
    assert world.sidecars["trainer"].starts == 1
    assert world.master.reports[-1].switch_policy == ("restart" if policy == "restart" else "sleep")


def test_a_trainer_that_comes_from_a_checkpoint_grows_with_its_first_step_too() -> None:
    """As in a job that is resumed, whose first rollout comes before it."""

    async def job() -> World:
        world = World(iterations=4, policy="sleep", accelerator="nvidia", checkpoints={1})
        world.master.committed, world.master.manifests = 1, {1: manifest_of(1, truth(1))}
        world.master.want_rollout()
        await world.run()
        return world

    world = run(job())
    assert world.master.committed == world.iterations
    assert {name: sidecar.starts for name, sidecar in world.sidecars.items()} == {"trainer": 1, "engine": 1}


@pytest.mark.parametrize("policy", ["sleep", "restart"])
def test_a_trainer_that_leaks_on_a_device_is_restarted(policy: str) -> None:
    held = 3 if policy == "restart" else 4
    told = f"the trainer that left holds {held}.0 GiB with all else on the device, 2.0 GiB more than at its first hand-over"
    assert told in told_of_a_leak(policy=policy, accelerator="nvidia")


def test_an_engine_of_a_device_is_not_asked_to_fit_beside_the_trainers_rest_twice() -> None:
    claims = {"trainer": 20 * GiB, "engine": 85 * GiB}
    world = play(iterations=3, accelerator="nvidia", claims=claims, rest={"trainer": 8 * GiB, "engine": GiB})
    check_end(world)
    assert world.sidecars["trainer"].starts == 1


def test_an_engine_that_wakes_up_on_a_device_need_not_get_what_it_kept() -> None:
    claims = {"trainer": 20 * GiB, "engine": 95 * GiB}  # 94 GiB are free beside what the two keep
    world = play(iterations=3, policy="sleep", accelerator="nvidia", claims=claims, rest={"trainer": 2 * GiB, "engine": 4 * GiB})
    check_end(world)
    assert {name: sidecar.starts for name, sidecar in world.sidecars.items()} == {"trainer": 1, "engine": 1}


def test_a_trainer_that_has_not_trained_yet_claims_what_its_first_step_will_take() -> None:
    """Before it, a trainer comes and goes with weights and gradients alone."""
    claims = {"trainer": 40 * GiB, "engine": 20 * GiB}
    world = play(iterations=2, policy="sleep", accelerator="nvidia", claims=claims, rest={"trainer": GiB, "engine": 70 * GiB})
    assert world.sidecars["engine"].starts > 1
    failure = next(r.failure for r in world.master.reports if r.failure is not None)
    assert "the trainer will claim 40.0 GiB, 29." in failure.message


def test_an_engine_at_work_on_a_device_is_no_rest_of_the_trainers() -> None:
    async def job() -> None:
        world = World(accelerator="nvidia", claims={"trainer": GiB, "engine": 80 * GiB})
        for sidecar in world.sidecars.values():
            await sidecar.start(StartRequest(incarnation=sidecar.name))
        seen = Observed(
            site=world.plan().site,
            trainer=TrainerSeen("running", "trainer"),
            engine=EngineSeen("running", "engine", state=EngineState(1, "c1", paused=False)),
            arena=1,
            known=Known(baselines={"trainer, engine": GiB}),
        )
        assert (await Actor(world.plan(), world.parts(), lambda _: None).act(Gate("engine"), seen)).gate == "engine"

    run(job())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
def test_it_converges_after_one_fault_anywhere(point: str, kind: Kind) -> None:
    for nth in (1, 2):
        world = play(iterations=2, faults=[Fault(point, nth, kind)])
        check_end(world)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(st.builds(Fault, st.sampled_from(POINTS), st.integers(1, 6), st.sampled_from(KINDS)), max_size=6),
    policy=st.sampled_from(["restart", "sleep", "auto"]),
    accelerator=st.sampled_from(["cpu", "nvidia"]),
)
def test_it_converges_after_any_faults(faults: list[Fault], policy: str, accelerator: str) -> None:
    check_end(play(iterations=3, policy=policy, accelerator=accelerator, faults=faults))


def test_a_sidecar_that_hangs_when_all_is_over_is_asked_again() -> None:
    check_end(play(iterations=1, policy="sleep", faults=[Fault("engine.stop", nth, "hang") for nth in range(1, 7)]))


def test_a_dead_engine_is_reported_and_replaced_without_the_trainer() -> None:
    world = play(iterations=1, faults=[Fault("rollout", 1, "kill")])
    check_end(world)
    failed = next(r for r in world.master.reports if r.failure is not None)
    assert failed.failure is not None
    assert (failed.failure.stage, failed.failures) == ("rollout", 1)
    assert "the engine was killed by signal 9" in failed.failure.message
    assert world.sidecars["trainer"].starts == 1
    again = next(r for r in world.master.reports[world.master.reports.index(failed) :] if r.engine is not None and r.engine.routable)
    assert again.failure is None
    assert again.failures == 1


def test_a_trainer_killed_while_training_makes_the_same_version_again() -> None:
    world = play(iterations=2, faults=[Fault("trainer.train", 2, "kill")])
    check_end(world)
    assert world.counts["trainer.train"] == 3
    assert world.sidecars["trainer"].starts == 2


def test_a_trainer_killed_after_its_checkpoint_does_not_train_again() -> None:
    world = play(iterations=2, faults=[Fault("master.register", 3, "kill")])
    check_end(world)
    assert world.counts["trainer.train"] == 2


def test_an_agent_killed_while_training_does_not_disturb_the_training() -> None:
    world = play(iterations=2, faults=[Fault("trainer.train", 1, "kill-agent")])
    check_end(world)
    assert world.sidecars["trainer"].starts == 1
    assert world.sidecars["engine"].starts == 3


def test_a_corrupted_arena_is_refused_and_written_again() -> None:
    world = play(iterations=1, faults=[Fault("trainer.offload", 2, "corrupt-arena")])
    check_end(world)
    failure = next(r.failure for r in world.master.reports if r.failure is not None)
    assert failure.stage == "load-engine"
    assert "garbage" in failure.message


@pytest.mark.parametrize("lost", ["arena", "manifest"])
def test_an_export_that_is_not_the_version_that_the_job_knows_is_never_loaded(lost: str) -> None:
    """The trainer's memory has gone bad after the commit, and the version is needed again: its checkpoint has it."""

    async def job() -> World:
        world = World(iterations=1)

        async def spoil() -> None:
            await world.until(lambda: world.master.committed == 1)
            world.trainer.content, world.arena = "garbage", None
            if lost == "manifest":
                world.agent_dies.set()

        world.keep(spoil())
        await world.run(limit=300)
        return world

    world = run(job())
    check_end(world)
    failures = {(r.failure.stage, r.failure.reason): r.failure.message for r in world.master.reports if r.failure is not None}
    assert list(failures) == [("export", "ChecksumMismatch")], "no engine has come to see it"
    assert "exported version 1 with checksum garbage, the job knows version 1 as c1" in failures["export", "ChecksumMismatch"]
    assert world.sidecars["trainer"].starts == 2


def test_a_checkpoint_that_outlasts_the_engines_start_is_waited_for_and_not_written_twice() -> None:
    class Slow(World):
        async def at(self, point: str, seconds: float, *more: Any) -> None:
            await super().at(point, 30 if point == "trainer.checkpoint" else seconds, *more)

    async def job() -> World:
        world = Slow(iterations=2)
        await world.run()
        return world

    world = run(job())
    check_end(world)
    assert world.counts["trainer.checkpoint"] == 2


def test_a_version_that_is_made_again_is_exported_again() -> None:
    world = play(iterations=1, faults=[Fault("trainer.checkpoint", 1, "kill")])
    check_end(world)
    assert (world.counts["trainer.train"], world.counts["trainer.export"]) == (2, 3)


@pytest.mark.parametrize(("free", "takes"), [(1, 1), (3, 5)], ids=["it claims more", "the one before took more"])
def test_no_engine_is_forked_beside_a_trainer_that_leaves_it_no_room(free: int, takes: int) -> None:
    class Full(World):
        async def read(self, leaving: Any) -> Any:
            reading = await super().read(leaving)
            return replace(reading, free=free * GiB) if self.trainer.resident else reading

        async def at(self, point: str, *more: Any) -> None:
            assert point != "engine.start" or not self.trainer.resident, "no room"
            await super().at(point, *more)

    async def job() -> World:
        world = Full(iterations=2, rest={"trainer": GiB, "engine": takes * GiB})
        await world.run()
        return world

    world = run(job())
    check_end(world)
    assert not [r.failure for r in world.master.reports if r.failure is not None]


def test_a_hung_training_is_ended_after_the_deadline() -> None:
    world = play(iterations=1, faults=[Fault("trainer.train", 1, "hang")])
    check_end(world)
    failure = next(r.failure for r in world.master.reports if r.failure is not None)
    assert (failure.stage, failure.reason) == ("train", "DeadlineExceeded")
    assert "made no progress for 60 s" in failure.message


@pytest.mark.parametrize(("point", "seconds"), [("trainer.load", 90), ("trainer.export", 60)])
def test_a_step_that_hangs_is_ended_after_the_deadline_and_one_of_storage_a_little_later(point: str, seconds: int) -> None:
    world = play(iterations=1, faults=[Fault(point, 1, "hang")])
    check_end(world)
    failure = next(r.failure for r in world.master.reports if r.failure is not None)
    assert f"not done after {seconds} s" in failure.message


def test_a_configuration_error_is_reported_once_and_not_tried_again() -> None:
    async def job() -> World:
        world = World()
        world.sidecars["trainer"].exit_at_start = 2
        agent = asyncio.create_task(world.make_node().run())
        await asyncio.sleep(300)
        agent.cancel()
        return world

    world = run(job())
    report = world.master.reports[-1]
    assert report.failure is not None
    assert report.failure.configuration
    assert report.failure.message == "the model is too big"
    assert (report.failures, world.sidecars["trainer"].starts) == (1, 1)


def test_a_trainer_that_keeps_dying_is_started_less_and_less_often() -> None:
    async def job() -> World:
        world = World()
        world.sidecars["trainer"].exit_at_start = 1
        agent = asyncio.create_task(world.make_node().run())
        await asyncio.sleep(120)
        agent.cancel()
        return world

    world = run(job())
    report = world.master.reports[-1]
    assert report.failure is not None
    assert report.failure.message == "the trainer ended with status 1; its last output: bye"
    assert report.failures == world.sidecars["trainer"].starts == 9


def test_sigterm_ends_everything_and_leaves_no_shared_memory() -> None:
    async def job() -> World:
        world = World()
        node = world.make_node()
        agent = asyncio.create_task(node.run())
        await asyncio.sleep(14)
        assert any(sidecar.alive for sidecar in world.sidecars.values())
        node.end()
        await agent
        return world

    world = run(job())
    assert not any(sidecar.alive for sidecar in world.sidecars.values())
    assert world.removed


def test_an_agent_hears_its_master_again_after_something_else_has_answered(caplog: pytest.LogCaptureFixture) -> None:
    idle = NodeDesired(revision=1, phase="idle", version=0, checksum=None)
    stop = idle.model_copy(update={"revision": 2, "phase": "stop"})
    page = "<html>busy</html>"
    answers = iter([idle.model_dump_json(), page, page, stop.model_dump_json()])

    async def master(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(1)
        return httpx.Response(200, text=next(answers))

    async def job() -> World:
        world = World()
        http = httpx.AsyncClient(transport=httpx.MockTransport(master), base_url="http://master")
        await Node(world.plan(), replace(world.parts(), master=HttpMaster(http, "worker-0")), "i", clock).run()
        return world

    assert run(job()).removed
    assert sum("is no NodeDesired: Invalid JSON" in record.getMessage() for record in caplog.records) == 1


def test_an_agent_that_cannot_talk_to_its_master_any_more_ends_and_says_why() -> None:
    """It is started again; one that lived on would never hear anything, not even that the job is over."""

    async def job() -> None:
        world = World()
        agent = asyncio.create_task(world.make_node().run())
        await asyncio.sleep(14)
        world.master.refuses = KeyError("a mistake of ours")
        await agent

    with pytest.raises(KeyError, match="a mistake of ours"):
        run(job())


def test_the_numbers_of_an_agents_reports_rise() -> None:
    reports: dict[str, list[NodeReport]] = {}
    for report in play(iterations=1, faults=[Fault("trainer.train", 1, "kill-agent")]).master.reports:
        reports.setdefault(report.incarnation, []).append(report)
    assert len(reports) == 2
    for told in reports.values():
        assert [r.number for r in told] == sorted({r.number for r in told})
