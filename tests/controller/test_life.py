"""Lives of a job in a cluster: what exists, and what the status says."""

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from tests.controller.world import World, report, rljob
from tests.master.virtual import clock, run, until

from rljob.api.crd import job_schema
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.controller.client import ApiError, Applied
from rljob.controller.kinds import Ref
from rljob.controller.trim import iso, unix
from rljob.manifests import Manifest, Settings
from rljob.manifests.settings import Images
from rljob.manifests.types import ANNOTATION_HASH


def living(story: Callable[[World], Awaitable[None]], **world: Any) -> World:
    """Tell a story with an operator running."""

    async def tell() -> World:
        there = World(**world)
        there.start()
        try:
            await story(there)
        finally:
            await there.end()
        return there

    return run(tell())


async def started(world: World, **spec: Any) -> None:
    world.add(rljob(**spec))
    await until(lambda: world.holds("Ready"))


def test_a_job_gets_its_objects_and_says_so() -> None:
    async def story(world: World) -> None:
        await started(world, rollout={"replicas": 2})
        assert world.pods() == {"x-master", "x-worker-0", "x-rollout-0", "x-rollout-1"}
        assert {"x-reward"} == set(world.twin.of("Deployment"))
        status = world.status()
        assert status["observedGeneration"] == 1
        assert status["rollout"] == {"replicas": 2, "readyReplicas": 2, "selector": "rljob.dev/job=x,rljob.dev/role=rollout"}
        assert status["sharing"]["mode"] == "none"
        assert not world.holds("Stalled")
        assert not world.holds("Reconciling")
        assert world.events().count("Started") == 1
        assert world.events().count("Running") == 1

    living(story)


def test_how_accelerators_are_shared_and_why_is_told_at_the_start() -> None:
    async def story(world: World) -> None:
        await started(world, accelerator={"type": "nvidia", "perNode": 1})
        why = "the cluster (Kubernetes 1.36) has no DeviceClass gpu.nvidia.com, and one container can hold devices everywhere"
        assert world.status()["sharing"] == {"mode": "single", "reason": why}
        (told,) = (e["message"] for e in world.twin.of("Event").values() if e["reason"] == "Started")
        assert told == f"made x-reward, x-master, x-worker-0; sidecars share their accelerators by `single`: {why}"

    living(story)


def test_nothing_is_written_once_nothing_changes() -> None:
    async def story(world: World) -> None:
        await started(world)
        await until(lambda: not world.operator.queue._waiting)  # type: ignore[union-attr]
        await asyncio.sleep(5)
        before, asked = len(world.twin.log), len(world.twin.requests)
        await asyncio.sleep(100)
        assert len(world.twin.log) == before
        # The comparison of RLJobs with the API server, once in two minutes.
        assert len(world.twin.requests) - asked <= 1

    living(story)


def test_what_the_master_says_is_in_the_status() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(1, "Preparing")
        await started(world)
        world.reports["x"] = report(3, "Training", reward=0.5, rewards=[0.1, 0.5], timings={"rollout": 1.0})
        await until(lambda: world.status().get("iteration") == 3)
        assert world.status()["policyVersion"] == 2
        assert world.status()["reward"] == 0.5
        await until(lambda: world.status()["phase"] == "Training")

    living(story)


@pytest.mark.parametrize("how", ["deleted", "evicted", "failed"])
@pytest.mark.parametrize("pod", ["x-master", "x-worker-0", "x-rollout-0"])
def test_a_lost_pod_is_made_anew(pod: str, how: str) -> None:
    async def story(world: World) -> None:
        await started(world, rollout={"replicas": 1})
        await asyncio.sleep(20)
        old = world.twin.of("Pod")[pod]["metadata"]["uid"]
        others = {n: o["metadata"]["uid"] for n, o in world.twin.of("Pod").items() if n != pod}
        if how == "deleted":
            world.lose(pod, 1.0)
        else:
            world.pod_ended(pod, reason="Evicted" if how == "evicted" else "")
        await until(lambda: world.twin.of("Pod").get(pod, {"metadata": {"uid": old}})["metadata"]["uid"] != old)
        await until(lambda: world.holds("Ready"))
        assert {n: o["metadata"]["uid"] for n, o in world.twin.of("Pod").items() if n != pod} == others

    living(story)


def test_pods_that_an_upgrade_makes_anew_are_not_laid_to_a_changed_spec() -> None:
    async def story(world: World) -> None:
        await started(world)
        await world.kill()
        world.settings = Settings(images=Images(master="registry.example/master:2"))
        world.start()
        await until(lambda: "Remade" in world.events())
        (told,) = (e["message"] for e in world.twin.of("Event").values() if e["reason"] == "Remade" and "x-master" in e["message"])
        assert told.startswith("Pod x-master: it is rendered otherwise now: the spec has changed, or the operator (")

    living(story)


