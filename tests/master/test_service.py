"""The master's HTTP, through the real routes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from tests.master.twins import FakeNode, FakeReplica, World, inputs, job, manifest
from tests.master.virtual import run

from rljob.api.status import JobStatus
from rljob.wire.batch import Batch
from rljob.wire.node import NodeDesired
from rljob.wire.pieces import PullPlan, PullReport
from rljob.wire.weights import Manifest, Shard, TensorEntry


def with_master(world: World, work: Callable[[], Awaitable[None]]) -> None:
    """Do something while a master runs that has no nodes."""
    world.nodes = []

    async def scenario() -> None:
        life = asyncio.create_task(world.master())
        await asyncio.sleep(0.1)
        await work()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)

    run(scenario())


def test_a_manifest_is_taken_once_and_can_be_repeated(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        assert (await world.call("GET", "/v1/weights/0")).status_code == 404
        for _ in range(2):
            assert (await world.call("PUT", "/v1/weights/0", manifest(0, "a").model_dump_json())).status_code == 204
        found = Manifest.model_validate_json((await world.call("GET", "/v1/weights/0")).content)
        assert found == manifest(0, "a")
        # The same weights at another place: the newest registration says where they are.
        moved = manifest(0, "a", node="worker-1")
        assert (await world.call("PUT", "/v1/weights/0", moved.model_dump_json())).status_code == 204
        assert Manifest.model_validate_json((await world.call("GET", "/v1/weights/0")).content) == moved

    with_master(world, work)


def test_other_weights_under_a_known_version_are_a_conflict(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        await world.call("PUT", "/v1/weights/0", manifest(0, "a").model_dump_json())
        answer = await world.call("PUT", "/v1/weights/0", manifest(0, "b").model_dump_json())
        assert answer.status_code == 409
        assert answer.json()["error"] == "version 0 is registered with checksum a, this set has b: not the same weights"
        assert Manifest.model_validate_json((await world.call("GET", "/v1/weights/0")).content).checksum == "a"

    with_master(world, work)


def test_incomplete_and_mixed_up_sets_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        incomplete = await world.call("PUT", "/v1/weights/0", manifest(0, "a", rows=3).model_dump_json())
        assert (incomplete.status_code, "missing" in incomplete.json()["error"]) == (422, True)
        assert (await world.call("PUT", "/v1/weights/1", manifest(0, "a").model_dump_json())).status_code == 400
        assert (await world.call("PUT", "/v1/weights/0", "{}")).status_code == 400
        assert (await world.call("GET", "/v1/weights/0")).status_code == 404

    with_master(world, work)


def test_a_sync_answers_at_once_what_is_new_and_else_waits(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        node, loop = FakeNode(world), asyncio.get_running_loop()

        async def sync(wait: float) -> tuple[NodeDesired, float]:
            begun = loop.time()
            answer = await world.call("POST", f"/v1/nodes/worker-0/sync?wait={wait}", node.report().model_dump_json())
            return NodeDesired.model_validate_json(answer.content), loop.time() - begun

        desired, waited = await sync(5)
        assert (desired.phase, desired.version, desired.checksum, waited) == ("rollout", 0, None, 0)
        node.seen = desired.revision
        assert await sync(5) == (desired, 5)
        waiting = asyncio.create_task(sync(5))
        await asyncio.sleep(1)
        await world.call("PUT", "/v1/weights/0", manifest(0, "a").model_dump_json())
        newer, waited = await waiting
        assert (newer.checksum, waited) == ("a", 1)
        assert newer.revision > desired.revision

    with_master(world, work)


def test_nobody_is_kept_waiting_by_a_master_that_ends(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        assert world.parts is not None
        node, loop = FakeNode(world), asyncio.get_running_loop()
        node.seen = world.parts.nodes.desired.revision
        waiting = asyncio.create_task(world.call("POST", "/v1/nodes/worker-0/sync?wait=20", node.report().model_dump_json()))
        await asyncio.sleep(1)
        begun = loop.time()
        world.parts.nodes.close()
        assert (await waiting).status_code == 200
        assert loop.time() == begun

    with_master(world, work)


def test_a_restarted_master_never_repeats_a_revision(tmp_path: Path) -> None:
    revisions: list[int] = []
    for _ in range(2):
        world = World(tmp_path, job(), inputs())

        async def work(world: World = world) -> None:
            assert world.parts is not None
            revisions.append(world.parts.nodes.desired.revision)

        with_master(world, work)
    assert revisions[1] > revisions[0] + 1000


def test_nonsense_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        assert (await world.call("POST", "/v1/nodes/worker-0/sync", "{}")).status_code == 400
        wrong = await world.call("POST", "/v1/nodes/worker-7/sync", FakeNode(world).report().model_dump_json())
        assert wrong.json()["error"] == "the report is of node worker-0, the address says worker-7"
        assert (await world.call("GET", "/v1/batches/9")).status_code == 404

    with_master(world, work)


def test_the_batch_in_progress_is_served(tmp_path: Path) -> None:
    world = World(tmp_path, job(warmStart={"steps": 2, "batchSize": 2}), inputs(warmstart=3))

    async def work() -> None:
        answer = await world.call("GET", "/v1/batches/1")
        assert len(Batch.decode(answer.content).groups) == 4

    with_master(world, work)


def test_status_metrics_and_page_answer_at_any_time(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        status = JobStatus.model_validate_json((await world.call("GET", "/v1/status")).content)
        assert (status.phase, status.iteration, status.iterations, status.policy_version) == ("Preparing", 1, 3, 0)
        assert (await world.call("GET", "/healthz")).status_code == 200
        metrics = (await world.call("GET", "/metrics")).text
        assert 'rljob_phase{phase="Preparing"} 1.0' in metrics
        assert "rljob_generated_tokens_total 0.0" in metrics
        page = (await world.call("GET", "/")).text
        assert "<title>test</title>" in page
        assert "setInterval" in page

    with_master(world, work)


def test_the_status_says_what_the_switch_policy_came_to_and_why(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def said(kind: Literal["worker", "rollout"], policy: Literal["restart", "sleep"] | None, reason: str) -> str:
        report = FakeNode(world).report().model_copy(update={"kind": kind, "switch_policy": policy, "switch_reason": reason})
        assert (await world.call("POST", "/v1/nodes/worker-0/sync?wait=0", report.model_dump_json())).status_code == 200
        return JobStatus.model_validate_json((await world.call("GET", "/v1/status")).content).nodes[0].switch

    async def work() -> None:
        assert await said("worker", None, "") == ""
        assert await said("worker", "restart", "auto restarts on CPU") == "restart: auto restarts on CPU"
        assert await said("rollout", "sleep", "there is no trainer on this node") == "", "no policy made it so"

    with_master(world, work)


def test_a_node_that_pulls_is_told_what_to_do(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())
    shard = Shard(node="worker-0", segment="arena", offset=4096, bytes=32, start=0, rows=4)
    tensor = TensorEntry(name="w", dtype="F32", shape=(4, 2), shards=(shard,), checksum="c")
    whole = manifest(0, "a").model_copy(update={"tensors": (tensor,)})
    report = PullReport(node="rollout-0", url="http://rollout-0", checksum="a", have="0")

    async def work() -> None:
        assert (await world.call("POST", "/v1/weights/0/pull", report.model_dump_json())).status_code == 404
        await world.call("PUT", "/v1/weights/0", whole.model_dump_json())
        await asyncio.sleep(0.1)
        answer = await world.call("POST", "/v1/weights/0/pull", report.model_dump_json())
        assert PullPlan.model_validate_json(answer.content) == PullPlan(wanted=True), "nobody has said that it gives it"
        assert (await world.call("POST", "/v1/weights/0/pull", "{}")).status_code == 400
        bad = report.model_copy(update={"have": "ff"})
        assert (await world.call("POST", "/v1/weights/0/pull", bad.model_dump_json())).status_code == 422

    with_master(world, work)


def test_of_two_agents_with_one_name_the_last_that_came_is_listened_to_and_the_other_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        first, second = FakeReplica(world, "rollout-0"), FakeReplica(world, "rollout-0")
        second.incarnation = "another"

        async def status(replica: FakeReplica) -> int:
            call = await world.call("POST", "/v1/nodes/rollout-0/sync?wait=0", replica.report().model_dump_json())
            return call.status_code

        assert [await status(each) for each in (first, first, second)] == [200, 200, 200], "an agent that is started again is no other"
        assert [await status(each) for each in (first, second, first)] == [409, 200, 409]
        assert world.parts is not None
        failure = world.parts.watch.last
        assert failure is not None
        assert (failure.pod, failure.reason) == ("rollout-0", "IdentityTaken")
        assert failure.message.startswith(
            "two agents call themselves rollout-0 (RLJOB_NODE): only the one that came last is listened to; end"
        )
        await asyncio.sleep(31)
        assert await status(first) == 200, "the other is gone"

    with_master(world, work)
