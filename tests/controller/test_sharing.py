"""How pods share accelerators is decided once, for as long as they live: what a cluster offers can change under a running job."""

from typing import Any

import pytest
from tests.controller.test_life import living, started
from tests.controller.world import World
from tests.master.virtual import until

from rljob.controller.client import ApiError
from rljob.controller.kinds import Ref

CLASS = Ref("DeviceClass", "default", "gpu.nvidia.com")
GPU = {"type": "nvidia", "perNode": 1}


def serve_class(world: World) -> None:
    """A DRA driver is installed."""
    world.twin.add({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": CLASS.name}})


async def look_around(world: World) -> None:
    assert world.operator is not None
    await world.operator.look_around()


def uids(world: World) -> dict[str, str]:
    return {name: pod["metadata"]["uid"] for name, pod in world.twin.of("Pod").items()}


def claims(world: World) -> bool:
    worker: dict[str, Any] = world.twin.of("Pod")["x-worker-0"]
    return "resourceClaims" in worker["spec"]


@pytest.mark.parametrize("restarted", [False, True])
# `claim` without the class is refused from the beginning.
@pytest.mark.parametrize(("sharing", "offered"), [("auto", False), ("auto", True), ("claim", True), ("single", False), ("single", True)])
def test_a_device_class_that_comes_or_goes_moves_no_pod(sharing: str, offered: bool, restarted: bool) -> None:
    async def story(world: World) -> None:
        if offered:
            serve_class(world)
            await look_around(world)
        await started(world, accelerator=GPU | {"sharing": sharing})
        before, chosen = uids(world), world.status()["sharing"]
        assert claims(world) == (chosen["mode"] == "claim") == (offered and sharing != "single")
        if offered:
            world.twin.erase(CLASS)
        else:
            serve_class(world)
        if restarted:
            await world.kill()
            world.start()
        await look_around(world)
        world.spec(accelerator=GPU | {"sharing": sharing}, rollout={"replicas": 1})
        await until(lambda: "x-rollout-0" in world.pods() and world.holds("Ready"))
        assert {name: uid for name, uid in uids(world).items() if name != "x-rollout-0"} == before
        assert world.status()["sharing"] == chosen
        assert not world.holds("Stalled")
        # One that is lost comes back as it was.
        world.lose("x-worker-0")
        await until(lambda: uids(world).get("x-worker-0") not in (None, before["x-worker-0"]) and world.holds("Ready"))
        assert claims(world) == (chosen["mode"] == "claim")

    living(story)


def test_a_job_without_pods_is_shared_out_anew() -> None:
    async def story(world: World) -> None:
        await started(world, accelerator=GPU)
        assert world.status()["sharing"]["mode"] == "single"
        serve_class(world)
        world.spec(accelerator=GPU, suspend=True)
        await until(lambda: world.holds("Suspended") and not world.pods())
        await look_around(world)
        # The first write of the status that could tell of the new pods fails.
        conflicts = [ApiError(409, "Conflict", "the object has been modified")]
        world.twin.fault = lambda verb, kind: conflicts.pop() if verb == "patch_status" and world.pods() and conflicts else None
        world.spec(accelerator=GPU, suspend=False)
        await until(lambda: world.holds("Ready") and not world.holds("Suspended"))
        assert not conflicts
        assert world.status()["sharing"] == {"mode": "claim", "reason": "the cluster has the DeviceClass gpu.nvidia.com"}
        assert claims(world)
        made = [o["metadata"]["name"] for _, _, what, o in world.twin.log if what == "ADDED" and o["kind"] == "Pod"]
        assert made.count("x-worker-0") == 2

    living(story)


def test_what_may_not_be_listed_is_as_it_was() -> None:
    async def story(world: World) -> None:
        serve_class(world)
        await look_around(world)
        await started(world, accelerator=GPU)
        world.twin.fault = lambda verb, kind: ApiError(403, "Forbidden", "no rights") if kind == "DeviceClass" else None
        await look_around(world)
        assert world.operator is not None
        assert world.operator.renderer.cluster.device_classes == {CLASS.name}

    living(story)
