"""The screen, as a person sees it, and what it tells to do."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from tests.remote.twins import NOW, STATUS, cluster, container, job, pod

from rljob.remote.advice import advice
from rljob.remote.observe import Snapshot, build, pod_state, snapshot
from rljob.remote.view import screen, table_of_jobs

SCREENS = Path(__file__).parent / "screens"


def text(what: RenderableType, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
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


@pytest.mark.parametrize("phase", ["Succeeded", "Suspended", "Failed"])
def test_whose_spec_is_refused_is_told_so_however_the_job_stands(phase: str) -> None:
    refused = _STALLED | {"reason": "InvalidSpec"}
    conditions = [refused, {"type": phase, "status": "True", "reason": "Finished", "message": ""}]
    (line,) = advice(seen(status=STATUS | {"phase": phase, "conditions": conditions}))
    assert line.startswith("change what the condition Stalled names")


def test_a_job_that_goes_its_way_needs_no_advice() -> None:
    assert advice(seen(status=STATUS | {"lastFailure": None})) == ()


def test_the_list_of_jobs_has_a_line_for_each() -> None:
    shown = text(table_of_jobs([job(), job(status={})], NOW, everywhere=True)).splitlines()
    assert shown[0].split() == ["NAMESPACE", "NAME", "PHASE", "ITERATION", "REWARD", "CURVE", "ROLLOUTS", "AGE"]
    assert shown[1].split() == ["team-a", "sums", "Rollout", "7/20", "0.430", "▁▁▃▅▆█", "1/2", "12:34"]
    assert shown[2].split() == ["team-a", "sums", "0/20", "0/2", "12:34"]
