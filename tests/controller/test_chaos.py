"""Whatever fails and whenever the operator dies: the end is the same, nothing is there twice, no field of the status is lost."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.controller.twin import Fault
from tests.controller.world import World, report, rljob
from tests.master.virtual import run, until

from rljob.controller.client import ApiError
from rljob.controller.kinds import Ref

FAULTS: tuple[Fault, ...] = (
    "lost",
    ApiError(0, "Unreachable", "connection refused"),
    ApiError(409, "Conflict", "the object has been modified"),
    ApiError(429, "TooManyRequests", "slow down", 2.0),
    ApiError(500, "InternalError", "etcdserver: request timed out"),
    ApiError(503, "ServiceUnavailable", "the server is shutting down"),
    ApiError(403, "Forbidden", "exceeded quota: q"),
)

KEPT = ("startTime", "iteration", "policyVersion", "reward", "conditions", "observedGeneration", "sharing", "rollout")


class Chaos:
    """Faults with a probability, from a seed; none once `calm`."""

    def __init__(self, world: World, seed: int, share: float) -> None:
        self.world, self.luck, self.share, self.calm = world, random.Random(seed), share, False
        world.twin.fault = self.fault

    def fault(self, verb: str, kind: str) -> Fault:
        if self.calm or self.luck.random() >= self.share:
            return None
        fault = self.luck.choice(FAULTS)
        # What only reads cannot be lost or be in conflict.
        return ApiError(503, "ServiceUnavailable", "busy") if fault == "lost" and verb in ("get", "list", "watch") else fault

    async def one(self) -> None:
        """Something happens to the cluster."""
        world, what = self.world, self.luck.randrange(6)
        pods = sorted(world.pods())
        if what == 0 and pods:
            world.lose(self.luck.choice(pods), self.luck.choice([0.0, 2.0]))
        elif what == 1 and pods:
            world.pod_ended(self.luck.choice(pods), reason="Evicted")
        elif what == 2:
            await world.kill()
            await asyncio.sleep(self.luck.random() * 3)
            world.start()
        elif what == 3:
            world.twin.compacted = int(world.twin._version)
            await world.kill()
            world.start()
        elif what == 4:
            children = [r for r, o in world.twin.objects.items() if r.kind not in ("RLJob", "Event", "Pod")]
            if children:
                world.twin.erase(self.luck.choice(children))
        else:
            world.spec(rollout={"replicas": self.luck.randrange(4)})


def statuses(world: World) -> list[Mapping[str, Any]]:
    return [o.get("status", {}) for _, _, _, o in world.twin.log if o["kind"] == "RLJob"]


def check_end(world: World) -> None:
    uid = world.job()["metadata"]["uid"]
    children = [o for r, o in world.twin.objects.items() if r.kind not in ("RLJob", "Event")]
    assert all(o["metadata"]["ownerReferences"][0]["uid"] == uid for o in children)
    replicas = world.job()["spec"].get("rollout", {}).get("replicas", 0)
    assert world.pods() == {"x-master", "x-worker-0", *(f"x-rollout-{i}" for i in range(replicas))}
    seen: set[str] = set()
    for status in statuses(world):
        assert not [name for name in seen if name not in status], "a field of the status was lost"
        seen |= {name for name in KEPT if name in status}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.0, 0.05, 0.3]),
    moments=st.lists(st.floats(0.0, 8.0), max_size=8),
    lag=st.sampled_from([0.0, 0.05, 3.0]),
)
def test_every_schedule_ends_the_same(seed: int, share: float, moments: list[float], lag: float) -> None:
    async def story() -> None:
        world = World(seed)
        world.twin.lag = lag
        chaos = Chaos(world, seed, share)
        world.reports["x"] = report(3, reward=0.5)
        world.start()
        world.add(rljob(backoffLimit=1000))
        try:
            for moment in moments:
                await asyncio.sleep(moment)
                await chaos.one()
            chaos.calm = True
            await asyncio.sleep(200)
            await until(
                lambda: world.holds("Ready") and world.condition("Ready")["observedGeneration"] == world.job()["metadata"]["generation"]
            )
            await asyncio.sleep(150)
            check_end(world)
            quiet = len(world.twin.log)
            await asyncio.sleep(60)
            assert len(world.twin.log) == quiet, "it does not come to rest"
        finally:
            await world.end()

    run(story())


@pytest.mark.parametrize("step", range(1, 40, 2))
def test_an_operator_that_dies_after_any_request_is_made_good(step: int) -> None:
    """The request has its effect, its answer reaches nobody."""

    async def story() -> None:
        world = World()
        count = 0
        died = asyncio.Event()

        def fault(verb: str, kind: str) -> Fault:
            nonlocal count
            count += verb not in ("list", "watch", "get")
            if count == step and not died.is_set():
                died.set()
                return "lost"
            return None

        world.twin.fault = fault
        world.start()
        world.add(rljob(rollout={"replicas": 1}))
        try:
            async with asyncio.timeout(30):
                await died.wait()
        except TimeoutError:
            assert world.holds("Ready")
        await world.kill()
        world.start()
        await until(lambda: world.holds("Ready"))
        await asyncio.sleep(30)
        check_end(world)
        made = Counter((o["kind"], o["metadata"]["name"]) for _, _, change, o in world.twin.log if change == "ADDED")
        assert [one for one, times in made.items() if times > 1 and one[0] != "Event"] == []
        await world.end()

    run(story())


@pytest.mark.parametrize("pod", ["x-master", "x-worker-0"])
@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02, 0.5, 1.01, 1.5, 4.0])
def test_a_pod_lost_at_any_moment_comes_back(pod: str, moment: float) -> None:
    async def story() -> None:
        world = World()
        world.start()
        world.add(rljob())
        await until(lambda: pod in world.pods())
        await asyncio.sleep(moment)
        world.lose(pod)
        await until(lambda: world.holds("Ready") and pod in world.pods())
        await asyncio.sleep(20)
        check_end(world)
        await world.end()

    run(story())


def test_two_operators_at_once_do_no_harm() -> None:
    """For a moment an old leader that has not noticed can work beside the new one."""

    async def story() -> None:
        world, other = World(), World()
        other.twin = world.twin
        world.start()
        other.start()
        world.add(rljob(rollout={"replicas": 2}))
        await until(lambda: world.holds("Ready"))
        world.spec(rollout={"replicas": 1})
        await until(lambda: len(world.pods()) == 3)
        await asyncio.sleep(30)
        check_end(world)
        await world.end()
        await other.end()

    run(story())


def test_a_silent_stream_of_jobs_is_noticed_and_made_up_for() -> None:
    async def story() -> None:
        world = World()
        world.start()
        world.add(rljob())
        await until(lambda: world.holds("Ready"))
        world.twin.silent.add("RLJob")
        world.spec(suspend=True)
        await until(lambda: world.holds("Suspended") and not world.pods())
        world.spec(suspend=False)
        await until(lambda: world.holds("Ready"))
        operator = world.operator
        assert operator is not None
        await until(lambda: operator.resync.missed > 0)
        world.twin.erase(Ref("RLJob", "default", "x"))
        await asyncio.sleep(300)
        assert not operator.cache.jobs
        await world.end()

    run(story())
