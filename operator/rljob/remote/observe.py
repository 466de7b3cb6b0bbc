"""What a cluster says of one job, as one value: the RLJob, its pods and its events."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from rljob.api import GROUP, VERSION, ConfigurationError, RLJob
from rljob.api.errors import one_line
from rljob.api.load import parse
from rljob.api.status import JobStatus
from rljob.manifests.types import LABEL_JOB, LABEL_POD, LABEL_ROLE
from rljob.remote.cluster import Api, Json, NotFound

FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Condition:
    """One condition of the job."""

    type: str
    status: str
    reason: str
    message: str

    @property
    def holds(self) -> bool:
        return self.status == "True"


@dataclass(frozen=True)
class PodState:
    """One pod of the job."""

    name: str
    """As the cluster calls it, such as `sums-worker-0`."""
    short: str
    """As the job calls it, such as `worker-0`."""
    role: str
    uid: str
    state: str
    """One word, as `kubectl get pods` has it: `Running`, `ImagePullBackOff`, `Unschedulable`, ..."""
    message: str
    """Why it does not run; empty if it does."""
    ready: int
    containers: tuple[str, ...]
    """Init containers, sidecars, containers, in the order in which they start."""
    counted: int
    """Containers that can be ready: without those that only run at the start."""
    restarts: int
    node: str
    started: Mapping[str, int]
    """Containers that have a log, and how often each was started again."""

    @property
    def healthy(self) -> bool:
        """Does nothing have to be done about it?"""
        return self.state in ("Running", "Completed", "Succeeded") and (self.ready == self.counted or self.state != "Running")


@dataclass(frozen=True)
class Event:
    """One thing that happened to the job or to one of its pods."""

    at: datetime
    warning: bool
    about: str
    """Name of the object if it is not the job itself."""
    reason: str
    message: str
    count: int


@dataclass(frozen=True)
class Snapshot:
    """A job in a cluster at one moment."""

    name: str
    namespace: str
    age: float
    """Seconds since the job was created."""
    phase: str
    """The operator's word; empty before its first."""
    status: JobStatus
    """What the master said last; zeros before its first word."""
    unreadable: tuple[str, ...]
    """Fields of the status that another version wrote in a way this one does not read."""
    conditions: tuple[Condition, ...]
    seen: bool
    """Has the operator acted on the spec as it is now?"""
    suspended: bool
    volume: str
    """PersistentVolumeClaim of state, checkpoints and model."""
    own_volume: bool
    """Was that claim made for the job, so that it goes with it?"""
    replicas: int
    """Rollout-only pods wanted."""
    ready_replicas: int
    pods: tuple[PodState, ...]
    events: tuple[Event, ...]
    """Newest last."""
    sharing: str = ""
    """How the sidecars share accelerators, and why; empty where there are none."""
    options: str = ""
    """Of kubectl, to reach the same cluster."""

    @property
    def finished(self) -> bool:
        return self.phase in FINISHED

    def condition(self, name: str) -> Condition | None:
        """The condition of a type."""
        return next((c for c in self.conditions if c.type == name), None)

    def holds(self, name: str) -> bool:
        """Is a condition true?"""
        found = self.condition(name)
        return found is not None and found.holds


def jobs_path(namespace: str, name: str = "", below: str = "") -> str:
    """Path of the jobs of a namespace (empty: of all), of one job, or of its subresource."""
    path = f"/apis/{GROUP}/{VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + "/rljobs"
    return path + (f"/{name}" if name else "") + (f"/{below}" if below else "")


def find(api: Api, name: str) -> Json:
    """The RLJob.

    Raises:
        ConfigurationError: the cluster has no RLJobs at all, or none of that name; names the near one.
    """
    try:
        return api.get(jobs_path(api.namespace, name))
    except NotFound as error:
        if not error.known_path:
            raise _no_kind(api) from error
        raise ConfigurationError(_missing(api, name)) from error


def _no_kind(api: Api) -> ConfigurationError:
    return ConfigurationError(
        f"the cluster does not know RLJobs ({api.where}): install the operator's chart, or "
        f"`rljob crd | kubectl apply --server-side{api.options} -f -`"
    )


def typed(api: Api, name: str) -> RLJob:
    """The RLJob as if it had been read from a file.

    Raises:
        ConfigurationError: there is none, or a newer version wrote it.
    """
    found = find(api, name)
    # As the operator reads it: the rest of the metadata is the cluster's.
    found |= {"metadata": {part: found["metadata"][part] for part in ("name", "namespace")}}
    return parse(json.dumps(found), f"RLJob {name} in namespace {api.namespace}")


