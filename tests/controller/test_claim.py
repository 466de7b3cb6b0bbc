"""From `sharing: auto` to the same devices in three containers: the operator's process, the scheduler, a DRA driver, a kubelet."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.cluster.handle import Cluster, Object
from tests.controller.process import Process, install_crd
from tests.controller.test_real import eventually
from tests.manifests.test_on_a_node import STAND_INS, WORKER

from rljob.manifests.settings import Images
from rljob.plan.build import REWARD

# Fake devices.
pytestmark = [pytest.mark.slow, pytest.mark.own_cluster]

DEVICE_CLASS = "fake.rljob.dev"


def job(**accelerator: object) -> Object:
    """Stand-ins for every process, and nothing said of how devices are shared."""
    found: Object = yaml.safe_load(STAND_INS)
    found["spec"]["accelerator"] |= accelerator
    serve = ["/probe", "serve", f":{REWARD.number}", "fine"]
    little = {"requests": {"cpu": "50m", "memory": "64Mi"}}
    found["spec"]["templates"]["reward"] = {"spec": {"containers": [{"name": "reward", "command": serve, "resources": little}]}}
    return found


@pytest.fixture
def namespace(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """A namespace with an operator of its own."""
    cluster.devices(8)
    install_crd(cluster)
    images = json.dumps(dict.fromkeys(Images.model_fields, cluster.probe))
    devices = json.dumps({"nvidia": {"deviceClass": DEVICE_CLASS}})
    with cluster.namespace("claim") as name:
        cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-files"}, "data": {"train.jsonl": "{}"}}
        cluster.apply(files, name)
        operator = Process(cluster, tmp_path, [name], leaderElection="{enabled: false}", images=images, devices=devices)
        operator.start()
        yield name
        operator.stop()


def devices(cluster: Cluster, namespace: str) -> dict[str, str]:
    """What each container of the worker pod was shown."""
    return {
        container: cluster.kubectl("logs", WORKER, f"--container={container}", f"--namespace={namespace}").strip()
        for container in ("megatron", "vllm", "checkpoint-engine")
    }


def claims(cluster: Cluster, namespace: str) -> list[Object]:
    found: list[Object] = cluster.get("resourceclaims", namespace=namespace)["items"]
    return found


def test_auto_becomes_a_claim_and_every_container_sees_the_same_devices(cluster: Cluster, namespace: str) -> None:
    cluster.apply(job(), namespace)
    cluster.wait("rljob/demo", "condition=Ready", namespace, timeout=90)
    status = cluster.get("rljob/demo", namespace=namespace)["status"]
    assert status["sharing"] == {"mode": "claim", "reason": f"the cluster has the DeviceClass {DEVICE_CLASS}"}
    told = [event["message"] for event in cluster.get("events", namespace=namespace)["items"] if event["reason"] == "Started"]
    assert any("share their accelerators by `claim`" in message for message in told), told
    seen = devices(cluster, namespace)
    assert len(set(seen.values())) == 1, seen
    assert len(seen["vllm"].removeprefix("FAKE_DEVICES=").split(",")) == 2
    (claim,) = claims(cluster, namespace)
    assert claim["status"]["reservedFor"][0]["name"] == WORKER

    # A pod that is lost takes its claim along; the next one gets devices again, by the same choice.
    before = cluster.get(f"pod/{WORKER}", namespace=namespace)["metadata"]["uid"]
    cluster.kubectl("delete", "pod", WORKER, "-n", namespace, "--grace-period=1")
    eventually(lambda: _ready_again(cluster, namespace, before), 90)
    assert len(devices(cluster, namespace)["megatron"].removeprefix("FAKE_DEVICES=").split(",")) == 2
    assert cluster.get("rljob/demo", namespace=namespace)["status"]["sharing"]["mode"] == "claim"

    cluster.kubectl("delete", "rljob", "demo", "-n", namespace)
    eventually(lambda: not claims(cluster, namespace) and not cluster.get("resourceclaimtemplates", namespace=namespace)["items"], 90)


def _ready_again(cluster: Cluster, namespace: str, before: str) -> bool:
    """Another pod of the worker's name is ready."""
    pods = cluster.get("pods", f"--field-selector=metadata.name={WORKER}", namespace=namespace)["items"]
    return any(
        pod["metadata"]["uid"] != before and {"type": "Ready", "status": "True"}.items() <= condition.items()
        for pod in pods
        for condition in pod["status"].get("conditions", ())
    )