@pytest.mark.parametrize("lag", [0.01, 3.0])
@pytest.mark.parametrize(
    "refusal",
    [None, ApiError(409, "Conflict", "modified"), ApiError(429, "TooManyRequests", "slow", 1.0), ApiError(500, "InternalError", "etcd")],
)
def test_the_loss_of_a_pod_is_told_once_whatever_becomes_of_the_status(refusal: ApiError | None, lag: float) -> None:
    async def story(world: World) -> None:
        await started(world)
        await asyncio.sleep(20)
        world.twin.lag = lag
        refusals = [refusal] if refusal else []
        world.twin.fault = lambda verb, kind: refusals.pop() if verb == "patch_status" and refusals else None
        uid = world.twin.of("Pod")["x-worker-0"]["metadata"]["uid"]
        world.pod_ended("x-worker-0", reason="Evicted")
        await until(lambda: world.twin.of("Pod").get("x-worker-0", {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)
        await until(lambda: world.holds("Ready"))
        await asyncio.sleep(30)
        assert not refusals
        assert [world.events().count(reason) for reason in ("Started", "PodLost", "PodMade", "Remade", "Repaired")] == [1, 1, 1, 0, 0]

    living(story)


def test_what_was_refused_is_told_when_it_is_done() -> None:
    async def story(world: World) -> None:
        busy = [ApiError(503, "ServiceUnavailable", "busy") for _ in range(5)]
        busy_with = (("create", "Pod"), ("delete", "Pod"), ("patch_status", "RLJob"))
        world.twin.fault = lambda verb, kind: busy.pop() if (verb, kind) in busy_with and busy else None
        await started(world)
        told = sorted(e["message"] for e in world.twin.of("Event").values() if e["reason"] in ("Started", "PodMade"))
        assert sum(e.count("x-master") for e in told) == 1
        assert sum(e.count("x-worker-0") for e in told) == 1
        assert world.events().count("Started") == 1
        await asyncio.sleep(20)
        busy = [ApiError(503, "ServiceUnavailable", "busy")]
        world.pod_ended("x-worker-0")
        await until(lambda: "PodLost" in world.events())
        await asyncio.sleep(20)
        assert world.events().count("PodLost") == 1

    living(story)


def test_a_status_that_was_written_and_answered_with_a_conflict_is_told_of() -> None:
    """The first try got through and its answer was lost; the second one finds the object changed."""

    async def story(world: World) -> None:
        await started(world)
        patch, lost = world.twin.patch_status, [True]

        async def twice(ref: Ref, status: Mapping[str, Any], version: str) -> Manifest:
            answer = await patch(ref, status, version)
            return await patch(ref, status, version) if lost and lost.pop() else answer

        world.twin.patch_status = twice  # type: ignore[method-assign]
        world.spec(suspend=True)
        await until(lambda: world.holds("Suspended"))
        await asyncio.sleep(10)
        assert not lost
        assert world.events().count("Suspended") == 1

    living(story)


def test_of_rewards_the_newest_are_kept_and_of_evaluations_the_first_as_well() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(
            500, rewards=[float(i) for i in range(500)], heldOut=[{"iteration": i, "accuracy": 0.5} for i in range(300)]
        )
        await started(world)
        await until(lambda: "rewards" in world.status())
        assert world.status()["rewards"] == [float(i) for i in range(300, 500)]
        assert world.status()["rewardsBefore"] == 300
        assert [h["iteration"] for h in world.status()["heldOut"]] == [0, *range(101, 300)]

    living(story)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_finished_after_the_last_question_is_in_the_masters_last_words(restarted: bool) -> None:
    first = {"iteration": 5, "accuracy": 0.5, "count": 8}
    last = {"iteration": 10, "accuracy": 0.9, "count": 8}

    async def story(world: World) -> None:
        world.reports["x"] = report(10, rewards=[0.1 * i for i in range(9)], reward=0.8, heldOut=[first])
        await started(world)
        await until(lambda: len(world.status().get("rewards", ())) == 9)
        if restarted:
            await world.kill()
        words = report(10, "Succeeded", rewards=[0.8, 0.9], rewardsBefore=8, reward=0.9, heldOut=[last], timings={"train": 2.0})
        world.pod_ended("x-master", "Succeeded", said=json.dumps(words))
        if restarted:
            world.start()
        await until(lambda: world.holds("Succeeded"))
        status = world.status()
        assert status["rewards"] == [0.1 * i for i in range(8)] + [0.8, 0.9]
        assert (status["reward"], status["timings"], status.get("rewardsBefore", 0)) == (0.9, {"train": 2.0}, 0)
        assert [h["accuracy"] for h in status["heldOut"]] == [0.5, 0.9]

    living(story)


def test_last_words_of_a_newer_master_are_taken_as_far_as_they_are_known() -> None:
    async def story(world: World) -> None:
        await started(world)
        last = {"iteration": 10, "accuracy": 0.9, "spread": 0.1}
        world.pod_ended("x-master", "Succeeded", said=json.dumps(report(10, "Succeeded", heldOut=[last], queue=0)))
        await until(lambda: world.holds("Succeeded"))
        assert world.status()["heldOut"] == [{"iteration": 10, "accuracy": 0.9}]

    living(story)


def test_last_words_of_somebody_else_are_passed_over() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(10, reward=0.8)
        await started(world)
        await until(lambda: world.status().get("reward") == 0.8)
        world.pod_ended("x-master", "Succeeded", said='{"reward": "much"}')
        await until(lambda: world.holds("Succeeded"))
        assert world.status()["reward"] == 0.8

    living(story)


def test_a_finished_job_keeps_the_masters_pod_and_its_state() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(10)
        await started(world)
        await until(lambda: world.status().get("iteration") == 10)
        world.pod_ended("x-master", "Succeeded")
        await until(lambda: world.holds("Succeeded") and world.pods() == {"x-master"})
        assert not world.twin.of("Deployment")
        assert "x-work" in world.twin.of("PersistentVolumeClaim")
        assert world.status()["phase"] == "Succeeded"
        assert world.holds("Ready")
        assert world.status()["completionTime"]
        assert world.status()["iteration"] == 10
        # A changed limit does not bring it back, more iterations do.
        world.spec(backoffLimit=3)
        await until(lambda: world.status()["observedGeneration"] == 2)
        assert world.pods() == {"x-master"}
        world.spec(iterations=20)
        await until(lambda: world.holds("Ready") and "x-worker-0" in world.pods())
        assert not world.holds("Succeeded")

    living(story)


def test_a_master_that_is_done_is_kept_though_its_pod_says_so_a_moment_later() -> None:
    """A kubelet tells of a container's end before it calls the pod Succeeded."""

    async def story(world: World) -> None:
        await started(world)
        end = {"exitCode": 0, "message": json.dumps(report(10, "Succeeded", reward=0.9)), "finishedAt": iso(clock())}
        said = {"containerStatuses": [{"name": "master", "restartCount": 0, "image": "i", "state": {"terminated": end}}]}
        world.twin.set_status(Ref("Pod", "default", "x-master"), phase="Running", **said)
        await asyncio.sleep(5)
        world.twin.set_status(Ref("Pod", "default", "x-master"), phase="Succeeded", **said)
        await until(lambda: world.holds("Succeeded") and world.pods() == {"x-master"})
        await asyncio.sleep(60)
        assert world.pods() == {"x-master"}

    living(story)


def test_a_job_ends_with_its_master_whatever_else_runs_on_in_its_pod() -> None:
    async def story(world: World) -> None:
        await started(world, templates={"master": {"spec": {"containers": [{"name": "shipper", "image": "i"}]}}})
        end = {"exitCode": 0, "message": json.dumps(report(10, "Succeeded", reward=0.9)), "finishedAt": iso(clock())}
        containers: list[dict[str, Any]] = [
            {"name": "shipper", "restartCount": 0, "image": "i", "state": {"running": {}}},
            {"name": "master", "restartCount": 0, "image": "i", "state": {"terminated": end}},
        ]
        world.twin.set_status(Ref("Pod", "default", "x-master"), phase="Running", containerStatuses=containers)
        await until(lambda: world.holds("Succeeded") and not world.pods())
        assert world.status()["reward"] == 0.9
        await asyncio.sleep(60)
        assert not world.pods()

    living(story)


@pytest.mark.parametrize(("code", "reason"), [(2, "Configuration"), (3, "JobFailed")])
def test_exit_status_two_or_three_ends_the_job_with_the_containers_last_words(code: int, reason: str) -> None:
    async def story(world: World) -> None:
        await started(world)
        begun = clock()
        world.container_ended("x-master", "prepare", code, "INFO reading\nerror: spec.data.train.path: /data/train.jsonl is empty")
        await until(lambda: world.holds("Failed"))
        await until(lambda: not world.pods())
        failed = world.condition("Failed")
        assert failed["reason"] == reason
        assert "spec.data.train.path: /data/train.jsonl is empty" in failed["message"]
        assert world.holds("Stalled")
        assert world.status()["lastFailure"]["pod"] == "x-master"
        assert world.status()["lastFailure"]["stage"] == "prepare"
        assert begun - 1 < unix(world.status()["lastFailure"]["at"]) <= clock()
        assert world.events().count("Failed") == 1
        # A changed spec is a new try.
        world.spec(data={"train": {"path": "/data/other.jsonl"}})
        await until(lambda: world.holds("Ready"))
        assert not world.holds("Failed")
        assert "completionTime" not in world.status()

    living(story)


def test_backoff_limit_counts_restarts_without_progress() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(1)
        await started(world, backoffLimit=2)
        await until(lambda: world.status().get("iteration") == 1)
        world.container_ended("x-worker-0", "megatron", 1, "error: lost a rank", restarts=2)
        world.reports["x"] = report(2)
        await until(lambda: world.status()["iteration"] == 2)
        world.container_ended("x-worker-0", "megatron", 1, "error: lost a rank", restarts=4)
        await until(lambda: "lost a rank" in world.status().get("lastFailure", {}).get("message", ""))
        assert not world.holds("Failed")
        await asyncio.sleep(20)
        ended = unix(world.status()["lastFailure"]["at"])
        assert clock() - 60 < ended <= clock()
        await asyncio.sleep(100)
        assert unix(world.status()["lastFailure"]["at"]) == ended, "however often it is looked at"
        world.container_ended("x-worker-0", "megatron", 1, "error: lost a rank", restarts=5)
        await until(lambda: world.holds("Failed"))
        assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"
        assert "x-worker-0/megatron was restarted 3 times" in world.condition("Failed")["message"]
        assert "lost a rank" in world.condition("Failed")["message"]

    living(story)


def test_a_deadline_ends_the_job() -> None:
    async def story(world: World) -> None:
        await started(world, activeDeadlineSeconds=100)
        await until(lambda: world.holds("Failed"))
        assert world.condition("Failed")["reason"] == "DeadlineExceeded"
        assert world.status()["lastFailure"]["at"] == world.status()["completionTime"]

    living(story)


def test_time_before_a_pause_does_not_count_against_the_deadline() -> None:
    async def story(world: World) -> None:
        await started(world, activeDeadlineSeconds=100)
        await asyncio.sleep(80)
        world.spec(suspend=True)
        await until(lambda: world.holds("Suspended"))
        world.spec(suspend=False)
        await until(lambda: world.holds("Ready"))
        resumed = clock()
        await until(lambda: world.holds("Failed"))
        assert world.condition("Failed")["reason"] == "DeadlineExceeded"
        assert clock() - resumed > 80

    living(story)


def gated(world: World, *pods: str) -> None:
    """These pods wait in a queue."""
    waits = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    for pod in pods:
        world.twin.set_status(Ref("Pod", "default", pod), phase="Pending", conditions=[waits])


def admitted(world: World, *pods: str) -> None:
    """The queue has let these pods go; they run."""
    ready = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
    for pod in pods:
        world.twin.set_status(Ref("Pod", "default", pod), phase="Running", podIP="10.0.0.1", conditions=ready)


def test_time_in_a_queue_does_not_count_against_the_deadline() -> None:
    async def story(world: World) -> None:
        world.starts = lambda pod: False
        world.add(rljob(activeDeadlineSeconds=3600, queueName="q", rollout={"replicas": 1}))
        await until(lambda: len(world.pods()) == 3)
        gated(world, "x-master", "x-worker-0", "x-rollout-0")
        await until(lambda: world.condition("Ready").get("reason") == "Queued")
        # Rollout pods are admitted by themselves: that one runs says nothing of the job.
        admitted(world, "x-rollout-0")
        await asyncio.sleep(10)
        writes = world.twin.requests.count(("patch_status", "RLJob"))
        await asyncio.sleep(10_000)
        assert world.twin.requests.count(("patch_status", "RLJob")) == writes, "waiting is no news"
        assert "startTime" not in world.status()
        await world.kill()
        world.start()
        await asyncio.sleep(60)
        admitted(world, "x-master", "x-worker-0")
        await asyncio.sleep(3590)
        assert world.holds("Ready")
        await until(lambda: world.holds("Failed"))
        assert world.condition("Failed")["reason"] == "DeadlineExceeded"

    living(story)


@pytest.mark.parametrize("who", ["reward", "rollout", "worker while nobody looks"])
def test_what_cannot_work_ends_a_job_also_in_its_queue(who: str) -> None:
    """The reward service waits in no queue, and rollout pods in places of their own."""

    async def story(world: World) -> None:
        world.starts = lambda pod: False
        world.add(rljob(queueName="q", rollout={"replicas": 1}))
        await until(lambda: len(world.pods()) == 3)
        gated(world, "x-master", "x-worker-0", "x-rollout-0")
        await until(lambda: world.condition("Ready").get("reason") == "Queued")
        await asyncio.sleep(30)
        if who == "reward":
            labels = world.twin.objects[Ref("Deployment", "default", "x-reward")]["spec"]["template"]["metadata"]["labels"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x-reward-1", "namespace": "default", "labels": labels}}
            world.twin.add(pod | {"spec": {}}, "kube-controller-manager")
            world.container_ended("x-reward-1", "reward", EXIT_CONFIGURATION, "no such function")
        elif who == "rollout":
            admitted(world, "x-rollout-0")
            world.container_ended("x-rollout-0", "vllm", EXIT_CONFIGURATION, "no such model")
        else:
            await world.kill()
            admitted(world, "x-master", "x-worker-0")
            world.container_ended("x-worker-0", "vllm", EXIT_CONFIGURATION, "no such model")
            await asyncio.sleep(10)
            world.start()
        await until(lambda: world.holds("Failed"))
        assert world.condition("Failed")["reason"] == "Configuration"

    living(story)


def test_a_job_that_its_queue_has_taken_back_gets_its_time_anew() -> None:
    async def story(world: World) -> None:
        await started(world, activeDeadlineSeconds=3600, queueName="q")
        await asyncio.sleep(3000)
        world.starts = lambda pod: False
        for pod in ("x-master", "x-worker-0"):
            world.lose(pod, 1.0)
        await until(lambda: not world.pods())
        await until(lambda: len(world.pods()) == 2)
        gated(world, "x-master", "x-worker-0")
        await asyncio.sleep(3000)
        assert not world.holds("Failed")
        # A worker that waits beside a master that runs is another thing.
        admitted(world, "x-master")
        await asyncio.sleep(3590)
        assert not world.holds("Failed")
        await until(lambda: world.holds("Failed"))
        assert world.condition("Failed")["reason"] == "DeadlineExceeded"

    living(story)


def in_a_group(pod: Manifest) -> None:
    """What Kueue's webhook adds. It takes it off a pod that has ended once another of the group has taken its place: never, of one name."""
    if "kueue.x-k8s.io/pod-group-name" in pod["metadata"].get("labels", {}):
        pod["metadata"]["finalizers"] = ["kueue.x-k8s.io/managed"]


def test_what_a_queue_keeps_of_pods_that_are_over_holds_up_nothing() -> None:
    async def story(world: World) -> None:
        world.twin.webhook = in_a_group
        await started(world, queueName="q")
        before = {pod["metadata"]["uid"] for pod in world.twin.of("Pod").values()}
        for pod in ("x-master", "x-worker-0"):
            world.lose(pod, 1.0)

        def all_new() -> bool:
            return not before & {pod["metadata"]["uid"] for pod in world.twin.of("Pod").values()}

        await until(lambda: all_new() and world.holds("Ready"))
        world.spec(suspend=True)
        await until(lambda: world.holds("Suspended") and not world.pods())
        world.starts = lambda pod: False
        world.spec(suspend=False)
        await until(lambda: world.pods() == {"x-master", "x-worker-0"})
        assert not {"NodeLost", "HeldByFinalizer"} & set(world.events())

    living(story)


@pytest.mark.parametrize("when", ["it waits", "it runs", "nobody looks"])
def test_a_job_that_is_deleted_leaves_no_pod_in_its_queue(when: str) -> None:
    async def story(world: World) -> None:
        world.twin.webhook = in_a_group
        world.starts = lambda pod: when != "it waits"
        world.add(rljob(queueName="q"))
        await until(lambda: len(world.pods()) == 2)
        await asyncio.sleep(10)
        if when == "nobody looks":
            await world.kill()
        world.twin.erase(Ref("RLJob", "default", "x"))
        await asyncio.sleep(10)
        if when == "nobody looks":
            assert world.pods() == {"x-master", "x-worker-0"}, "the queue keeps them"
            busy = [ApiError(503, "ServiceUnavailable", "busy") for _ in range(2)]  # pods are known before the rest is
            world.twin.fault = lambda verb, kind: busy.pop() if (verb, kind) == ("list", "NetworkPolicy") and busy else None
            world.start()
        await until(lambda: not [r for r in world.twin.objects if r.kind != "Event"])

    living(story)


def test_a_finalizer_that_may_not_be_taken_off_is_named_and_disturbs_nothing_else() -> None:
    async def story(world: World) -> None:
        world.twin.webhook = in_a_group
        await started(world, queueName="q")
        world.twin.fault = lambda verb, kind: ApiError(403, "Forbidden", "no right") if verb == "release" else None
        world.lose("x-worker-0", 1.0)
        await asyncio.sleep(10)
        world.spec(rollout={"replicas": 1})
        await until(lambda: "x-rollout-0" in world.pods())
        await until(lambda: world.condition("Ready")["reason"] == "HeldByFinalizer")
        assert "kueue.x-k8s.io/managed" in world.condition("Ready")["message"]
        world.twin.fault = lambda verb, kind: None
        await until(lambda: world.holds("Ready"))

    living(story)


def test_a_finished_job_is_deleted_after_its_time() -> None:
    async def story(world: World) -> None:
        await started(world, ttlSecondsAfterFinished=60)
        world.pod_ended("x-master", "Succeeded")
        await until(lambda: world.holds("Succeeded"))
        await until(lambda: not world.twin.of("RLJob"))
        await until(lambda: not [r for r in world.twin.objects if r.kind != "Event"])

    living(story)


def test_suspend_removes_pods_and_keeps_the_state() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(4)
        await started(world)
        await until(lambda: world.status().get("iteration") == 4)
        world.spec(suspend=True)
        await until(lambda: world.holds("Suspended") and not world.pods())
        assert not world.twin.of("Deployment")
        assert "x-work" in world.twin.of("PersistentVolumeClaim")
        assert world.status()["iteration"] == 4
        assert world.status()["phase"] == "Suspended"
        world.spec(suspend=False)
        await until(lambda: world.holds("Ready") and len(world.pods()) == 2)
        assert world.status()["phase"] != "Suspended"
        assert "Resumed" in world.events()

    living(story)


def test_rollouts_are_scaled_and_nothing_else_moves() -> None:
    async def story(world: World) -> None:
        await started(world, rollout={"replicas": 3})
        master = world.twin.of("Pod")["x-master"]["metadata"]["uid"]
        world.spec(rollout={"replicas": 1})
        await until(lambda: world.pods() == {"x-master", "x-worker-0", "x-rollout-0"})
        world.spec(rollout={"replicas": 2})
        await until(lambda: "x-rollout-1" in world.pods() and world.holds("Ready"))
        await until(lambda: world.status()["rollout"]["readyReplicas"] == 2)
        assert world.twin.of("Pod")["x-master"]["metadata"]["uid"] == master

    living(story)


def test_a_changed_field_recreates_only_what_reads_it() -> None:
    async def story(world: World) -> None:
        await started(world)
        before = {name: pod["metadata"]["uid"] for name, pod in world.twin.of("Pod").items()}
        world.spec(iterations=30)
        await until(
            lambda: world.twin.of("Pod").get("x-master", {"metadata": {"uid": before["x-master"]}})["metadata"]["uid"] != before["x-master"]
        )
        await until(lambda: world.holds("Ready") and world.condition("Ready")["observedGeneration"] == 2)
        assert world.twin.of("Pod")["x-worker-0"]["metadata"]["uid"] == before["x-worker-0"]

    living(story)


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("Service", "x-master", lambda o: o["spec"]["ports"][0].update(port=1)),
        ("Deployment", "x-reward", lambda o: o["spec"].update(replicas=7)),
        ("ConfigMap", "x-config", lambda o: o["data"].clear()),
        ("Pod", "x-worker-0", lambda o: o["metadata"]["labels"].pop("rljob.dev/role")),
        ("NetworkPolicy", "x-master", lambda o: o["spec"].update(policyTypes=[])),
        ("ServiceAccount", "x-master", lambda o: o["metadata"]["ownerReferences"].clear()),
        ("Pod", "x-master", lambda o: o["metadata"]["labels"].pop("app.kubernetes.io/managed-by")),
    ],
)
@pytest.mark.parametrize("asleep", [False, True])
def test_a_child_edited_by_hand_is_repaired(kind: str, name: str, change: Callable[[dict[str, Any]], None], asleep: bool) -> None:
    async def story(world: World) -> None:
        await started(world)
        ref = Ref(kind, "default", name)
        whole = {part: world.twin.objects[ref].get(part) for part in ("spec", "data")}
        labels, owners = (world.twin.objects[ref]["metadata"].get(p) for p in ("labels", "ownerReferences"))
        await asyncio.sleep(3)
        if asleep:
            await world.kill()
        world.twin.edit(ref, change)
        if asleep:
            world.start()

        def repaired() -> bool:
            now = world.twin.objects.get(ref)
            if now is None:
                return False
            same = {part: now.get(part) for part in whole} == whole
            return same and now["metadata"].get("labels") == labels and now["metadata"].get("ownerReferences") == owners

        await until(repaired)
        await asyncio.sleep(30)
        told = [e["message"] for e in world.twin.of("Event").values() if e["reason"] == "Repaired"]
        assert told == [f"{kind} {name} was changed by hand and is as rendered again"]
        assert [world.events().count(reason) for reason in ("Started", "PodMade", "PodLost")] == [1, 0, 0]

    living(story)


WORK = Ref("PersistentVolumeClaim", "default", "x-work")


def grow(claim: Manifest) -> None:
    claim["spec"]["resources"]["requests"]["storage"] = "500Gi"


def only_grows(world: World) -> None:
    """What a real API server does with claims."""
    apply = world.twin.apply

    async def checked(manifest: Manifest, uid: str) -> Applied:
        if manifest["kind"] == "PersistentVolumeClaim" and manifest["spec"] != world.twin.objects[WORK]["spec"]:
            raise ApiError(422, "Invalid", "spec is immutable after creation; resources.requests may not be less than status.capacity")
        return await apply(manifest, uid)

    world.twin.apply = checked  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (422, "spec.selector: field is immutable"),
        (403, 'admission webhook "a.b" denied the request: metadata.labels[c]: field is immutable'),
    ],
)
def test_an_object_that_nobody_may_change_so_is_made_anew(code: int, said: str) -> None:
    async def story(world: World) -> None:
        await started(world)
        ref = Ref("Deployment", "default", "x-reward")
        before, apply = world.twin.objects[ref]["metadata"]["uid"], world.twin.apply

        async def fixed(manifest: Manifest, uid: str) -> Applied:
            if uid == before:
                raise ApiError(code, "Refused", said)
            return await apply(manifest, uid)

        world.twin.apply = fixed  # type: ignore[method-assign]
        world.spec(reward={"workers": 3})
        await until(lambda: world.twin.of("Deployment").get("x-reward", {"metadata": {"uid": before}})["metadata"]["uid"] != before)
        await until(lambda: world.holds("Ready"))

    living(story)