def listed(api: Api, everywhere: bool = False) -> list[Json]:
    """The jobs of the namespace, or of all.

    Raises:
        ConfigurationError: the cluster does not know RLJobs, or does not show them.
    """
    try:
        items: list[Json] = api.get(jobs_path("" if everywhere else api.namespace)).get("items", [])
    except NotFound as error:
        raise _no_kind(api) from error
    return sorted(items, key=lambda job: (job["metadata"]["namespace"], job["metadata"]["name"]))


def _missing(api: Api, name: str) -> str:
    """A job is not there: the near name, or the namespace that has it, or what there is."""
    here = [str(job["metadata"]["name"]) for job in listed(api)]
    text = f"there is no RLJob {name!r} in namespace {api.namespace} ({api.where})"
    if near := difflib.get_close_matches(name, here, 1, 0.5):
        return f"{text}; did you mean {near[0]}?"
    try:
        elsewhere = [job["metadata"]["namespace"] for job in listed(api, everywhere=True) if job["metadata"]["name"] == name]
    except ConfigurationError:
        # Who may look at one namespace only has no list of all.
        elsewhere = []
    if elsewhere:
        return f"{text}; there is one in namespace {elsewhere[0]}: add -n {elsewhere[0]}"
    return f"{text}; there are: {', '.join(here)}" if here else f"{text}, nor any other"


def snapshot(api: Api, name: str, now: datetime) -> Snapshot:
    """Ask the cluster for everything about a job.

    Raises:
        ConfigurationError: there is no such job, or the API server refuses.
        InfrastructureError: the cluster does not answer.
    """
    job = find(api, name)
    pods = pods_of(api, name)
    events = [
        *_events(api, {"involvedObject.kind": "RLJob", "involvedObject.name": name}, name),
        *_events(api, {"involvedObject.kind": "Pod", "type": "Warning"}, name),
    ]
    names = {pod.name for pod in pods} | {""}
    return build(job, pods, sorted((e for e in events if e.about in names), key=lambda e: e.at), now, api.options)


def pods_of(api: Api, name: str) -> tuple[PodState, ...]:
    """The job's pods: master, workers, rollouts, reward, sandbox."""
    found = api.get(f"/api/v1/namespaces/{api.namespace}/pods", {"labelSelector": f"{LABEL_JOB}={name}"})
    order = {"master": 0, "worker": 1, "rollout": 2, "reward": 3, "sandbox": 4}
    pods = [pod_state(item) for item in found.get("items", [])]
    return tuple(sorted(pods, key=lambda p: (order.get(p.role, 9), _natural(p.name))))


def _natural(name: str) -> tuple[str, int, str]:
    """So that `rollout-10` comes after `rollout-9`."""
    head, _, tail = name.rpartition("-")
    return (head, int(tail), "") if tail.isdigit() else (name, -1, "")


def build(job: Json, pods: Sequence[PodState], events: Sequence[Event], now: datetime, options: str = "") -> Snapshot:
    """The snapshot of what was read."""
    metadata, spec, said = job["metadata"], job["spec"], job.get("status", {})
    status, unreadable = _status(spec, said)
    rollout = said.get("rollout", {})
    return Snapshot(
        name=metadata["name"],
        namespace=metadata["namespace"],
        age=(now - _time(metadata.get("creationTimestamp"))).total_seconds(),
        phase=str(said.get("phase", "")),
        status=status,
        unreadable=unreadable,
        conditions=tuple(
            Condition(c.get("type", ""), c.get("status", "Unknown"), c.get("reason", ""), one_line(c.get("message", "")))
            for c in said.get("conditions", [])
        ),
        seen=said.get("observedGeneration", -1) >= metadata.get("generation", 0),
        suspended=bool(spec.get("suspend", False)),
        volume=spec.get("checkpoint", {}).get("volume") or f"{metadata['name']}-work",
        own_volume=not spec.get("checkpoint", {}).get("volume"),
        replicas=int(spec.get("rollout", {}).get("replicas", 0)),
        ready_replicas=int(rollout.get("readyReplicas", 0)),
        pods=tuple(pods),
        events=tuple(events),
        sharing=_sharing(said.get("sharing", {})),
        options=options,
    )


def _sharing(said: Mapping[str, Any]) -> str:
    mode, reason = said.get("mode", "none"), said.get("reason", "")
    return "" if mode == "none" else f"{mode}: {reason}" if reason else str(mode)


_PHASES = ("Preparing", "WarmStart", "Rollout", "Training", "Evaluating", "Finishing", "Succeeded", "Failed")


