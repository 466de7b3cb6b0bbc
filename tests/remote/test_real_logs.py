"""Logs of pods that a real kubelet runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.handle import Cluster
from tests.controller.process import install_crd

KUBECTL_RLJOB = Path(sys.executable).parent / "kubectl-rljob"


def pod(image: str, short: str, role: str, **containers: str) -> dict[str, Any]:
    """A pod of the job `sums`; each container prints one variable and waits."""
    labels = {"rljob.dev/job": "sums", "rljob.dev/role": role, "rljob.dev/pod": short}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"sums-{short}", "labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "imagePullPolicy": "Never",
                    "args": ["env", "SAYS"],
                    "env": [{"name": "SAYS", "value": text}],
                }
                for name, text in containers.items()
            ],
        },
    }


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Holds the job `sums`, a master that speaks, and a worker of two containers that does."""
    install_crd(cluster)
    spec = {"model": {"source": {"hub": {"repo": "a/b"}}}, "data": {"train": {"hub": {"repo": "a/b", "file": "x.jsonl"}}}}
    with cluster.namespace("logs") as name:
        cluster.apply({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "sums"}, "spec": spec}, namespace=name)
        pods = [pod(cluster.probe, "master", "master", master="m"), pod(cluster.probe, "worker-0", "worker", vllm="v", megatron="t")]
        cluster.apply(pods, namespace=name)
        cluster.wait("pod/sums-master", "condition=Ready", namespace=name)
        cluster.wait("pod/sums-worker-0", "condition=Ready", namespace=name)
        yield name


def command(cluster: Cluster, namespace: str, *words: str) -> tuple[list[str | Path], dict[str, str]]:
    """`kubectl rljob logs sums ...` and its environment."""
    return [KUBECTL_RLJOB, "logs", "sums", *words, "-n", namespace], os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}


def said(cluster: Cluster, namespace: str, *words: str) -> list[str]:
    argv, environment = command(cluster, namespace, *words)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()


def test_logs_of_a_running_job_are_merged_chosen_and_followed(cluster: Cluster, namespace: str) -> None:
    everything = said(cluster, namespace)
    assert sorted(line.split()[0] for line in everything) == ["master/master", "worker-0/megatron", "worker-0/vllm"]
    assert "worker-0/vllm      SAYS=v" in everything
    assert said(cluster, namespace, "worker", "-c", "megatron") == ["SAYS=t"]
    argv, environment = command(cluster, namespace, "-f")
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        lines = iter(following.stdout)
        assert sorted(next(lines).split()[0] for _ in range(3)) == ["master/master", "worker-0/megatron", "worker-0/vllm"]
        cluster.apply(pod(cluster.probe, "rollout-0", "rollout", vllm="late"), namespace=namespace)
        assert next(lines) == "rollout-0/vllm     SAYS=late\n", "a pod that came later is read too"
        done = '{"status": {"phase": "Succeeded"}}'
        cluster.kubectl("patch", "rljob/sums", "--subresource=status", "--type=merge", "-p", done, "-n", namespace)
        assert list(lines) == []
    assert following.returncode == 0
