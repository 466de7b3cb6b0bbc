"""The operator's process against a real API server: nothing twice, nothing left over, nothing written without need."""

import json
import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.handle import Cluster, KubectlError
from tests.controller.process import Process, install_crd

from rljob.controller.decide import SILENT_SECONDS

pytestmark = pytest.mark.slow

KINDS = "pods,deployments,replicasets,services,configmaps,persistentvolumeclaims,serviceaccounts,networkpolicies,poddisruptionbudgets"


@pytest.fixture
def server(api_server: Cluster) -> Cluster:
    install_crd(api_server)
    return api_server


@pytest.fixture
def namespace(server: Cluster) -> Iterator[str]:
    with server.namespace("rljob") as name:
        yield name


@pytest.fixture
def operator(server: Cluster, namespace: str, tmp_path: Path) -> Iterator[Process]:
    # A Lease that is short enough for a test is lost on a machine that is busy enough.
    process = Process(server, tmp_path, [namespace], leaderElection="{enabled: false}")
    process.start()
    yield process
    if process.running():
        process.stop()


def job(name: str, **spec: Any) -> dict[str, Any]:
    minimal = {"model": {"source": {"path": "/models/small"}}, "data": {"train": {"path": "/data/train.jsonl"}}, "iterations": 10}
    return {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": name}, "spec": minimal | spec}


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.2)


def at_rest[T](look: Callable[[], T], seconds: float = 3.0, within: float = 60.0) -> T:
    """What two looks, so many seconds apart, agree on."""
    end, seen = time.monotonic() + within, look()
    while True:
        time.sleep(seconds)
        before, seen = seen, look()
        if before == seen:
            return seen
        assert time.monotonic() < end, "it does not come to rest"


