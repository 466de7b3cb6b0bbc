"""The screen, as a person sees it, and what it tells to do."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import RenderableType
from tests.remote.twins import NOW, STATUS, cluster, container, event, job, pod

from rljob.cli.cluster import _lines
from rljob.cli.output import console
from rljob.remote.advice import advice
from rljob.remote.cluster import Target
from rljob.remote.observe import Snapshot, build, pod_state, snapshot
from rljob.remote.view import screen, table_of_jobs

SCREENS = Path(__file__).parent / "screens"


def text(what: RenderableType, width: int = 120) -> str:
    out = io.StringIO()
    console(out, width).print(what)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def seen(pods: tuple[dict[str, Any], ...] = (), **changes: Any) -> Snapshot:
    """The job with other pods and no events."""
    return build(job(**changes), [pod_state(p) for p in pods], [], NOW)


_DONE = pod("master", "master", container("master", False, terminated={"exitCode": 0}), phase="Succeeded")
_DIED = pod("master", "master", container("master", False, terminated={"exitCode": 2, "message": "error: no model"}), phase="Failed")
_STALLED = {"type": "Stalled", "status": "True", "reason": "Configuration", "message": "spec.model.source.path: no such folder"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("running", snapshot(cluster(), "sums", NOW)),
        ("unseen", seen(status={}, created=40.0)),
        ("suspended", seen(status=STATUS | {"phase": "Suspended", "lastFailure": None, "nodes": []}, suspend=True)),
        ("succeeded", seen((_DONE,), status=STATUS | {"phase": "Succeeded", "iteration": 20, "lastFailure": None})),
        ("failed", seen((_DIED,), status=STATUS | {"phase": "Failed", "conditions": [_STALLED, _STALLED | {"type": "Failed"}]})),
    ],
)
def test_the_screen_is_the_one_that_was_looked_at(name: str, found: Snapshot) -> None:
    """A golden file: after a wanted change, remove it, run the test, look at what it wrote and commit that."""
    golden = SCREENS / f"{name}.txt"
    shown = text(screen(found, NOW))
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(shown)
        pytest.fail(f"{golden} was written; look at it")
    assert shown == golden.read_text()


def test_how_accelerators_are_shared_stands_on_the_screen_where_there_are_any() -> None:
    sharing = {"mode": "claim", "reason": "the cluster has the DeviceClass gpu.nvidia.com"}
    shown = text(screen(seen(status=STATUS | {"sharing": sharing}), NOW))
    assert "accelerators    shared by claim: the cluster has the DeviceClass gpu.nvidia.com\n" in shown
    nothing = {"mode": "none", "reason": "accelerator.type is cpu: there are no devices to share"}
    assert "accelerators" not in text(screen(seen(status=STATUS | {"sharing": nothing}), NOW))


def test_what_the_cluster_says_is_shown_as_it_is_and_does_nothing_to_the_terminal() -> None:
    said = "RuntimeError: [/pytorch/gloo/pair.cc:544] volumes=[work], train.jsonl:100: \x1b[2Jcleared\nnext"
    conditions = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": said}]
    found = cluster(status=STATUS | {"conditions": conditions})
    events = "/api/v1/namespaces/team-a/events"
    found.objects[events] = {"items": [event(5, "FailedMount", said, "sums-master", "Warning")]}
    shown = text(screen(snapshot(found, "sums", NOW), NOW), 200)
    assert shown.count("RuntimeError: [/pytorch/gloo/pair.cc:544] volumes=[work], train.jsonl:100: ?[2Jcleared next\n") == 2


def test_where_nobody_looks_what_is_new_is_one_line_however_long() -> None:
    failure = {"stage": "train", "pod": "worker-0", "reason": "StepFailed", "message": "the trainer [rank0] ended: " + "word " * 40 + "end"}
    out = io.StringIO()
    api = cluster(status=STATUS | {"phase": "Succeeded", "lastFailure": failure})
    assert _lines(api, "sums", 1.0, console(out, 80)) == 0
    assert f"worker-0 failed at train: {failure['message']}\n" in out.getvalue()


def test_of_a_long_job_the_screen_says_when_the_first_figures_were() -> None:
    evaluations = [{"iteration": 600, "accuracy": 0.6}, {"iteration": 1000, "accuracy": 0.9}]
    long = STATUS | {"rewards": [0.74, 0.8, 0.899], "rewardsBefore": 800, "heldOut": evaluations}
    shown = text(screen(seen(status=long), NOW))
    assert "0.740 (iteration 801) → 0.899" in shown
    assert "60.0 % (after iteration 600) → 90.0 %" in shown


def test_the_screen_fits_a_narrow_terminal() -> None:
    shown = text(screen(snapshot(cluster(), "sums", NOW), NOW, "the cluster does not answer; trying again"), 60)
    assert max(len(line) for line in shown.splitlines()) <= 60
    assert "trying again" in shown


@pytest.mark.parametrize(
    ("state", "advised"),
    [
        (container("vllm", False, waiting={"reason": "ImagePullBackOff"}), "worker-0: the image cannot be pulled"),
        (container("vllm", False, terminated={"exitCode": 137, "reason": "OOMKilled"}), "raise its limit in spec.templates.worker"),
        (container("vllm", False, waiting={"reason": "CrashLoopBackOff"}), "kubectl rljob logs sums worker-0 --previous -n team-a"),
        (container("vllm", False, waiting={"reason": "CreateContainerConfigError"}), "a Secret, ConfigMap or volume"),
    ],
)
def test_every_state_that_needs_somebody_says_what_to_do(state: dict[str, Any], advised: str) -> None:
    (line,) = advice(seen((pod("worker-0", "worker", state),), status=STATUS | {"lastFailure": None}))
    assert advised in line


def test_a_job_without_room_is_told_so() -> None:
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    (line,) = advice(seen((pod("worker-0", "worker", phase="Pending", conditions=[waits]),), status=STATUS | {"lastFailure": None}))
    assert line.startswith("worker-0: no node has room")


@pytest.mark.parametrize("scheduled", [[], [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "pvc"}]])
def test_a_job_without_a_volume_is_not_told_that_nodes_have_no_room(scheduled: list[dict[str, Any]]) -> None:
    waits = {"type": "Ready", "status": "False", "reason": "VolumePending", "message": "pod sums-worker-0 waits for its volume"}
    status = STATUS | {"lastFailure": None, "conditions": [waits]}
    (line,) = advice(seen((pod("worker-0", "worker", phase="Pending", conditions=scheduled),), status=status))
    assert line.startswith("it waits for a volume: kubectl describe pvc CLAIM -n team-a says more")


def test_a_job_whose_pod_no_scheduler_looks_at_is_told_where_that_stands() -> None:
    waits = {
        "type": "Ready",
        "status": "False",
        "reason": "Unschedulable",
        "message": "no scheduler has said anything of pod sums-worker-0",
    }
    status = STATUS | {"lastFailure": None, "conditions": [waits]}
    (line,) = advice(seen((pod("worker-0", "worker", phase="Pending"),), status=status))
    assert line == "a pod waits for a node: the condition Ready says why, and what helps"


@pytest.mark.parametrize("phase", ["Succeeded", "Suspended", "Failed"])
def test_whose_spec_is_refused_is_told_so_however_the_job_stands(phase: str) -> None:
    refused = _STALLED | {"reason": "InvalidSpec"}
    conditions = [refused, {"type": phase, "status": "True", "reason": "Finished", "message": ""}]
    (line,) = advice(seen(status=STATUS | {"phase": phase, "conditions": conditions}))
    assert line.startswith("change what the condition Stalled names")


def test_every_command_that_is_advised_names_the_place_of_the_job() -> None:
    stands = job(status=STATUS | {"phase": "Failed"}, generation=9)
    stands["metadata"]["namespace"] = "default"
    options = Target(Path("/my configs/prod"), "prod", "default").options
    assert options == " --context prod --kubeconfig '/my configs/prod'"
    lines = advice(build(stands, [], [], NOW, options))
    for command in ("kubectl get deployments -A", "kubectl rljob logs sums worker-0", "kubectl delete rljob sums", "kubectl apply"):
        (line,) = {line for line in lines if command in line and "then change" not in line}
        where = line.partition(command)[2]
        assert where.startswith(options if command.endswith("-A") else f" -n default{options}")


def test_a_job_that_goes_its_way_needs_no_advice() -> None:
    assert advice(seen(status=STATUS | {"lastFailure": None})) == ()


def test_the_list_of_jobs_has_a_line_for_each() -> None:
    shown = text(table_of_jobs([job(), job(status={})], NOW, everywhere=True)).splitlines()
    assert shown[0].split() == ["NAMESPACE", "NAME", "PHASE", "ITERATION", "REWARD", "CURVE", "ROLLOUTS", "AGE"]
    assert shown[1].split() == ["team-a", "sums", "Rollout", "7/20", "0.430", "▁▁▃▅▆█", "1/2", "12:34"]
    assert shown[2].split() == ["team-a", "sums", "0/20", "0/2", "12:34"]