def _status(spec: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[JobStatus, tuple[str, ...]]:
    """The master's words out of the RLJob's status, which is written piece by piece; and the fields that cannot be read."""
    blank = {"phase": "Preparing", "iteration": 0, "iterations": spec.get("iterations", 0), "policyVersion": 0}
    known = dict(said)
    if known.get("phase") not in _PHASES:
        known.pop("phase", None)
    try:
        return JobStatus.model_validate(blank | known, extra="ignore"), ()
    except ValidationError as error:
        bad = tuple(sorted({str(e["loc"][0]) for e in error.errors()}))
        return JobStatus.model_validate(blank | {n: v for n, v in known.items() if n not in bad}, extra="ignore"), bad


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.fromtimestamp(0, UTC)


def pod_state(pod: Json) -> PodState:
    """A pod as a person sees it."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    labels = metadata.get("labels", {})
    sidecars = [c for c in spec.get("initContainers", []) if c.get("restartPolicy") == "Always"]
    counted = {c["name"] for c in [*sidecars, *spec.get("containers", [])]}
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    state, message = _pod_word(pod, states)
    return PodState(
        name=metadata["name"],
        short=labels.get(LABEL_POD, metadata["name"]),
        role=labels.get(LABEL_ROLE, ""),
        uid=metadata.get("uid", ""),
        state=state,
        message=message,
        ready=sum(1 for s in states if s.get("ready") and s["name"] in counted),
        containers=tuple(c["name"] for c in [*spec.get("initContainers", []), *spec.get("containers", [])]),
        counted=len(counted),
        restarts=sum(s.get("restartCount", 0) for s in states),
        node=spec.get("nodeName", ""),
        started={s["name"]: s.get("restartCount", 0) for s in states if _has_log(s)},
    )


def _has_log(state: Json) -> bool:
    now, last = state.get("state", {}), state.get("lastState", {})
    return "running" in now or "terminated" in now or "terminated" in last


def _pod_word(pod: Json, states: Sequence[Json]) -> tuple[str, str]:
    """(State, why) of a pod: the first thing that keeps it from running."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating", ""
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("reason", "Pending")), str(condition.get("message", ""))
    if status.get("reason"):
        return str(status["reason"]), str(status.get("message", ""))
    for state in states:
        if word := _container_word(state):
            return word
    phase = str(status.get("phase", "Pending"))
    return ("Completed" if phase == "Succeeded" else phase), ""


_STARTING = ("PodInitializing", "ContainerCreating")


def _container_word(state: Json) -> tuple[str, str] | None:
    """What keeps a container from running; None if nothing does."""
    now, last = state.get("state", {}), state.get("lastState", {}).get("terminated", {})
    name = state["name"]
    if (waiting := now.get("waiting")) and waiting.get("reason") not in (None, *_STARTING):
        why = str(waiting.get("message", ""))
        if last:
            why = _ended(last)
        return str(waiting["reason"]), f"{name}: {why}"
    if (ended := now.get("terminated")) and ended.get("exitCode", 0) != 0:
        return str(ended.get("reason", "Error")), f"{name}: {_ended(ended)}"
    return None


def _ended(terminated: Mapping[str, Any]) -> str:
    """How a container ended, with the last line it left."""
    lines = str(terminated.get("message", "")).strip().splitlines()
    reason = terminated.get("reason", "Error")
    text = f"ended with status {terminated.get('exitCode')}" + (f" ({reason})" if reason != "Error" else "")
    return f"{text}: {one_line(lines[-1])}" if lines else text


def _events(api: Api, fields: Mapping[str, str], job: str) -> list[Event]:
    # Parts come in the order of names: what is newest, or of this job, can be in any of them.
    query = {"fieldSelector": ",".join(f"{name}={value}" for name, value in fields.items()), "limit": "500"}
    events, more = list[Event](), ""
    while True:
        found = api.get(f"/api/v1/namespaces/{api.namespace}/events", query | ({"continue": more} if more else {}))
        events += [_event(item, job) for item in found.get("items", [])]
        if not (more := found.get("metadata", {}).get("continue", "")):
            return events


def _event(item: Json, job: str) -> Event:
    about = item["involvedObject"]
    series = item.get("series") or {}
    at = series.get("lastObservedTime") or item.get("lastTimestamp") or item.get("eventTime") or item["metadata"].get("creationTimestamp")
    return Event(
        at=_time(at),
        warning=item.get("type") == "Warning",
        about="" if about.get("kind") == "RLJob" and about.get("name") == job else str(about.get("name", "")),
        reason=str(item.get("reason", "")),
        message=one_line(str(item.get("message", ""))),
        count=int(series.get("count") or item.get("count") or 1),
    )