def children(server: Cluster, namespace: str, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = server.get(KINDS, "-l", f"rljob.dev/job={name}", namespace=namespace)["items"]
    return {(o["kind"], o["metadata"]["name"]): o for o in found}


def own(server: Cluster, namespace: str, name: str) -> dict[tuple[str, str], str]:
    """Objects that the operator made: kind and name to uid."""
    return {
        at: o["metadata"]["uid"]
        for at, o in children(server, namespace, name).items()
        if o["metadata"]["ownerReferences"][0]["kind"] == "RLJob"
    }


def complete(server: Cluster, namespace: str, name: str, count: int = 14) -> bool:
    return len(own(server, namespace, name)) == count


def test_an_operator_killed_twenty_times_makes_nothing_twice(server: Cluster, namespace: str, tmp_path: Path) -> None:
    luck = random.Random(0)
    # A killed leader's Lease would hold the next one up: here, each starts at once.
    operator = Process(server, tmp_path, [namespace], leaderElection="{enabled: false}")
    operator.start()
    for name in ("a", "b", "c"):
        server.apply(job(name), namespace=namespace)
    for turn in range(20):
        # Before that it only imports and lists.
        eventually(lambda: "are known after" in operator.log.read_text())
        time.sleep(luck.uniform(0.0, 1.5))
        operator.kill()
        if turn == 10:
            server.kubectl("delete", "pod", "a-worker-0", "-n", namespace, "--wait=false", "--grace-period=0", "--force")
            server.kubectl("scale", "rljob/b", "--replicas=2", "-n", namespace)
        operator.start()
    for name, count in (("a", 14), ("b", 17), ("c", 14)):
        eventually(lambda name=name, count=count: complete(server, namespace, name, count))  # type: ignore[misc]
    uids = {o["metadata"]["uid"] for o in server.get("rljobs", namespace=namespace)["items"]}
    made = server.get(KINDS, "-l", "app.kubernetes.io/managed-by=rljob", namespace=namespace)["items"]
    owners = {
        owner["uid"]
        for o in made
        if o["kind"] not in ("ReplicaSet",)
        for owner in o["metadata"]["ownerReferences"]
        if owner["kind"] == "RLJob"
    }
    assert owners == uids
    server.kubectl("delete", "rljobs", "--all", "-n", namespace)
    eventually(lambda: not server.get(KINDS, "-l", "app.kubernetes.io/managed-by=rljob", namespace=namespace)["items"])
    operator.stop()


def versions(server: Cluster, namespace: str) -> dict[str, str]:
    return {
        f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"]
        for o in server.get(f"rljobs,{KINDS}", namespace=namespace)["items"]
    }


def told(server: Cluster, namespace: str) -> int:
    """Events that are about jobs: the cluster's own controllers tell of claims and pods when they like."""
    return len(server.get("events", "--field-selector=involvedObject.kind=RLJob", namespace=namespace)["items"])


def youngest_pod(server: Cluster, namespace: str) -> float:
    """Its age in seconds."""
    pods = server.get("pods", namespace=namespace)["items"]
    return time.time() - max(datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp() for pod in pods)


def ready(server: Cluster, namespace: str) -> dict[str, Any]:
    """The condition of job `a`."""
    conditions = server.get("rljob/a", namespace=namespace)["status"].get("conditions", [])
    return next((c for c in conditions if c["type"] == "Ready"), {})


def test_applied_again_nothing_changes(server: Cluster, namespace: str, operator: Process) -> None:
    server.apply(job("a"), namespace=namespace)
    eventually(lambda: complete(server, namespace, "a"))
    # This cluster has no scheduler, which is told only after a while, of each pod in its turn.
    eventually(lambda: "no scheduler has said anything of pod a-" in ready(server, namespace).get("message", ""))
    eventually(lambda: youngest_pod(server, namespace) > SILENT_SECONDS + 6)
    before, events = at_rest(lambda: (versions(server, namespace), told(server, namespace)))
    server.apply(job("a"), namespace=namespace)
    server.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", "-n", namespace, stdin=json.dumps(job("a")))
    time.sleep(3)
    operator.stop()
    operator.start()
    eventually(lambda: "are known after" in operator.log.read_text())
    time.sleep(3)
    assert versions(server, namespace) == before
    assert told(server, namespace) == events
    assert operator.get("/healthz").status_code == 200
    assert operator.get("/readyz").status_code == 200


EDITS = [
    ("service/a-master", '[{"op":"replace","path":"/spec/ports/0/port","value":1}]'),
    ("deployment/a-reward", '[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"evil"}]'),
    ("deployment/a-reward", '[{"op":"remove","path":"/spec/template/spec/containers/0/env"}]'),
    ("configmap/a-config", '[{"op":"remove","path":"/data"}]'),
    ("networkpolicy/a-master", '[{"op":"remove","path":"/spec/ingress/0/ports"}]'),
    ("pod/a-master", '[{"op":"replace","path":"/spec/containers/0/image","value":"evil"}]'),
    ("pod/a-worker-0", '[{"op":"remove","path":"/metadata/labels/app.kubernetes.io~1managed-by"}]'),
    ("serviceaccount/a-worker", '[{"op":"remove","path":"/metadata/ownerReferences"}]'),
    ("poddisruptionbudget/a-reward", '[{"op":"replace","path":"/spec/maxUnavailable","value":0}]'),
    ("persistentvolumeclaim/a-work", '[{"op":"remove","path":"/metadata/labels/app.kubernetes.io~1managed-by"}]'),
]


def content(server: Cluster, namespace: str, what: str) -> str:
    try:
        found = server.get(what, namespace=namespace)
    except KubectlError:
        return "gone for a moment"
    meta = {name: found["metadata"].get(name) or {} for name in ("labels", "annotations", "ownerReferences")}
    meta["annotations"].pop("deployment.kubernetes.io/revision", None)
    # A Service that no apply can mend is made anew, with another address.
    for name in ("clusterIP", "clusterIPs"):
        found.get("spec", {}).pop(name, None)
    return json.dumps([meta, found.get("spec"), found.get("data")], sort_keys=True)


def events(server: Cluster, namespace: str) -> list[dict[str, Any]]:
    """What the operator told people."""
    found = server.get("events", "--field-selector", "involvedObject.kind=RLJob", namespace=namespace)["items"]
    return [event for event in found if event["reportingComponent"] == "rljob.dev/operator"]


@pytest.mark.parametrize("asleep", [False, True])
def test_what_is_edited_by_hand_is_repaired(server: Cluster, namespace: str, operator: Process, asleep: bool) -> None:
    server.apply(job("a"), namespace=namespace)
    eventually(lambda: complete(server, namespace, "a"))
    before = at_rest(lambda: {what: content(server, namespace, what) for what, _ in EDITS})
    if asleep:
        operator.stop()
    for what, patch in EDITS:
        server.kubectl("patch", what, "-n", namespace, "--type=json", "-p", patch)
    if asleep:
        operator.start()
    for what in before:
        eventually(lambda what=what: content(server, namespace, what) == before[what])  # type: ignore[misc]
    told = at_rest(lambda: [e["message"] for e in events(server, namespace) if e["reason"] == "Repaired"])
    assert {message.split()[1] for message in told} == {what.partition("/")[2] for what, _ in EDITS}, told
    assert not [e["message"] for e in events(server, namespace) if e["reason"] in ("PodMade", "PodLost", "Remade")]


def test_a_volume_grown_by_hand_stays_so_while_the_rest_of_its_claim_is_repaired(server: Cluster, namespace: str, tmp_path: Path) -> None:
    growing = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": namespace}, "provisioner": "none"}
    server.apply(growing | {"allowVolumeExpansion": True})
    operator = Process(server, tmp_path, [namespace], leaderElection="{enabled: false}", storageClass=namespace)
    operator.start()
    server.apply(job("a"), namespace=namespace)
    eventually(lambda: complete(server, namespace, "a"))
    claim, bound = "persistentvolumeclaim/a-work", {"status": {"phase": "Bound", "capacity": {"storage": "100Gi"}}}
    server.kubectl("patch", claim, "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(bound))
    grown = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}, "spec": {"resources": {"requests": {"storage": "500Gi"}}}}
    server.kubectl("patch", claim, "-n", namespace, "--type=merge", "-p", json.dumps(grown))

    def there() -> dict[str, Any]:
        return server.get(claim, namespace=namespace)

    eventually(lambda: there()["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "rljob")
    assert at_rest(lambda: there()["spec"]["resources"]["requests"]["storage"]) == "500Gi"
    assert operator.stop() == 0
    server.kubectl("delete", "storageclass", namespace)


def test_a_changed_spec_takes_away_what_it_no_longer_says(server: Cluster, namespace: str, operator: Process) -> None:
    more = {"reward": {"spec": {"nodeSelector": {"disk": "fast"}}}}
    server.apply(job("a", templates=more), namespace=namespace)
    eventually(lambda: complete(server, namespace, "a"))
    uids = own(server, namespace, "a")
    server.apply(job("a"), namespace=namespace)
    eventually(lambda: "nodeSelector" not in server.get("deployment/a-reward", namespace=namespace)["spec"]["template"]["spec"])
    assert own(server, namespace, "a") == uids


def test_suspended_deleted_finished(server: Cluster, namespace: str, operator: Process) -> None:
    server.apply(job("a"), namespace=namespace)
    eventually(lambda: complete(server, namespace, "a"))
    server.kubectl("patch", "rljob/a", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    eventually(lambda: not any(kind == "Pod" for kind, _ in children(server, namespace, "a")))
    server.wait("rljob/a", "condition=Suspended", namespace=namespace)
    server.kubectl("patch", "rljob/a", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    eventually(lambda: complete(server, namespace, "a"))
    status = {"status": {"phase": "Succeeded"}}
    server.kubectl("patch", "pod/a-master", "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status))
    server.wait("rljob/a", "condition=Succeeded", namespace=namespace)
    eventually(lambda: [name for kind, name in children(server, namespace, "a") if kind == "Pod"] == ["a-master"])
    server.kubectl("delete", "rljob/a", "-n", namespace)
    eventually(lambda: not children(server, namespace, "a"))


def test_a_quota_and_a_bad_spec_say_so(server: Cluster, namespace: str, operator: Process) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}
    server.apply(quota, namespace=namespace)
    eventually(lambda: "pods" in server.get("resourcequota/q", namespace=namespace).get("status", {}).get("hard", {}))
    server.apply(job("a"), namespace=namespace)
    eventually(lambda: ready(server, namespace).get("reason") == "QuotaExceeded", 30)
    assert "exceeded quota: q" in ready(server, namespace)["message"]
    server.kubectl("delete", "rljob/a", "-n", namespace)
    server.apply(job("a", data={"train": {"path": "train.jsonl"}}), namespace=namespace)
    eventually(lambda: ready(server, namespace).get("reason") == "InvalidSpec", 30)
    assert "spec.data.train.path" in ready(server, namespace)["message"]


def test_a_horizontal_pod_autoscaler_scales_the_rollouts(server: Cluster, namespace: str, operator: Process) -> None:
    def rollouts() -> list[str]:
        return [name for kind, name in children(server, namespace, "a") if kind == "Pod" and "rollout" in name]

    server.apply(job("a", rollout={"replicas": 1}), namespace=namespace)
    eventually(lambda: rollouts() == ["a-rollout-0"])
    server.kubectl("autoscale", "rljob/a", "--min=3", "--max=5", "-n", namespace)
    # It looks every 15 s, and anew at what kinds there are every 30 s.
    eventually(lambda: len(rollouts()) == 3, 120)
    server.kubectl("patch", "hpa/a", "-n", namespace, "--type=merge", "-p", '{"spec":{"minReplicas":1,"maxReplicas":2}}')
    eventually(lambda: len(rollouts()) == 2, 60)
    assert server.get("rljob/a", namespace=namespace)["spec"]["rollout"]["replicas"] == 2


def test_a_second_operator_waits_and_takes_over(server: Cluster, namespace: str, tmp_path: Path) -> None:
    lease = f"{{lease: {namespace}, seconds: 15}}"
    operators = []
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        operators.append(Process(server, tmp_path / name, [namespace], leaderElection=lease))
    first, second, third = operators
    try:
        first.start()
        eventually(lambda: "acts" in first.log.read_text())
        second.start()
        third.start()
        eventually(lambda: all("metrics and probes" in each.log.read_text() for each in (second, third)))
        time.sleep(6)
        assert "acts" not in second.log.read_text()
        assert second.get("/readyz").status_code == 200
        assert third.stop() == 0, "one that stands by ends when it is told to"
        assert first.stop() == 0
        eventually(lambda: "acts" in second.log.read_text())
        server.apply(job("a"), namespace=namespace)
        eventually(lambda: complete(server, namespace, "a"))
        server.kubectl("patch", f"lease/{namespace}", "-n", "default", "--type=merge", "-p", '{"spec":{"holderIdentity":"somebody else"}}')
        eventually(lambda: not second.running())
        assert "lost to somebody else" in second.log.read_text()
    finally:
        for each in operators:
            if each.running():
                each.stop()
