"""What is read out of a cluster's objects."""

import pytest
from tests.remote.twins import NOW, STATUS, MemoryCluster, cluster, container, job, pod

from rljob.api import ConfigurationError
from rljob.remote.change import scale, suspend
from rljob.remote.cluster import Json
from rljob.remote.observe import find, pod_state, snapshot, typed


def test_a_snapshot_holds_the_job_its_pods_in_their_order_and_its_events() -> None:
    seen = snapshot(cluster(), "sums", NOW)
    assert (seen.phase, seen.status.iteration, seen.replicas, seen.ready_replicas, seen.age) == ("Rollout", 7, 2, 1, 754.0)
    assert [p.short for p in seen.pods] == ["master", "worker-0", "rollout-0", "rollout-1", "reward"]
    assert [e.reason for e in seen.events] == ["Created", "Replaced", "BackOff"]
    assert seen.holds("Ready")
    assert not seen.holds("Stalled")


def test_a_job_that_no_operator_has_seen_is_all_zeros() -> None:
    seen = snapshot(cluster(status={}), "sums", NOW)
    assert (seen.phase, seen.seen, seen.status.iterations, seen.status.rewards) == ("", False, 20, [])


def test_a_phase_that_is_the_operators_own_is_shown_as_it_is() -> None:
    assert snapshot(cluster(status=STATUS | {"phase": "Suspended"}), "sums", NOW).phase == "Suspended"


def test_what_another_version_wrote_is_left_out_and_named() -> None:
    failure = {**STATUS["lastFailure"], "novelty": 3}
    seen = snapshot(cluster(status=STATUS | {"heldOut": [{"accuracy": "high"}], "lastFailure": failure, "novelty": 3}), "sums", NOW)
    assert seen.unreadable == ("heldOut",)
    assert (seen.status.held_out, seen.status.iteration) == ([], 7)
    assert seen.status.last_failure == snapshot(cluster(), "sums", NOW).status.last_failure, "but for what a newer release has added"


def test_an_older_generation_was_not_seen_yet() -> None:
    assert not snapshot(cluster(generation=4), "sums", NOW).seen


@pytest.mark.parametrize(
    ("found", "state", "message"),
    [
        (pod("x", "worker", container("a"), container("b")), "Running", ""),
        (pod("x", "worker", container("a", False, waiting={"reason": "ContainerCreating"}), phase="Pending"), "Pending", ""),
        (
            pod("x", "worker", container("a", False, waiting={"reason": "ErrImagePull", "message": "no such image"}), phase="Pending"),
            "ErrImagePull",
            "a: no such image",
        ),
        (
            pod(
                "x",
                "worker",
                container("a", False, 3, waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 137, "reason": "OOMKilled"}),
            ),
            "CrashLoopBackOff",
            "a: ended with status 137 (OOMKilled)",
        ),
        (
            pod(
                "x",
                "master",
                container("a", False, terminated={"exitCode": 2, "reason": "Error", "message": "log\nerror: no model\n"}),
                phase="Failed",
            ),
            "Error",
            "a: ended with status 2: error: no model",
        ),
        (pod("x", "master", container("a", False, terminated={"exitCode": 0, "reason": "Completed"}), phase="Succeeded"), "Completed", ""),
        (
            pod(
                "x",
                "worker",
                phase="Pending",
                conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}],
            ),
            "Unschedulable",
            "0/3 nodes",
        ),
        (pod("x", "worker", phase="Failed", reason="Evicted", message="low on memory"), "Evicted", "low on memory"),
    ],
)
def test_a_pods_state_is_the_first_thing_that_keeps_it_from_running(found: Json, state: str, message: str) -> None:
    seen = pod_state(found)
    assert (seen.state, seen.message) == (state, message)


def test_only_containers_that_stay_count_as_ready() -> None:
    found = pod("x", "master", container("master"))
    found["spec"]["initContainers"] = [{"name": "prepare"}]
    found["status"]["initContainerStatuses"] = [container("prepare", False, terminated={"exitCode": 0})]
    seen = pod_state(found)
    assert (seen.ready, seen.counted, seen.containers, dict(seen.started)) == (1, 1, ("prepare", "master"), {"prepare": 0, "master": 0})


def test_a_job_that_is_not_there_has_a_near_name() -> None:
    with pytest.raises(ConfigurationError, match=r"no RLJob 'sum' in namespace team-a \(context test, https://test\); did you mean sums\?"):
        find(cluster(), "sum")


def test_a_job_of_another_namespace_is_pointed_at() -> None:
    there = job() | {"metadata": {"name": "sorting", "namespace": "team-b"}}
    api = cluster()
    api.objects["/apis/rljob.dev/v1alpha1/rljobs"] = {"items": [job(), there]}
    with pytest.raises(ConfigurationError, match="there is one in namespace team-b: add -n team-b"):
        find(api, "sorting")


def test_scaling_goes_through_the_subresource_and_suspending_through_the_spec() -> None:
    api = cluster()
    assert scale(api, "sums", 4) == (2, 4)
    assert suspend(api, "sums", True)
    assert not suspend(api, "sums", False)
    path = "/apis/rljob.dev/v1alpha1/namespaces/team-a/rljobs/sums"
    assert api.patches == [(f"{path}/scale", {"spec": {"replicas": 4}}), (path, {"spec": {"suspend": True}})]


def test_what_makes_no_sense_is_refused_before_anything_is_sent() -> None:
    api: MemoryCluster = cluster(status=STATUS | {"phase": "Succeeded"})
    with pytest.raises(ConfigurationError, match=r"spec\.rollout\.replicas: -1 is not possible; give a number from 0 on"):
        scale(api, "sums", -1)
    with pytest.raises(ConfigurationError, match=r"sums has ended \(Succeeded\); there is nothing to suspend"):
        suspend(api, "sums", True)
    assert api.patches == []


def test_a_job_of_the_cluster_is_read_as_a_file_is() -> None:
    read = typed(cluster(files={"claim": "data"}), "sums")
    assert (read.metadata.name, read.metadata.namespace, read.spec.iterations, read.spec.rollout.replicas) == ("sums", "team-a", 20, 2)
    with pytest.raises(ConfigurationError, match=r"RLJob sums in namespace team-a.*moonshot"):
        typed(cluster(moonshot=3), "sums")
