"""A real kubelet runs rendered pods: order of start, shared volumes, host names, one claim for all. The processes are stand-ins."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.handle import Cluster

from rljob.api.load import parse
from rljob.manifests import Cluster as Offer
from rljob.manifests import Owner, Settings, render
from rljob.manifests.settings import Devices, Images
from rljob.plan import plan

# Fake devices.
pytestmark = pytest.mark.own_cluster

STAND_INS = """
apiVersion: rljob.dev/v1alpha1
kind: RLJob
metadata: {name: demo}
spec:
  model: {source: {scratch: {}}}
  data: {train: {path: train.jsonl}}
  warmStart: {}
  files: {configMap: demo-files}
  accelerator: {type: nvidia, perNode: 2}
  templates:
    master:
      spec:
        containers:
        - {name: prepare, command: [/probe, write, /rljob/work/ready, prepared], resources: &little {requests: {cpu: 50m, memory: 64Mi}}}
        - {name: master, command: [/probe, serve, ':8080', fine], resources: *little}
    worker:
      spec:
        containers:
        - &sidecar
          name: megatron
          command: [/probe, env, FAKE_DEVICES]
          resources: *little
          startupProbe: null
          livenessProbe: null
        - {<<: *sidecar, name: vllm}
        - {name: wait, command: [/probe, await, /rljob/work/ready]}
        - {name: checkpoint-engine, command: [/probe, env, FAKE_DEVICES], resources: *little}
"""
WORKER = "demo-worker-0"


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """Where the job's master and worker run, in a namespace that refuses pods which are not restricted."""
    cluster.devices(8)
    images = Images(**dict.fromkeys(Images.model_fields, cluster.probe))
    settings = Settings(images=images, devices={"nvidia": Devices(device_class="fake.rljob.dev")})
    job = parse(STAND_INS)
    with cluster.namespace("manifests") as name:
        cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        manifests = render(job, plan(job), Owner("demo", name, uid=None), settings, Offer((1, 36), frozenset({"fake.rljob.dev"})))
        files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-files"}, "data": {"train.jsonl": "{}"}}
        cluster.apply([files, *(m for m in manifests if m["kind"] != "Deployment")], name)
        cluster.wait(f"pod/{WORKER}", "condition=Ready", name, timeout=90)
        yield name


def said(cluster: Cluster, namespace: str, container: str) -> str:
    return cluster.kubectl("logs", WORKER, f"--container={container}", f"--namespace={namespace}").strip()


def inside(cluster: Cluster, namespace: str, container: str, *command: str) -> str:
    return cluster.kubectl("exec", WORKER, f"--container={container}", f"--namespace={namespace}", "--", "/probe", *command).strip()


def test_sidecars_run_while_the_pod_waits_for_what_another_prepares(cluster: Cluster, namespace: str) -> None:
    status = cluster.get(f"pod/{WORKER}", namespace=namespace)["status"]
    states: dict[str, Any] = {s["name"]: s["state"] for s in status["initContainerStatuses"]}
    assert "running" in states["megatron"]
    assert "running" in states["vllm"]
    waited = states["wait"]["terminated"]
    assert waited["exitCode"] == 0
    assert states["vllm"]["running"]["startedAt"] <= waited["finishedAt"]
    assert said(cluster, namespace, "wait") == "prepared"


def test_sidecars_and_agent_see_the_same_devices(cluster: Cluster, namespace: str) -> None:
    seen = {name: said(cluster, namespace, name) for name in ("megatron", "vllm", "checkpoint-engine")}
    assert len(set(seen.values())) == 1, seen
    assert len(seen["vllm"].removeprefix("FAKE_DEVICES=").split(",")) == 2


def test_containers_share_memory_sockets_and_the_volume(cluster: Cluster, namespace: str) -> None:
    for folder in ("/dev/shm", "/rljob/sockets", "/rljob/work"):
        inside(cluster, namespace, "megatron", "write", f"{folder}/note", "from megatron")
        assert inside(cluster, namespace, "vllm", "await", f"{folder}/note") == "from megatron"
    inside(cluster, namespace, "checkpoint-engine", "write", "/tmp/note", "writable")


def test_every_container_has_the_job_and_finds_the_master(cluster: Cluster, namespace: str) -> None:
    assert '"name": "demo"' in inside(cluster, namespace, "checkpoint-engine", "await", "/rljob/job/job.json")
    assert inside(cluster, namespace, "checkpoint-engine", "get", "http://demo-master:8080") == "fine"
