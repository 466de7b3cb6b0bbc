"""Installs the operator into a cluster as a user would, and looks at jobs there."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.cluster.handle import Cluster, KubectlError, Object

ROOT = Path(__file__).parents[2]
IMAGES = ("operator", "master", "reward", "trainer", "rollout")


@dataclass(frozen=True)
class Release:
    """An installed operator."""

    namespace: str
    name: str


def build_images(archive: Path) -> None:
    """Builds what is missing and writes all images into one archive (shared layers once)."""
    command = [sys.executable, "images/build.py", "--only", ",".join(IMAGES), "--archive", str(archive)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]


def helm(cluster: Cluster, *arguments: str, timeout: float = 240) -> str:
    """What helm printed."""
    command = [str(cluster.bin("helm")), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr[-4000:]}"
    return done.stdout


def install(cluster: Cluster, release: Release, replicas: int = 1) -> None:
    """The chart, with small settings for a small machine."""
    values = {
        "replicas": replicas,
        "images": {"tag": "latest"},
        "settings": {"imagePullPolicy": "IfNotPresent", "progressSeconds": 1, "leaderElection": {"seconds": 5}},
        "resources": {"requests": {"cpu": "20m"}},
    }
    words = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    helm(
        cluster, "install", release.name, "charts/rljob", "--namespace", release.namespace, "--create-namespace", "--wait",
        "--timeout", "180s", *words,
    )  # fmt: skip


def uninstall(cluster: Cluster, release: Release) -> None:
    """Takes the operator away: it would go on to act on whatever other tests put into the cluster."""
    helm(cluster, "uninstall", release.name, "--namespace", release.namespace, "--wait", "--timeout", "120s")
    cluster.kubectl("delete", "namespace", release.namespace, "--wait=false")


def prompts() -> Object:
    """The tiny example's prompts as users put them into a cluster: a ConfigMap."""
    folder = ROOT / "examples" / "tiny"
    files = {name: (folder / name).read_text() for name in ("train.jsonl", "heldout.jsonl")}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prompts"}, "data": files}


def job(name: str, **spec: Any) -> Object:
    """The tiny example, asking for little CPU so that two jobs fit on two cores."""
    found: Object = yaml.safe_load((ROOT / "examples" / "tiny" / "rljob.yaml").read_text())
    found["metadata"]["name"] = name
    found["spec"] |= {"files": {"configMap": "prompts"}, "templates": _little(), **spec}
    return found


def _little() -> Object:
    def ask(*containers: str) -> list[Object]:
        return [{"name": each, "resources": {"requests": {"cpu": "50m"}}} for each in containers]

    return {
        "master": {"spec": {"initContainers": ask("prepare"), "containers": ask("master")}},
        "worker": {"spec": {"initContainers": ask("megatron", "vllm"), "containers": ask("checkpoint-engine")}},
        "rollout": {"spec": {"initContainers": ask("vllm"), "containers": ask("checkpoint-engine")}},
        "reward": {"spec": {"containers": ask("reward")}},
    }


class Watched:
    """A job in a cluster."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    @property
    def object(self) -> Object:
        """The RLJob as it is."""
        return self.cluster.get(f"rljob/{self.name}", namespace=self.namespace)

    @property
    def status(self) -> Object:
        """Its status; {} before the first."""
        found: Object = self.object.get("status") or {}
        return found

    def pods(self) -> list[Object]:
        """Its pods that are not on their way out."""
        found = self.cluster.get("pods", "--selector", f"rljob.dev/job={self.name}", namespace=self.namespace)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def until(self, done: Callable[[Object], bool], seconds: float, what: str) -> Object:
        """Waits for a status. Fails at once when the job has failed."""
        end = time.monotonic() + seconds
        status: Object = {}
        while time.monotonic() < end:
            status = self.status
            if done(status):
                return status
            assert status.get("phase") != "Failed", f"{what}: the job failed: {json.dumps(status.get('conditions'))}\n{self.told()}"
            time.sleep(1)
        raise AssertionError(f"{what}: not within {seconds:.0f} s; status {json.dumps(status)[:3000]}\n{self.told()}")

    def told(self) -> str:
        """Pods, events and the ends of the logs, for a failed test."""
        words = [("get", "pods", "-o", "wide"), ("events",)]
        for pod in self.pods():
            words += [("logs", pod["metadata"]["name"], "--all-containers", "--prefix", "--tail=25")]
        said = []
        for command in words:
            try:
                said.append(self.cluster.kubectl(*command, "-n", self.namespace)[-5000:])
            except KubectlError as error:
                said.append(str(error))
        return "\n".join(said)


def condition(status: Object, kind: str) -> str:
    """`True`, `False` or `` of a condition."""
    return next((each["status"] for each in status.get("conditions") or () if each["type"] == kind), "")


def names(objects: Sequence[Object]) -> list[str]:
    """Names of objects."""
    return sorted(each["metadata"]["name"] for each in objects)
