"""A trainer whose ranks are on two nodes of a real Kubernetes: they find each other
through enforced NetworkPolicies, and survive the loss of one of their pods."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.handle import Object
from tests.cluster.plugin import NewCluster
from tests.e2e.incluster import IMAGES, Release, Volume, Watched, build_images, condition, install, job, names, prompts
from tests.e2e.jobfolder import metrics

ITERATIONS = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.images(*IMAGES), pytest.mark.own_cluster]


def _apart(name: str) -> Object:
    """Two pipeline stages, a pod each, never on one node; a job that learns next to nothing."""
    manifest = job(name, iterations=ITERATIONS)
    spec = manifest["spec"]
    del spec["evaluation"]
    spec["warmStart"] |= {"steps": 20, "batchSize": 32}
    spec["algorithm"] |= {"promptsPerIteration": 16, "samplesPerPrompt": 4, "stepsPerIteration": 2}
    spec["trainer"] |= {"nodes": 2, "pipelineParallel": 2}
    workers = {"matchLabels": {"rljob.dev/job": name, "rljob.dev/role": "worker"}}
    term = {"labelSelector": workers, "topologyKey": "kubernetes.io/hostname"}
    spec["templates"]["worker"]["spec"]["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    return manifest


def _workers(watched: Watched) -> dict[str, Object]:
    """The worker pods by name."""
    found = [pod for pod in watched.pods() if pod["metadata"]["labels"]["rljob.dev/role"] == "worker"]
    return {pod["metadata"]["name"]: pod for pod in found}


def test_ranks_on_two_nodes_make_every_version_and_survive_the_loss_of_a_pod(
    new_cluster: NewCluster, binaries: Callable[[str], Path], tmp_path: Path
) -> None:
    cluster = new_cluster(nodes=2)
    build_images(tmp_path / "images.tar")
    cluster.load_image(tmp_path / "images.tar")
    (tmp_path / "images.tar").unlink()
    with cluster.namespace("operator") as namespace, cluster.network_policies():
        install(cluster, Release(namespace, namespace))
        cluster.apply([prompts(), _apart("apart")], "default")
        apart = Watched(cluster, "default", "apart")
        apart.until(lambda status: status.get("iteration", 0) >= 2, 1440, "the end of the first iteration")
        before = _workers(apart)
        assert {pod["spec"]["nodeName"] for pod in before.values()} == {"node-0", "node-1"}
        cluster.kubectl("delete", "pod", "apart-worker-1", "-n", "default", "--wait=false", "--force", "--grace-period=0")
        lost = before["apart-worker-1"]
        apart.soon(lambda: _workers(apart).get("apart-worker-1", lost)["metadata"]["uid"] != lost["metadata"]["uid"], 180, "another pod")
        status = apart.until(lambda status: condition(status, "Succeeded") == "True", 1440, "the end")
        assert status["iteration"] == ITERATIONS
        volume = Volume(cluster, "default", "apart-work")
        volume.copy("metrics.jsonl", tmp_path)
        lines = metrics(tmp_path)
        assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
        assert max(line["logprob_gap"] for line in lines) < 1e-3, "engines of both nodes agree with the trainer"
        parts = {Path(path).name for path in volume.digests() if f"version-{ITERATIONS + 1:06d}" in path}
        assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= parts, parts
        volume.let_go()
        cluster.kubectl("delete", "rljob", "apart", "-n", "default", "--timeout=120s")
        assert names(apart.pods()) == []