def test_a_volume_that_the_spec_no_longer_names_is_kept_with_the_state() -> None:
    async def story(world: World) -> None:
        await started(world)
        uid = world.twin.objects[WORK]["metadata"]["uid"]
        world.spec(checkpoint={"volume": "mine"})
        await until(lambda: world.holds("Ready") and world.condition("Ready")["observedGeneration"] == 2)
        await asyncio.sleep(60)
        claim = world.twin.objects[WORK]["metadata"]
        assert (claim["uid"], claim.get("deletionTimestamp")) == (uid, None)

    living(story)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_volume_that_somebody_has_grown_stays_so(asleep: bool) -> None:
    async def story(world: World) -> None:
        only_grows(world)
        await started(world)
        await asyncio.sleep(3)
        if asleep:
            await world.kill()
        world.twin.edit(WORK, grow, "kubectl-patch")
        if asleep:
            world.start()
        await asyncio.sleep(60)
        # What is repaired of it is not its size, whoever wrote what.
        labels = dict(world.twin.objects[WORK]["metadata"]["labels"])
        for label in ("app.kubernetes.io/name", "app.kubernetes.io/managed-by"):
            world.twin.edit(WORK, lambda claim, label=label: claim["metadata"]["labels"].pop(label))  # type: ignore[misc]
            await until(lambda: world.twin.objects[WORK]["metadata"]["labels"] == labels)
            await asyncio.sleep(60)
        assert world.twin.objects[WORK]["spec"]["resources"]["requests"] == {"storage": "500Gi"}
        assert world.holds("Ready")
        told = [e["message"] for e in world.twin.of("Event").values() if e["reason"] == "Repaired"]
        kept = "PersistentVolumeClaim x-work was changed by hand: its labels and owner are as rendered again, its spec stays as it is"
        assert told == [kept, kept]

    living(story)


