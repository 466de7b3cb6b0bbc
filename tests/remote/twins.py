"""A cluster in memory, and objects as an API server answers them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rljob.remote.cluster import Json, NotFound
from rljob.remote.observe import jobs_path

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def ago(seconds: float) -> str:
    """A time as Kubernetes writes it."""
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


SPEC: Json = {
    "model": {"source": {"path": "model"}},
    "data": {"train": {"path": "train.jsonl"}},
    "iterations": 20,
    "suspend": False,
    "rollout": {"replicas": 2},
}
STATUS: Json = {
    "observedGeneration": 3,
    "phase": "Rollout",
    "iteration": 7,
    "iterations": 20,
    "policyVersion": 6,
    "reward": 0.43,
    "rewards": [0.12, 0.15, 0.22, 0.31, 0.38, 0.43],
    "heldOut": [{"iteration": 0, "accuracy": 0.25, "count": 256}, {"iteration": 4, "accuracy": 0.5, "count": 256}],
    "progress": {"done": 312, "total": 512, "unit": "answers"},
    "tokensPerSecond": 2140.0,
    "engines": 2,
    "nodes": [
        {
            "name": "worker-0", "step": "rollout", "stepSeconds": 12.3, "progress": {"done": 200, "total": 256, "unit": "answers"},
            "version": 6, "switch": "restart: switch.policy is restart",
        },
        {"name": "rollout-0", "step": "load-engine", "stepSeconds": 0.4, "failure": "the weights are not there yet"},
    ],
    "timings": {"rollout": 81.0, "train": 42.0, "switch": 9.1},
    "lastFailure": {
        "stage": "train", "pod": "worker-0", "reason": "ProcessDied", "message": "the trainer was killed; it goes on from version 5",
        "at": ago(190),
    },
    "rollout": {"replicas": 2, "readyReplicas": 1, "selector": "rljob.dev/job=sums,rljob.dev/role=rollout"},
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "Running", "message": "every pod that the loop needs runs"},
        {"type": "Reconciling", "status": "True", "reason": "Scaling", "message": "1 of 2 rollout pods are ready"},
        {"type": "Stalled", "status": "False", "reason": "None", "message": ""},
    ],
}  # fmt: skip


def job(status: Json | None = None, generation: int = 3, created: float = 754.0, **spec: Any) -> Json:
    """The RLJob `sums` of the namespace `team-a`."""
    return {
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "sums", "namespace": "team-a", "generation": generation, "creationTimestamp": ago(created)},
        "spec": SPEC | spec,
        "status": STATUS if status is None else status,
    }


def container(name: str, ready: bool = True, restarts: int = 0, **state: Json) -> Json:
    """A container's status; `waiting`, `terminated` or `last` say that it does not run or did not."""
    now = {k: v for k, v in state.items() if k != "last"} or {"running": {"startedAt": ago(700)}}
    return {
        "name": name,
        "ready": ready,
        "restartCount": restarts,
        "state": now,
        "lastState": {"terminated": state["last"]} if "last" in state else {},
    }


def pod(short: str, role: str, *states: Json, sidecars: tuple[str, ...] = (), phase: str = "Running", **status: Any) -> Json:
    """A pod of the job; containers named in `sidecars` are native sidecars."""
    names = [s["name"] for s in states]
    return {
        "metadata": {
            "name": f"sums-{short}", "namespace": "team-a", "uid": f"uid-{short}",
            "labels": {"rljob.dev/job": "sums", "rljob.dev/role": role, "rljob.dev/pod": short},
        },
        "spec": {
            "initContainers": [{"name": n, "restartPolicy": "Always"} for n in names if n in sidecars],
            "containers": [{"name": n} for n in names if n not in sidecars],
            "nodeName": "node-1",
        },
        "status": {
            "phase": phase,
            "initContainerStatuses": [s for s in states if s["name"] in sidecars],
            "containerStatuses": [s for s in states if s["name"] not in sidecars],
        } | status,
    }  # fmt: skip


_NO_IMAGE = {"reason": "ImagePullBackOff", "message": "no such image"}
_WORKER = (container("megatron", restarts=1), container("vllm"), container("checkpoint-engine"))
PODS = [
    pod("worker-0", "worker", *_WORKER, sidecars=("megatron", "vllm")),
    pod("master", "master", container("master")),
    pod("rollout-0", "rollout", container("vllm", ready=False), container("checkpoint-engine"), sidecars=("vllm",)),
    pod("rollout-1", "rollout", container("vllm", ready=False, waiting=_NO_IMAGE), phase="Pending"),
    pod("reward", "reward", container("reward")),
]  # fmt: skip


def event(seconds: float, reason: str, message: str, about: str = "", kind: str = "Normal", count: int = 1) -> Json:
    """An event about the job, or about a pod."""
    involved = {"kind": "Pod", "name": about} if about else {"kind": "RLJob", "name": "sums"}
    return {
        "metadata": {"creationTimestamp": ago(seconds)}, "lastTimestamp": ago(seconds), "involvedObject": involved,
        "type": kind, "reason": reason, "message": message, "count": count,
    }  # fmt: skip


EVENTS = [
    event(740, "Created", "created 5 pods"),
    event(300, "Replaced", "pod worker-0 was lost and is made again"),
    event(10, "BackOff", "of another job", "other-rollout-1", "Warning"),
    event(20, "BackOff", 'Back-off pulling image "rollout:1"', "sums-rollout-1", "Warning", 7),
]


class MemoryCluster:
    """`Api` over what it is given; events come one by one."""

    namespace = "team-a"
    where = "context test, https://test"
    options = ""

    def __init__(self, objects: Mapping[str, Json], logs: Mapping[str, list[str]] | None = None) -> None:
        self.objects = dict(objects)
        self.logs = dict(logs or {})
        self.patches: list[tuple[str, Json]] = []

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        if path not in self.objects:
            raise NotFound(f"{path} is not there", known_path=True)
        found = self.objects[path]
        wanted = (query or {}).get("fieldSelector", "")
        if "involvedObject.kind=" not in wanted:
            return found
        kind = wanted.partition("involvedObject.kind=")[2].partition(",")[0]
        items, at = [item for item in found["items"] if item["involvedObject"]["kind"] == kind], int((query or {}).get("continue", "0"))
        return {"items": items[at : at + 1], "metadata": {"continue": str(at + 1) if at + 1 < len(items) else ""}}

    def patch(self, path: str, body: Json) -> Json:
        self.patches.append((path, body))
        return body

    def lines(self, path: str, query: Mapping[str, str]) -> Iterator[str]:
        name = path.rsplit("/", 2)[1]
        yield from self.logs[f"{name}/{query['container']}"]


def cluster(**changes: Any) -> MemoryCluster:
    """The job `sums` with its pods and events; `changes` go to `job`."""
    return MemoryCluster(
        {
            jobs_path("team-a", "sums"): job(**changes),
            jobs_path("team-a"): {"items": [job(**changes)]},
            "/api/v1/namespaces/team-a/pods": {"items": PODS},
            "/api/v1/namespaces/team-a/events": {"items": EVENTS},
        }
    )
