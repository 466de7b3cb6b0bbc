"""Jobs and renderings that the tests start from. `python tests/manifests/jobs.py` writes the golden files anew."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rljob.api import RLJob
from rljob.api.load import load, parse
from rljob.cli.render import as_yaml
from rljob.manifests import Cluster, Manifest, Owner, Settings, render
from rljob.manifests.settings import Devices
from rljob.plan import plan

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
UID = "0f8fad5b-d9cb-469f-a165-70867728950e"
DRA = Cluster((1, 36), frozenset({"gpu.nvidia.com"}))
PLAIN = Cluster((1, 33))
VISIBLE = Settings(devices={"nvidia": Devices(runtime_class="nvidia")})

NVIDIA = """
apiVersion: rljob.dev/v1alpha1
kind: RLJob
metadata: {name: math-7b, namespace: team}
spec:
  model: {source: {hub: {repo: Qwen/Qwen2.5-7B, revision: main}}}
  data: {train: {path: math/train.parquet}}
  files: {claim: datasets}
  credentials: hub-token
  queueName: research
  accelerator: {type: nvidia, perNode: 8}
  trainer: {nodes: 2, tensorParallel: 4}
  rollout: {replicas: 2, tensorParallel: 4, maxTokens: 2048}
  reward: {verifier: math, replicas: 3, workers: 4}
  templates:
    worker:
      metadata: {annotations: {example.com/team: research}}
      spec:
        priorityClassName: high
        containers: [{name: megatron, env: [{name: NCCL_DEBUG, value: WARN}], resources: {requests: {memory: 200Gi}}}]
        tolerations: [{key: example.com/reserved, operator: Exists}]
"""
SINGLE_TEMPLATE = "spec.templates.worker.spec.containers=[{name: checkpoint-engine, env: [{name: NCCL_DEBUG, value: WARN}]}]"


def tiny(*overrides: str) -> RLJob:
    """The example `tiny`, its files in a ConfigMap."""
    return load(ROOT / "examples/tiny/rljob.yaml", ("spec.files.configMap=tiny-files", *overrides))


def nvidia(*overrides: str) -> RLJob:
    """Two nodes with eight devices each."""
    return parse(NVIDIA, overrides=overrides)


def objects(job: RLJob, settings: Settings | None = None, cluster: Cluster = DRA) -> tuple[Manifest, ...]:
    """Everything, owned."""
    owner = Owner(job.metadata.name, job.metadata.namespace or "default", UID)
    return render(job, plan(job), owner, settings or Settings(), cluster)


def find(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """The object of that kind and name."""
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pod(manifests: Iterable[Manifest], name: str) -> dict[str, Any]:
    """Spec of a pod, or of a Deployment's pods."""
    (found,) = [m for m in manifests if m["kind"] in ("Pod", "Deployment") and m["metadata"]["name"] == name]
    spec: dict[str, Any] = found["spec"]["template"]["spec"] if found["kind"] == "Deployment" else found["spec"]
    return spec


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """A container of a pod's spec, wherever it stands."""
    (found,) = [c for c in (*spec.get("initContainers", ()), *spec["containers"]) if c["name"] == name]
    return dict(found)


def variables(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """Environment of a container: name to value, or to what the value comes from."""
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(spec, name)["env"]}


def beside_the_sandbox() -> tuple[Manifest, ...]:
    """What a sandbox adds, and the reward service that asks it."""
    rendered = objects(tiny("spec.sandbox={enabled: true, replicas: 2}"))
    return tuple(m for m in rendered if m["metadata"]["labels"].get("rljob.dev/role") in ("reward", "sandbox"))


RENDERINGS: Mapping[str, Callable[[], tuple[Manifest, ...]]] = {
    "tiny.yaml": lambda: objects(tiny()),
    "nvidia-claim.yaml": lambda: objects(nvidia()),
    "sandbox.yaml": beside_the_sandbox,
    "nvidia-single.yaml": lambda: objects(nvidia(SINGLE_TEMPLATE), cluster=PLAIN),
}


def golden(name: str) -> str:
    """What a golden file must hold."""
    return as_yaml(RENDERINGS[name]())


def parsed(name: str) -> list[Any]:
    """A golden file's objects."""
    return list(yaml.safe_load_all((GOLDEN / name).read_text()))


if __name__ == "__main__":
    for name in RENDERINGS:
        (GOLDEN / name).write_text(golden(name))