def test_a_volume_that_grows_while_its_claim_is_repaired_stays_so() -> None:
    async def story(world: World) -> None:
        await started(world)
        await asyncio.sleep(3)
        get, grown = world.twin.get, asyncio.Event()

        async def then_grow(ref: Ref) -> Manifest:
            found = await get(ref)
            if ref == WORK and not grown.is_set():
                grown.set()
                world.twin.edit(WORK, grow, "kubectl-patch")
            return found

        world.twin.get = then_grow  # type: ignore[method-assign]
        labels = dict(world.twin.objects[WORK]["metadata"]["labels"])
        world.twin.edit(WORK, lambda claim: claim["metadata"]["labels"].clear())
        await until(lambda: world.twin.objects[WORK]["metadata"]["labels"] == labels)
        assert grown.is_set()
        assert world.twin.objects[WORK]["spec"]["resources"]["requests"] == {"storage": "500Gi"}

    living(story)


def test_a_volume_that_an_earlier_job_of_the_name_left_is_taken_over_as_it_is() -> None:
    """Deleted with `--cascade=orphan`, and made again with another size."""

    async def story(world: World) -> None:
        only_grows(world)
        await started(world)
        await world.kill()

        def leave(claim: Manifest) -> None:
            claim["metadata"]["annotations"][ANNOTATION_HASH] = "of another size"
            del claim["metadata"]["ownerReferences"]
            claim["spec"]["resources"]["requests"]["storage"] = "7Gi"

        world.twin.edit(WORK, leave)
        world.start()
        await until(lambda: "ownerReferences" in world.twin.objects[WORK]["metadata"])
        await asyncio.sleep(60)
        assert world.holds("Ready")
        assert world.twin.objects[WORK]["spec"]["resources"]["requests"] == {"storage": "7Gi"}
        assert world.twin.objects[WORK]["metadata"]["annotations"][ANNOTATION_HASH] == "of another size"
        world.twin.erase(Ref("RLJob", "default", "x"))
        await until(lambda: WORK not in world.twin.objects)

    living(story)


@pytest.mark.parametrize("kind", ["Service", "ConfigMap", "Deployment", "NetworkPolicy", "ServiceAccount", "PodDisruptionBudget", "Pod"])
def test_a_deleted_child_comes_back(kind: str) -> None:
    async def story(world: World) -> None:
        await started(world)
        name = next(iter(world.twin.of(kind)))
        uid = world.twin.of(kind)[name]["metadata"]["uid"]
        world.twin.erase(Ref(kind, "default", name))
        await until(lambda: world.twin.of(kind).get(name, {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)

    living(story)


def test_deleting_the_job_leaves_nothing() -> None:
    async def story(world: World) -> None:
        await started(world)
        world.twin.erase(Ref("RLJob", "default", "x"))
        await until(lambda: not [r for r in world.twin.objects if r.kind != "Event"])
        await asyncio.sleep(30)
        assert not [r for r in world.twin.objects if r.kind != "Event"]

    living(story)


def test_a_namesake_of_a_deleted_job_gets_children_of_its_own() -> None:
    async def story(world: World) -> None:
        await started(world)
        world.twin.erase(Ref("RLJob", "default", "x"))
        world.add(rljob(iterations=3))
        uid = world.job()["metadata"]["uid"]

        def all_new() -> bool:
            children = [o for r, o in world.twin.objects.items() if r.kind not in ("RLJob", "Event")]
            return bool(children) and all(o["metadata"]["ownerReferences"][0]["uid"] == uid for o in children)

        await until(lambda: world.holds("Ready") and all_new())
        assert "NameTaken" not in world.events(), "what the garbage collector takes away is in nobody's way"

    living(story)


@pytest.mark.parametrize("how", ["seen", "told by a write"])
def test_nothing_is_remembered_of_a_job_that_is_gone(how: str) -> None:
    async def story(world: World) -> None:
        assert world.operator is not None
        await started(world)
        if how == "told by a write":

            def vanishes(verb: str, kind: str) -> None:
                if verb == "patch_status" and "x" in world.twin.of("RLJob"):
                    world.twin.erase(Ref("RLJob", "default", "x"))

            world.twin.fault = vanishes
            world.spec(suspend=True)
        else:
            world.twin.erase(Ref("RLJob", "default", "x"))
        await until(lambda: not [r for r in world.twin.objects if r.kind != "Event"])
        await asyncio.sleep(10)
        renderer = world.operator.renderer
        assert [*renderer._known, *renderer._accepted, *renderer._manifests, *world.operator.reconciler._memory] == []

    living(story)


def test_an_object_of_somebody_else_is_never_taken() -> None:
    async def story(world: World) -> None:
        theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x-master", "namespace": "default"}, "spec": {"ports": [1]}}
        world.twin.add(theirs)
        world.add(rljob())
        await until(lambda: world.condition("Ready").get("reason") == "NameTaken")
        assert "Service x-master" in world.condition("Ready")["message"]
        assert world.twin.of("Service")["x-master"]["spec"] == {"ports": [1]}
        world.twin.erase(Ref("Service", "default", "x-master"))
        await until(lambda: world.holds("Ready"))

    living(story)


def test_what_bears_the_jobs_labels_and_belongs_to_another_stays() -> None:
    async def story(world: World) -> None:
        await started(world, backoffLimit=0)
        refs = [Ref("Pod", "default", "copied"), Ref("ConfigMap", "default", "theirs")]
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "theirs", "uid": "theirs", "controller": True}
        for ref, like in zip(refs, ("x-worker-0", "x-config"), strict=True):
            theirs = copy.deepcopy(world.twin.of(ref.kind)[like])
            theirs["metadata"] |= {"name": ref.name, "ownerReferences": [owner] if ref.kind == "Pod" else []}
            world.twin.add(theirs)
        world.pod_ended("copied")
        await asyncio.sleep(60)
        assert not world.holds("Failed"), "its end is none of the job's"
        there = {ref: world.twin.objects[ref] for ref in refs}
        world.spec(rollout={"replicas": 1})
        await until(lambda: "x-rollout-0" in world.pods() and world.holds("Ready"))
        changes: list[dict[str, Any]] = [{"suspend": True}, {"moonshot": {"speed": 3}}]
        for change in changes:
            world.spec(**change)
            await until(lambda: world.holds("Suspended") and world.pods() == {"copied"})
            await asyncio.sleep(60)
            assert {ref: world.twin.objects.get(ref) for ref in refs} == there

    living(story)


def test_a_quota_is_a_condition_and_passes() -> None:
    async def story(world: World) -> None:
        full = ApiError(
            403, "Forbidden", 'pods "x-worker-0" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'
        )
        world.twin.fault = lambda verb, kind: full if (verb, kind) == ("create", "Pod") else None
        world.add(rljob())
        await until(lambda: world.condition("Ready").get("reason") == "QuotaExceeded")
        assert "exceeded quota: small" in world.condition("Ready")["message"]
        assert world.holds("Reconciling")
        world.twin.fault = lambda verb, kind: None
        await until(lambda: world.holds("Ready"))

    living(story)


def test_a_quota_without_room_for_all_rollout_pods_names_the_field_and_comes_after_what_stops_the_job() -> None:
    async def story(world: World) -> None:
        full = ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3')
        world.twin.fault = lambda verb, kind: full if (verb, kind) == ("create", "Pod") and len(world.twin.of("Pod")) >= 3 else None
        world.add(rljob(rollout={"replicas": 3}))
        await until(lambda: world.condition("Ready").get("reason") == "QuotaExceeded")
        assert "lower spec.rollout.replicas (3)" in world.condition("Ready")["message"]
        assert len(world.twin.of("Pod").keys() & {"x-master", "x-worker-0"}) == 2, "it trains"
        assert world.holds("Reconciling")
        world.twin.fault = lambda verb, kind: full if (verb, kind) == ("create", "Pod") else None
        world.twin.erase(Ref("Pod", "default", "x-worker-0"))
        await until(lambda: "x-worker-0 cannot be made" in world.condition("Ready")["message"])
        assert "spec.rollout.replicas" not in world.condition("Ready")["message"]

    living(story)


@pytest.mark.parametrize("of", ["Pod", "Deployment"])
@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        ("exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1", "QuotaExceeded", "raise the quota"),
        ("failed quota: small: must specify limits.memory for: vllm", "Forbidden", "name it in spec.templates"),
        ("maximum memory usage per Container is 1Gi, but limit is 4Gi", "LimitRange", "change the LimitRange"),
        ("minimum cpu usage per Pod is 2.  No request is specified", "LimitRange", "change the LimitRange"),
        ("cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000", "LimitRange", "change the LimitRange"),
        ('violates PodSecurity "restricted:latest": unrestricted capabilities', "PodSecurity", "pod-security.kubernetes.io/enforce"),
        ("no image of elsewhere may run here", "Forbidden", "allow it in the namespace"),
        ('Invalid value: "20Gi": must be less than or equal to memory limit of 512Mi', "LimitRange", "a LimitRange fills in a lower limit"),
        ('admission webhook "a.b" denied the request: label team is missing', "Refused", "a policy of the cluster refuses it"),
    ],
)
def test_every_refusal_says_what_helps(of: str, words: str, reason: str, remedy: str) -> None:
    async def story(world: World) -> None:
        said = f'pods "x-worker-0" is forbidden: {words}'
        if of == "Pod":
            world.twin.fault = lambda verb, kind: ApiError(403, "Forbidden", said) if (verb, kind) == ("create", "Pod") else None
        world.add(rljob())
        if of == "Deployment":
            await until(lambda: world.holds("Ready"))
            failed = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": said}
            world.twin.set_status(Ref("Deployment", "default", "x-reward"), availableReplicas=0, conditions=[failed])
        await until(lambda: world.condition("Ready").get("reason") == reason)
        told, _, helps = world.condition("Ready")["message"].partition(f"{' '.join(words.split())}; ")
        assert of in told
        assert remedy in helps

    living(story)


@pytest.mark.parametrize(("verb", "what"), [("create", "Pod x-master cannot be made"), ("delete", "Pod x-rollout-0 cannot be removed")])
def test_a_webhook_that_does_not_answer_is_a_condition_and_passes(verb: str, what: str) -> None:
    async def story(world: World) -> None:
        said = 'Internal error occurred: failed calling webhook "validate.example.com": connection refused'
        if verb == "delete":
            await started(world, rollout={"replicas": 1})
            world.spec(rollout={"replicas": 0})
        else:
            world.add(rljob())
        world.twin.fault = lambda asked, kind: ApiError(500, "InternalError", said) if (asked, kind) == (verb, "Pod") else None
        await asyncio.sleep(30)
        ready = world.condition("Ready")
        assert ready["reason"] == "Refused"
        assert f"{what}: {said}; the API server or a webhook of it fails" in ready["message"]
        world.twin.fault = lambda verb, kind: None
        await until(lambda: world.holds("Ready"))
        assert world.events().count("Refused") == 1

    living(story)


def test_an_account_that_is_not_known_for_a_moment_is_no_fault_of_the_job() -> None:
    async def story(world: World) -> None:
        unknown = ApiError(401, "Unauthorized", "Unauthorized")
        world.twin.fault = lambda verb, kind: unknown if (verb, kind) == ("create", "Pod") else None
        world.add(rljob())
        await asyncio.sleep(3)
        world.twin.fault = lambda verb, kind: None
        await until(lambda: world.holds("Ready"))
        assert "Refused" not in world.events()

    living(story)


def test_jobs_that_were_refused_together_do_not_come_back_together() -> None:
    async def story(world: World) -> None:
        full, tries = ApiError(403, "Forbidden", "exceeded quota: small"), list[float]()

        def fault(verb: str, kind: str) -> ApiError | None:
            if (verb, kind) != ("create", "Pod"):
                return None
            tries.append(clock())
            return full

        world.twin.fault = fault
        for number in range(20):
            world.add(rljob(f"x{number}"))
        await asyncio.sleep(2)
        at_once = len(tries)
        assert at_once >= 40
        await asyncio.sleep(30)
        assert len({round(when, 1) for when in tries[at_once:]}) > 10

    living(story)


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [("ErrImagePull", "ImagePullFailed"), ("CreateContainerConfigError", "ContainerCannotStart"), ("InvalidImageName", "ImagePullFailed")],
)
def test_a_pod_that_cannot_start_says_why_in_a_condition(waiting: str, reason: str) -> None:
    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-master"
        world.add(rljob())
        await until(lambda: "x-master" in world.pods())
        world.pod_waits("x-master", waiting, "no such thing")
        await until(lambda: world.condition("Ready").get("reason") == reason)
        assert "x-master" in world.condition("Ready")["message"]
        assert "no such thing" in world.condition("Ready")["message"]
        assert world.holds("Reconciling")

    living(story)


def test_a_pod_that_waits_without_a_word_is_explained_by_its_events() -> None:
    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-master"
        world.add(rljob())
        await until(lambda: "x-master" in world.pods())
        world.pod_waits("x-master", "ContainerCreating")
        tell(world, "x-master", "Normal", "Scheduled", "assigned")
        tell(world, "x-master", "Warning", "FailedMount", 'secret "hf" not found')
        await until(lambda: "FailedMount" in world.condition("Ready").get("message", ""))

    living(story)


def tell(world: World, name: str, kind: str, reason: str, message: str, what: str = "Pod") -> None:
    """An event of the cluster's own about a pod, or another object."""
    about = {"kind": what, "name": name, "uid": world.twin.of(what)[name]["metadata"]["uid"]}
    head = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{name}.{reason}.{clock():.0f}", "namespace": "default"}}
    world.twin.add(head | {"involvedObject": about, "type": kind, "reason": reason, "message": message, "lastTimestamp": iso(clock())})


def test_an_image_that_is_being_pulled_for_long_is_a_condition_and_no_event() -> None:
    """A registry that is a black hole: the kubelet says nothing else until its dial has timed out."""

    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-master"
        world.add(rljob())
        await until(lambda: "x-master" in world.pods())
        begun = clock()
        world.pod_waits("x-master", "ContainerCreating")
        tell(world, "x-master", "Warning", "FailedScheduling", "0/1 nodes are available")
        tell(world, "x-master", "Normal", "Scheduled", "assigned")
        tell(world, "x-master", "Normal", "Pulling", 'Pulling image "nowhere/master:1"')
        await until(lambda: world.condition("Ready").get("reason") == "PullingImage")
        assert clock() - begun <= 20
        message = world.condition("Ready")["message"]
        assert f'pod x-master waits since {iso(begun)}: Pulling image "nowhere/master:1"' in message
        assert world.holds("Reconciling")
        writes = world.twin.requests.count(("patch_status", "RLJob"))
        await asyncio.sleep(60)
        assert world.twin.requests.count(("patch_status", "RLJob")) == writes
        world.pod_waits("x-master", "ErrImagePull", "dial tcp: i/o timeout")
        await until(lambda: world.condition("Ready").get("reason") == "ImagePullFailed")
        world.starts = lambda pod: True
        ready = [{"type": "Ready", "status": "True"}]
        world.twin.set_status(Ref("Pod", "default", "x-master"), phase="Running", podIP="10.0.0.1", containerStatuses=[], conditions=ready)
        await until(lambda: world.holds("Ready"))
        assert "PullingImage" not in world.events()

    living(story)


def test_the_image_of_a_second_sidecar_is_waited_for_only_once_the_first_one_has_started() -> None:
    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-worker-0"
        world.add(rljob())
        await until(lambda: "x-worker-0" in world.pods())
        scheduled = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": iso(clock())}]

        def megatron(started: bool) -> None:
            running = {"running": {"startedAt": iso(clock())}}
            first = {"name": "megatron", "restartCount": 0, "image": "i", "started": started, "state": running}
            second = {"name": "vllm", "restartCount": 0, "image": "i", "state": {"waiting": {"reason": "PodInitializing"}}}
            world.twin.set_status(
                Ref("Pod", "default", "x-worker-0"), phase="Pending", initContainerStatuses=[first, second], conditions=scheduled
            )

        megatron(started=False)
        await asyncio.sleep(60)
        assert world.condition("Ready")["reason"] == "PodsStarting"
        megatron(started=True)
        tell(world, "x-worker-0", "Normal", "Pulling", 'Pulling image "nowhere/rollout:1"')
        await asyncio.sleep(20)
        assert world.condition("Ready")["reason"] == "PullingImage"
        tell(world, "x-worker-0", "Normal", "Pulled", "Successfully pulled")
        await until(lambda: world.condition("Ready")["reason"] == "PodsStarting")

    living(story)


async def left_without_a_node(world: World, pod: str, why: str) -> None:
    """A job one of whose pods the scheduler cannot place, long enough for that to be told; before, it may be passing."""
    world.starts = lambda made: made["metadata"]["name"] != pod
    world.add(rljob())
    await until(lambda: pod in world.pods())
    nowhere = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    world.twin.set_status(Ref("Pod", "default", pod), conditions=[nowhere])
    await asyncio.sleep(5)
    assert world.condition("Ready")["reason"] == "PodsStarting"
    await asyncio.sleep(20)


NO_LABEL = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector"


@pytest.mark.parametrize("why", ["0/3 nodes are available: 3 Insufficient nvidia.com/gpu", NO_LABEL])
def test_a_pod_without_a_node_is_a_condition_after_a_moment(why: str) -> None:
    async def story(world: World) -> None:
        await left_without_a_node(world, "x-worker-0", why)
        assert world.condition("Ready")["reason"] == "Unschedulable"
        assert f"pod x-worker-0 fits on no node: {why}; free, label or add such nodes" in world.condition("Ready")["message"]

    living(story)


@pytest.mark.parametrize(
    "why",
    [
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
        '0/1 nodes are available: persistentvolumeclaim "x-work" not found.',
        'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded',
        "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
    ],
)
def test_a_pod_without_a_volume_is_not_said_to_lack_a_node(why: str) -> None:
    async def story(world: World) -> None:
        await left_without_a_node(world, "x-master", why)
        assert world.condition("Ready")["reason"] == "VolumePending"
        message = world.condition("Ready")["message"]
        assert message.startswith(f"pod x-master waits for its volume: {why}; make the claim")
        assert "kubectl describe pvc x-work" in message
        assert "settings.accessMode" in message

    living(story)


@pytest.mark.parametrize(("kind", "reason"), [("Warning", "ProvisioningFailed"), ("Normal", "ExternalProvisioning")])
def test_a_volume_that_is_not_made_for_the_first_pod_is_a_condition(kind: str, reason: str) -> None:
    """Of a class that waits for the first pod: the scheduler says nothing of the pod until the volume is there."""

    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-master"
        world.add(rljob())
        await until(lambda: "x-master" in world.pods())
        begun = clock()
        tell(world, "x-work", "Normal", "WaitForFirstConsumer", "waiting for first consumer", WORK.kind)
        await asyncio.sleep(1)
        tell(world, "x-work", kind, reason, "no volume plugin matched", WORK.kind)
        # The scheduler's, once it has chosen the node; a provisioner that gives up takes it away again.
        if kind == "Normal":
            world.twin.edit(WORK, chosen, "kube-scheduler")
        await until(lambda: world.condition("Ready").get("reason") == "VolumePending")
        assert clock() - begun <= 20
        said = f"pod x-master waits for its PersistentVolumeClaim x-work: {reason}: no volume plugin matched; make the claim"
        assert world.condition("Ready")["message"].startswith(said)
        writes = world.twin.requests.count(("patch_status", "RLJob"))
        await asyncio.sleep(60)
        assert world.twin.requests.count(("patch_status", "RLJob")) == writes
        world.twin.set_status(WORK, phase="Bound")
        admitted(world, "x-master")
        await until(lambda: world.holds("Ready"))

    living(story)


def chosen(claim: Manifest) -> None:
    claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] = "node-1"


@pytest.mark.parametrize("claim", ["Bound", "Pending", "of an earlier job", "gone"])
def test_a_pod_that_no_scheduler_looks_at_is_a_condition(claim: str) -> None:
    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-master"
        world.add(rljob(templates={"master": {"spec": {"schedulerName": "gpu-scheduler"}}}))
        await until(lambda: "x-master" in world.pods())
        begun = clock()
        if claim == "gone":
            world.twin.fault = lambda verb, kind: ApiError(404, "NotFound", "gone") if (verb, kind) == ("get", WORK.kind) else None
        elif claim == "of an earlier job":
            tell(world, "x-work", "Warning", "ProvisioningFailed", "no volume plugin matched", WORK.kind)
            world.twin.erase(WORK)
        else:
            tell(world, "x-work", "Normal", "WaitForFirstConsumer", "waiting for first consumer", WORK.kind)
            world.twin.set_status(WORK, phase=claim)
        await until(lambda: world.condition("Ready").get("reason") == "Unschedulable")
        assert clock() - begun <= 20
        remedy = "start it if it does not run, or name another in spec.templates.master.spec.schedulerName"
        said = f"no scheduler has said anything of pod x-master yet: wait if gpu-scheduler is busy, {remedy}"
        assert world.condition("Ready")["message"] == said
        admitted(world, "x-master")
        await until(lambda: world.holds("Ready"))

    living(story)


def test_of_pods_that_no_scheduler_looks_at_the_first_of_the_plan_is_asked_about_and_no_other() -> None:
    async def story(world: World) -> None:
        def told_of(pod: str) -> bool:
            return f"anything of pod {pod} yet:" in world.condition("Ready").get("message", "")

        world.starts = lambda pod: False
        world.add(rljob(rollout={"replicas": 8}))
        await until(lambda: told_of("x-master"))
        await asyncio.sleep(15)
        asked = len(world.twin.requests)
        await asyncio.sleep(60)
        # Its events, its claim, the claim's events.
        assert len(world.twin.requests) - asked <= 4 * 3 + 1
        world.lose("x-master")
        await until(lambda: told_of("x-worker-0"))
        # Others have been waiting for longer by now.
        await until(lambda: told_of("x-master"))

    living(story)


def test_a_pod_whose_devices_cannot_be_claimed_is_a_condition() -> None:
    """The scheduler does not take it up before its ResourceClaim is there."""

    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-worker-0"
        world.add(rljob())
        await until(lambda: "x-worker-0" in world.pods())
        tell(world, "x-worker-0", "Warning", "FailedResourceClaimCreation", "PodResourceClaim devices: exceeded quota: small")
        await until(lambda: world.condition("Ready").get("reason") == "Unschedulable")
        assert "x-worker-0 has no node: FailedResourceClaimCreation: PodResourceClaim devices: exc" in world.condition("Ready")["message"]

    living(story)


def test_a_long_preparation_is_no_trouble() -> None:
    async def story(world: World) -> None:
        world.starts = lambda pod: pod["metadata"]["name"] != "x-master"
        world.add(rljob())
        await until(lambda: "x-master" in world.pods())
        running = {"name": "prepare", "restartCount": 0, "image": "i", "state": {"running": {}}}
        scheduled = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
        world.twin.set_status(Ref("Pod", "default", "x-master"), initContainerStatuses=[running], conditions=scheduled, phase="Pending")
        await until(lambda: world.status().get("phase") == "Preparing")
        asked = len(world.twin.requests)
        await asyncio.sleep(100)
        assert len(world.twin.requests) - asked <= 1
        assert world.condition("Ready")["reason"] == "PodsStarting"

    living(story)


def test_a_spec_that_cannot_be_is_stalled_with_field_value_and_remedy() -> None:
    async def story(world: World) -> None:
        world.add(rljob(data={"train": {"path": "train.jsonl"}}))
        await until(lambda: world.holds("Stalled"))
        assert "spec.data.train.path: train.jsonl is relative" in world.condition("Stalled")["message"]
        assert not world.pods()
        assert world.status()["observedGeneration"] == 1
        world.spec(data={"train": {"path": "/data/train.jsonl"}})
        await until(lambda: world.holds("Ready"))
        assert not world.holds("Stalled")

    living(story)


def test_a_job_of_a_newer_operator_is_left_alone() -> None:
    async def story(world: World) -> None:
        world.add(rljob(moonshot={"speed": 3}))
        await until(lambda: world.holds("Stalled"))
        assert "spec.moonshot: not known to this operator" in world.condition("Stalled")["message"]
        assert not world.pods()
        world.add(rljob("y"))
        world.twin.set_status(Ref("RLJob", "default", "y"), operatorVersion="99.1.0", reward=0.5)
        await until(lambda: world.holds("Stalled", "y"))
        assert "operator 99.1.0 has worked on this job" in world.condition("Stalled", "y")["message"]
        assert world.status("y")["reward"] == 0.5
        world.twin.edit(
            Ref("RLJob", "default", "y"),
            lambda job: job["metadata"].setdefault("annotations", {}).update({"rljob.dev/operator-version": "0.1.0"}),
        )
        await until(lambda: world.holds("Ready", "y"))

    living(story)


def definition_of_a_newer_version(world: World) -> None:
    """It has a field more, whose default the API server hands out with every job that there is; their generation stays."""
    schema = job_schema()
    schema["properties"]["spec"]["properties"]["rollout"]["properties"]["minP"] = {"type": "number", "default": 0.0}
    schema["properties"]["spec"]["properties"]["moonshot"] = {"type": "object", "default": {"speed": 1, "crew": 2}}
    name = "dev.rljob.v1alpha1.RLJob"
    world.twin.documents["/openapi/v3/apis/rljob.dev/v1alpha1"] = {"components": {"schemas": {name: schema}}}
    for ref, job in world.twin.objects.items():
        if ref.kind == "RLJob":
            filled = copy.deepcopy(job)
            filled["spec"].setdefault("rollout", {})["minP"] = 0.0
            filled["spec"]["moonshot"] = {"speed": 1, "crew": 2}
            world.twin._store(ref, filled, "MODIFIED")


async def remade(world: World, pod: str) -> None:
    uid = world.twin.of("Pod")[pod]["metadata"]["uid"]
    world.lose(pod)
    await until(lambda: world.twin.of("Pod").get(pod, {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)


def test_a_newer_definition_under_an_operator_that_goes_on_disturbs_no_job() -> None:
    async def story(world: World) -> None:
        assert world.operator is not None
        world.operator.renderer.kept = 1
        await started(world)
        world.add(rljob("y"))
        await until(lambda: world.holds("Ready", "y"))
        pods = {name: pod["metadata"]["uid"] for name, pod in world.twin.of("Pod").items()}
        definition_of_a_newer_version(world)
        await asyncio.sleep(20)
        assert {name: pod["metadata"]["uid"] for name, pod in world.twin.of("Pod").items()} == pods
        await remade(world, "x-worker-0")
        await remade(world, "y-worker-0")

    living(story)


def test_an_operator_that_is_started_under_a_newer_definition_goes_on_with_every_job_that_asks_for_nothing_new() -> None:
    async def story(world: World) -> None:
        await started(world)
        definition_of_a_newer_version(world)
        await world.kill()
        world.start()
        await remade(world, "x-worker-0")
        filled: dict[str, Any] = {"moonshot": {"speed": 1, "crew": 2}}
        world.spec(rollout={"replicas": 1, "minP": 0.0}, **filled)
        await until(lambda: "x-rollout-0" in world.pods())
        world.add(rljob("new", rollout={"minP": 0.0}, **filled))
        world.add(rljob("newer", rollout={"minP": 0.1}, moonshot={"speed": 3, "crew": 2}))
        await until(lambda: world.holds("Ready", "new") and world.holds("Stalled", "newer"))
        said = world.condition("Stalled", "newer")
        assert (said["reason"], said["message"].partition(":")[0]) == ("NewerOperator", "spec.rollout.minP, spec.moonshot")
        assert not any(pod.startswith("newer-") for pod in world.pods())
        assert not any(world.holds("Stalled", name) for name in ("x", "new"))
        world.spec("newer", rollout={"minP": 0.0}, **filled)
        await until(lambda: world.holds("Ready", "newer"))

    living(story)


def test_what_the_api_server_publishes_of_a_newer_definition_may_come_late() -> None:
    async def story(world: World) -> None:
        await started(world)
        definition_of_a_newer_version(world)
        published = dict(world.twin.documents)
        world.twin.documents.clear()
        await world.kill()
        world.start()
        await until(lambda: world.holds("Stalled"))
        world.twin.documents.update(published)
        await until(lambda: not world.holds("Stalled"))
        await remade(world, "x-worker-0")

    living(story)


def test_whom_the_api_server_does_not_tell_of_its_definition_leaves_the_job_alone() -> None:
    async def story(world: World) -> None:
        world.twin.fault = lambda verb, path: ApiError(403, "Forbidden", "no") if path.startswith("/openapi") else None
        world.add(rljob(moonshot={"speed": 3}))
        await until(lambda: world.holds("Stalled"))
        assert world.condition("Stalled")["reason"] == "NewerOperator"
        assert not world.pods()

    living(story)


@pytest.mark.parametrize(
    "templates",
    [
        {"worker": {"metadata": {"labels": None, "annotations": None}}},
        {"worker": {"spec": {"volumes": [{"name": {"a": 1}}]}}},
        {"reward": {"spec": {"containers": [{"name": "more", "image": "i", "livenessProbe": 5}]}}},
    ],
    ids=["empty labels", "a name that is none", "a probe that is none"],
)
def test_a_template_that_holds_anything_concerns_its_own_job_alone(templates: dict[str, Any]) -> None:
    async def story(world: World) -> None:
        world.add(rljob("good"))
        world.add(rljob("bad", templates=templates))
        await until(lambda: world.holds("Ready", "good"))
        await until(lambda: world.holds("Ready", "bad") or world.holds("Stalled", "bad"))
        await world.kill()
        world.start()
        world.spec("good", rollout={"replicas": 1})
        await until(lambda: "good-rollout-0" in world.pods())
        if "reward" in templates:
            assert any("cannot be rendered" in str(error) for error in world.errors), "a fault is logged where it is one of ours"
            world.errors.clear()

    living(story)


@pytest.mark.parametrize("deadline", [600, 1_000_000])
def test_a_refused_spec_ends_nothing_and_sets_nothing_going(deadline: int) -> None:
    async def story(world: World) -> None:
        await started(world, activeDeadlineSeconds=600, ttlSecondsAfterFinished=7200)
        await until(lambda: world.holds("Failed"))
        world.spec(activeDeadlineSeconds=deadline, templates={"worker": {"sepc": {}}})
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        assert world.holds("Failed")
        assert world.events().count("InvalidSpec") == 1
        world.spec(activeDeadlineSeconds=deadline, templates={})
        await until(lambda: world.holds("Ready"))
        assert "completionTime" not in world.status()
        assert world.status()["startTime"] > iso(clock() - 60), "its time counts anew"
        if deadline > 7200:
            await asyncio.sleep(7200)
            world.pod_ended("x-master", "Succeeded")
            await until(lambda: world.holds("Succeeded"))
            await asyncio.sleep(60)
            assert Ref("RLJob", "default", "x") in world.twin.objects, "from this end on it is kept for two hours"

    living(story)


def test_a_finished_job_whose_spec_is_refused_for_a_while_does_not_run_again() -> None:
    async def story(world: World) -> None:
        await started(world)
        world.pod_ended("x-master", "Succeeded")
        await until(lambda: world.holds("Succeeded"))
        world.lose("x-master")
        world.spec(templates={"worker": {"sepc": {}}})
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        assert world.holds("Succeeded")
        world.spec(templates={})
        await asyncio.sleep(60)
        assert world.holds("Succeeded")
        assert world.pods() == set()

    living(story)


@pytest.mark.parametrize(
    ("refused", "mended"),
    [({"templates": {"worker": {"sepc": {}}}}, {"templates": {}}), ({"moonshot": {"speed": 3}}, None)],
    ids=["invalid", "of a newer operator"],
)
def test_a_job_whose_spec_is_refused_can_be_suspended(refused: dict[str, Any], mended: dict[str, Any] | None) -> None:
    async def story(world: World) -> None:
        await started(world, rollout={"replicas": 1}, activeDeadlineSeconds=3600)
        await asyncio.sleep(3000)
        world.spec(**refused)
        await until(lambda: world.holds("Stalled"))
        await asyncio.sleep(60)
        assert len(world.pods()) == 3, "what runs is let run"
        world.spec(suspend=True)
        await until(lambda: world.holds("Suspended") and not world.pods())
        await asyncio.sleep(60)
        assert not world.twin.of("Deployment")
        assert WORK in world.twin.objects
        assert world.holds("Stalled")
        assert world.condition("Ready")["reason"] == world.condition("Stalled")["reason"]
        assert "correct what Stalled names" in world.condition("Suspended")["message"]
        status = world.status()
        assert status["phase"] == "Suspended"
        assert status["rollout"] == {"replicas": 0, "readyReplicas": 0, "selector": "rljob.dev/job=x,rljob.dev/role=rollout"}
        assert world.events().count("Suspended") == 1
        if mended is not None:
            world.spec(suspend=False)
            await asyncio.sleep(60)
            assert not world.pods(), "a spec that is refused sets nothing going"
            world.spec(**mended)
            await until(lambda: world.holds("Ready") and len(world.pods()) == 3)
            await asyncio.sleep(3000)
            assert not world.holds("Failed"), "its time counts anew"

    living(story)


def test_a_running_job_whose_new_spec_is_refused_is_looked_after_as_before() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(3, "Training")
        await started(world, rollout={"replicas": 1}, ttlSecondsAfterFinished=0)
        await until(lambda: world.status().get("iteration") == 3)
        uids = {name: pod["metadata"]["uid"] for name, pod in world.twin.of("Pod").items()}
        world.spec(rollout={"replicas": 5}, iterations=20, templates={"reward": {"spec": {"containers": [{"name": "rewrd", "env": []}]}}})
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        world.lose("x-worker-0", 1.0)
        world.twin.erase(Ref("Deployment", "default", "x-reward"))
        world.reports["x"] = report(9, "Rollout")
        await asyncio.sleep(120)
        assert world.status()["iteration"] == 9
        assert world.status()["phase"] == "Rollout"
        assert world.status()["rollout"]["readyReplicas"] == 1
        now = {name: pod["metadata"]["uid"] for name, pod in world.twin.of("Pod").items()}
        assert now.keys() == uids.keys()
        assert {name for name in now if now[name] != uids[name]} == {"x-worker-0"}
        assert world.twin.of("Deployment").keys() == {"x-reward"}
        assert world.condition("Ready")["reason"] == world.condition("Stalled")["reason"] == "InvalidSpec"
        assert not world.holds("Reconciling")
        assert world.events().count("InvalidSpec") == 1
        busy = [ApiError(429, "TooManyRequests", "busy")]
        world.twin.fault = lambda verb, kind: busy.pop() if (verb, kind) == ("delete", "Pod") and busy else None
        world.pod_ended("x-master", "Succeeded")
        await until(lambda: world.holds("Succeeded") and world.pods() == {"x-master"})
        await asyncio.sleep(60)
        assert not busy
        assert world.holds("Stalled"), "its spec is refused as before"
        assert not world.twin.of("Deployment")
        world.spec(templates={})
        await until(lambda: world.holds("Ready") and len(world.pods()) == 7)
        assert not world.holds("Succeeded"), "the spec asks for more"

    living(story)


def test_an_operator_that_was_started_under_a_refused_spec_tells_how_the_job_goes_on() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(3, "Training")
        await started(world, rollout={"replicas": 1})
        await world.kill()
        world.spec(templates={"worker": {"sepc": {}}})
        world.start()
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        world.reports["x"] = report(9, "Rollout")
        world.lose("x-rollout-0", 1.0)
        await until(lambda: world.status().get("iteration") == 9 and world.status()["phase"] == "Rollout")
        await until(lambda: world.status()["rollout"]["replicas"] == 0)
        assert world.pods() == {"x-master", "x-worker-0"}, "what should be is not known"
        world.spec(templates={})
        await until(lambda: world.holds("Ready") and "x-rollout-0" in world.pods())

    living(story)


@pytest.mark.parametrize("ended", ["before", "after", "after a restart"])
def test_a_pause_that_a_refused_spec_asks_for_leaves_a_master_that_is_done(ended: str) -> None:
    async def story(world: World) -> None:
        await started(world)
        if ended == "before":
            world.pod_ended("x-master", "Succeeded")
            await until(lambda: world.holds("Succeeded"))
        world.spec(templates={"worker": {"sepc": {}}})
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        if ended == "after a restart":
            await world.kill()
            world.start()
            await asyncio.sleep(30)
        if ended != "before":
            world.pod_ended("x-master", "Succeeded")
        if ended == "after a restart":
            await until(lambda: world.pods() == {"x-master"})
        world.spec(suspend=True)
        await asyncio.sleep(60)
        assert world.pods() == {"x-master"}
        assert world.holds("Succeeded")
        assert not world.holds("Suspended")
        assert world.status()["phase"] == "Succeeded"
        assert world.status()["completionTime"] < iso(clock() - 30)
        world.spec(templates={})
        await until(lambda: not world.holds("Stalled"))
        assert world.holds("Succeeded")

    living(story)


def test_a_failed_job_is_tried_again_at_its_first_change_also_if_it_bears_nothing() -> None:
    async def story(world: World) -> None:
        await started(world, backoffLimit=0)
        await asyncio.sleep(60)
        world.pod_ended("x-worker-0")
        await until(lambda: world.holds("Failed"))
        await asyncio.sleep(60)
        assert [len(uids) for uids in world.status()["backoff"]["ended"].values()] == [1], "however often it is looked at"
        world.spec(ttlSecondsAfterFinished=100_000)
        await until(lambda: world.holds("Ready"))
        await asyncio.sleep(60)
        assert not world.holds("Failed")
        world.pod_ended("x-worker-0")
        await until(lambda: world.holds("Failed"))

    living(story)


@pytest.mark.parametrize("reason", ["OutOfcpu", "OutOfmemory", "OutOfexample.com/gpu"])
def test_a_pod_that_a_kubelet_has_no_room_for_is_told_and_is_no_fault_of_the_job(reason: str) -> None:
    async def story(world: World) -> None:
        await started(world, backoffLimit=0)
        world.pod_ended("x-worker-0", reason=reason)
        await until(lambda: world.condition("Reconciling").get("reason") == "RefusedByNode")
        assert reason in world.condition("Ready")["message"]
        await asyncio.sleep(60)
        assert not world.holds("Failed")
        assert "x-worker-0" in world.pods()

    living(story)


@pytest.mark.parametrize("container", ["vault-agent", "master"])
def test_a_container_that_is_not_the_jobs_own_does_not_end_it(container: str) -> None:
    async def story(world: World) -> None:
        await started(world, backoffLimit=0)
        world.container_ended("x-master", container, EXIT_CONFIGURATION, "panic: nil", restarts=3)
        await asyncio.sleep(60)
        assert world.holds("Failed") == (container == "master")
        assert world.holds("Ready") == (container != "master")
        assert ("lastFailure" in world.status()) == (container == "master")

    living(story)


def test_a_rollout_pod_that_always_fails_is_told_and_does_not_end_the_job() -> None:
    async def story(world: World) -> None:
        world.reports["x"] = report(3, "Training")
        await started(world, rollout={"replicas": 2}, backoffLimit=2)
        world.container_ended("x-rollout-1", "vllm", 137, "OOMKilled", restarts=7)
        world.starts = lambda pod: pod["metadata"]["name"] != "x-rollout-0"

        async def refused() -> None:
            uid = world.twin.of("Pod")["x-rollout-0"]["metadata"]["uid"]
            world.pod_ended("x-rollout-0", reason="TopologyAffinityError")
            await until(lambda: world.condition("Ready")["reason"] == "RefusedByNode")
            await until(lambda: world.twin.of("Pod").get("x-rollout-0", {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)

        for _ in range(4):
            await refused()
        assert not world.holds("Failed")
        assert len(world.pods()) == 4

    living(story)


def test_an_operator_of_several_namespaces_serves_those_that_are_there() -> None:
    async def story(world: World) -> None:
        assert world.operator is not None
        world.operator.leading = True
        world.twin.forbidden = {"gone"}
        busy = [ApiError(503, "ServiceUnavailable", "busy") for _ in range(2)]  # RLJobs are known before pods
        world.twin.fault = lambda verb, kind: busy.pop() if (verb, kind) == ("list", "Pod") and busy else None
        assert "are not complete" in world.operator.ready()
        world.add(rljob())
        await until(lambda: world.holds("Ready"))
        other = rljob()
        other["metadata"]["namespace"] = "gone"
        world.twin.add(other)
        await asyncio.sleep(3600)
        for stream in world.operator.streams:
            if stream.namespace == "default":
                stream.heard = clock()  # by a bookmark; the twin sends none
        assert (world.operator.health(), world.operator.ready()) == ("", "")
        assert not world.twin.of("Pod", "gone"), "what is there is not known"
        world.twin.forbidden.clear()
        await until(lambda: len(world.twin.of("Pod", "gone")) == 2)

    living(story, settings=Settings(namespaces=["default", "gone"]))


@pytest.mark.parametrize("namespaces", [["a", "b"], []])
def test_an_operator_that_may_look_nowhere_is_started_anew(namespaces: list[str]) -> None:
    async def story(world: World) -> None:
        assert world.operator is not None
        world.operator.leading = True
        world.twin.forbidden = {*namespaces} or {None}
        await asyncio.sleep(600)
        assert "are not complete" in world.operator.ready()
        assert "no sign of life" in world.operator.health()

    living(story, settings=Settings(namespaces=namespaces))


@pytest.mark.parametrize("role", ["worker", "reward"])
def test_a_misspelt_field_of_a_template_is_a_refusal_with_the_servers_words(role: str) -> None:
    async def story(world: World) -> None:
        await started(world)
        world.spec(templates={role: {"spec": {"nodeselector": {"disk": "fast"}}}})
        await until(lambda: world.condition("Reconciling").get("reason") == "Refused")
        message = world.condition("Reconciling")["message"]
        assert "strict decoding error: unknown field" in message
        assert 'nodeselector"; a field of spec.templates is misspelt, or newer than this cluster; the operator tries again' in message
        world.spec(templates={role: {"spec": {"nodeSelector": {"disk": "fast"}}}})
        await until(lambda: world.holds("Ready") and world.condition("Reconciling").get("reason") != "Refused")

    living(story)


def test_the_progress_of_a_phase_goes_with_it() -> None:
    async def story(world: World) -> None:
        await started(world)
        answers = {"done": 258, "total": 258, "unit": "answers"}
        world.reports["x"] = report(3, "Evaluating", progress=answers)
        await until(lambda: world.status().get("progress") == answers)
        await world.kill()
        world.start()
        await asyncio.sleep(0.5)
        assert world.status()["progress"] == answers, "an operator that has only begun knows nothing better"
        world.reports["x"] = report(3, "Finishing")
        await until(lambda: world.status()["phase"] == "Finishing")
        await until(lambda: "progress" not in world.status())
        world.reports["x"] = report(4, "Rollout", progress=answers)
        await until(lambda: world.status().get("progress") == answers)
        world.spec(suspend=True)
        await until(lambda: world.status()["phase"] == "Suspended")
        assert "progress" not in world.status()

    living(story)


def test_a_new_job_says_nothing_that_an_earlier_one_of_its_name_has_said() -> None:
    async def story(world: World) -> None:
        await started(world)
        world.reports["x"] = report(9, reward=0.9)
        await asyncio.sleep(30)
        failure = {"stage": "vllm", "pod": "worker-0", "reason": "Exit1", "message": "of the old job"}
        world.pod_ended("x-master", "Succeeded", said=json.dumps(report(10, "Succeeded", reward=0.95, lastFailure=failure)))
        await until(lambda: world.holds("Succeeded"))
        del world.reports["x"]
        world.twin.erase(Ref("RLJob", "default", "x"))
        world.add(rljob(iterations=50))
        await until(lambda: bool(world.status().get("conditions")))
        told = world.status()
        assert {told.get(name) for name in ("iteration", "reward", "policyVersion", "lastFailure")} == {None}
        await until(lambda: world.holds("Ready"))
        world.reports["x"] = report(1, "WarmStart")
        await asyncio.sleep(60)
        told = world.status()
        assert (told["iteration"], told.get("reward"), told.get("lastFailure")) == (1, None, None)

    living(story)


def test_a_deployment_whose_newest_pods_do_not_come_up_is_told() -> None:
    async def story(world: World) -> None:
        await started(world)
        reward = Ref("Deployment", "default", "x-reward")
        # One pod of the older template answers still, one of the newest does not become ready.
        world.twin.set_status(reward, replicas=2, updatedReplicas=1, availableReplicas=1)
        await until(lambda: not world.holds("Ready"))
        assert world.condition("Ready")["reason"] == "PodsStarting"
        assert "waiting for x-reward" in world.condition("Ready")["message"]
        late = 'ReplicaSet "x-reward-5d8" has timed out progressing.'
        world.twin.set_status(reward, conditions=[{"type": "Progressing", "status": "False", "reason": LATE, "message": late}])
        await until(lambda: world.condition("Ready")["reason"] == LATE)
        assert 'Deployment x-reward: ReplicaSet "x-reward-5d8" has timed out progressing; its newest' in world.condition("Ready")["message"]
        # What its pods say themselves is more telling.
        labels = world.twin.objects[reward]["spec"]["template"]["metadata"]["labels"]
        meta = {"name": "x-reward-5d8-abc", "namespace": "default", "labels": labels}
        world.twin.add({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}, "kube-controller-manager")
        world.pod_waits("x-reward-5d8-abc", "ErrImagePull", "no such image")
        await until(lambda: world.condition("Ready")["reason"] == "ImagePullFailed")
        world.twin.erase(Ref("Pod", "default", "x-reward-5d8-abc"))
        done = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
        world.twin.set_status(reward, replicas=1, updatedReplicas=1, availableReplicas=1, conditions=[done])
        await until(lambda: world.holds("Ready"))

    living(story)


def test_a_pod_that_waited_for_long_and_starts_now_is_no_bad_news() -> None:
    """Its Deployment goes on saying for how long until the pod is ready."""

    async def story(world: World) -> None:
        await started(world)
        reward, pod = Ref("Deployment", "default", "x-reward"), Ref("Pod", "default", "x-reward-1")
        labels = world.twin.objects[reward]["spec"]["template"]["metadata"]["labels"]
        meta = {"name": pod.name, "namespace": "default", "labels": labels}
        world.twin.add({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}, "kube-controller-manager")
        gated(world, pod.name)
        late = {"type": "Progressing", "status": "False", "reason": LATE, "message": "late."}
        world.twin.set_status(reward, replicas=1, updatedReplicas=1, availableReplicas=0, conditions=[late])
        await until(lambda: world.condition("Ready")["reason"] == "Queued")
        there = {"type": "PodScheduled", "status": "True", "lastTransitionTime": iso(clock())}
        world.twin.set_status(pod, phase="Pending", conditions=[there])
        await until(lambda: world.condition("Ready")["reason"] == LATE)
        assert LATE not in world.events()

    living(story)


LATE = "ProgressDeadlineExceeded"
