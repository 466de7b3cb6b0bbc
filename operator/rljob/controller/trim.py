"""From an object as the API server sends it to what is kept of it."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from rljob.api import KIND
from rljob.api.errors import one_line
from rljob.controller.kinds import Key
from rljob.controller.world import Child, DeploymentState, Exit, Job, PodState, Trouble, Unseen
from rljob.manifests import Manifest
from rljob.manifests.types import ANNOTATION_HASH, FIELD_MANAGER, LABEL_JOB, LABEL_POD, LABEL_ROLE

ANNOTATION_OPERATOR = "rljob.dev/operator-version"
"""On an RLJob: the operator that may act on it, for a way back after an upgrade."""

_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_DISRUPTIONS = frozenset(
    {"Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeAffinity", "UnexpectedAdmissionError"}
)
_NO_ROOM = "OutOf"
"""How the reasons begin with which a kubelet sends a pod away: OutOfcpu, OutOfmemory, OutOfpods, OutOf with the name of a device."""
_NO_VOLUME = re.compile(r"persistentvolumeclaim|\bpvc\b|volumebinding|persistent volumes to bind|free storage", re.IGNORECASE)
"""What a scheduler says where not a node is missing, but a volume."""
_SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""On a claim whose class waits for the first pod: a scheduler has chosen the node, now the volume is to be made."""
_REFUSALS = (
    ("^Internal error occurred", "Refused", "the API server or a webhook of it fails: look at that"),
    ("exceeded quota", "QuotaExceeded", "raise the quota, or ask for less"),
    ("failed quota", "Forbidden", "name it in spec.templates, or let a LimitRange fill it in"),
    ("(minimum|maximum) .+ usage per |max limit to request ratio", "LimitRange", "change the LimitRange, or resources in spec.templates"),
    (
        "must be less than or equal to .*limit",
        "LimitRange",
        "a LimitRange fills in a lower limit than the job asks for, or spec.templates sets one: change that one, or set limits there",
    ),
    ("violates PodSecurity", "PodSecurity", "lower the namespace's label pod-security.kubernetes.io/enforce, or change spec.templates"),
    ("denied the request", "Refused", "a policy of the cluster refuses it: do as it says in spec.templates, or change the policy"),
    ("unknown field|field not declared", "Refused", "a field of spec.templates is misspelt, or newer than this cluster"),
)
"""Words of an API server that refuses an object, the reason that a condition gives, and what helps."""
_MESSAGE = 600
"""Characters that are kept of a message."""


def unix(text: str | None) -> float:
    """Unix time of a Kubernetes time; 0 if there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def iso(when: float) -> str:
    """Kubernetes time (to the second, UTC) of a unix time."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def short(text: str) -> str:
    """One line that is no longer than a status should hold; of a log, the end says most."""
    line = one_line(text)
    return line if len(line) <= _MESSAGE else "… " + line[-_MESSAGE:]


def job_of(raw: Manifest) -> Job:
    """An RLJob."""
    meta = raw["metadata"]
    return Job(
        key=Key(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        version=meta["resourceVersion"],
        generation=meta.get("generation", 0),
        created=unix(meta.get("creationTimestamp")),
        deleting="deletionTimestamp" in meta,
        operator=meta.get("annotations", {}).get(ANNOTATION_OPERATOR, ""),
        spec=json.dumps(raw.get("spec", {})).encode(),
        status=json.dumps(raw.get("status", {})).encode(),
    )


def job_key(raw: Manifest) -> Key | None:
    """The job that a child belongs to."""
    meta = raw["metadata"]
    name = meta.get("labels", {}).get(LABEL_JOB)
    return Key(meta["namespace"], name) if name else None


def child_of(kind: str, raw: Manifest) -> Child:
    """A child, from the whole object or from its metadata."""
    meta = raw["metadata"]
    own, edited = _managers(meta.get("managedFields", ()))
    owner: Mapping[str, Any] = next((o for o in meta.get("ownerReferences", ()) if o.get("controller")), {})
    grace = meta.get("deletionTimestamp")
    return Child(
        kind=kind,
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        hash=meta.get("annotations", {}).get(ANNOTATION_HASH, ""),
        owner=owner.get("uid", ""),
        deleting=unix(grace) if grace else None,
        own=own,
        edited=edited,
        bequeathed=(owner.get("kind"), owner.get("name")) == (KIND, meta.get("labels", {}).get(LABEL_JOB)),
        held=_held(raw) if grace and kind == "Pod" else (),
        state=_pod(raw) if kind == "Pod" else _deployment(raw) if kind == "Deployment" else None,
    )


def _held(raw: Manifest) -> tuple[str, ...]:
    phase = raw.get("status", {}).get("phase", "Pending")
    over = phase in ("Succeeded", "Failed") or (phase == "Pending" and not raw.get("spec", {}).get("nodeName"))
    return tuple(raw["metadata"].get("finalizers", ())) if over else ()


def _managers(entries: Any) -> tuple[int, bool]:
    """(fingerprint of the operator's fields, did a person write after it?).

    An update that changes one of our fields takes it out of our entries, one that removes it as well. Controllers of the cluster write to
    spec and metadata of Deployments and claims as a matter of course; that they do so takes nothing from us.
    """
    mine = [e for e in entries if e.get("manager") == FIELD_MANAGER and not e.get("subresource")]
    others = [e for e in entries if e.get("manager") != FIELD_MANAGER and e.get("subresource") in (None, "", "scale")]
    people = [e for e in others if not e.get("manager", "").startswith(("kube-", "kubelet"))]
    last = max((e.get("time", "") for e in mine), default="")
    fields = json.dumps([e.get("fieldsV1") for e in mine], sort_keys=True)
    return crc32(fields.encode()), any(e.get("time", "") >= last for e in people)


def _condition(raw: Manifest, kind: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next((c for c in raw.get("status", {}).get("conditions", ()) if c["type"] == kind), {})
    return found


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses", ())
    yield from status.get("containerStatuses", ())


def _pod(raw: Manifest) -> PodState:
    meta, status = raw["metadata"], raw.get("status", {})
    labels = meta.get("labels", {})
    phase = status.get("phase", "Pending")
    reason, message = status.get("reason", ""), status.get("message", "")
    trouble = _pod_trouble(raw) if phase in ("Pending", "Running") else _refused(raw)
    placed = _condition(raw, "PodScheduled")
    begun = any(
        name in c.get(where, {}) for c in _containers(status) for where in ("state", "lastState") for name in ("running", "terminated")
    )
    silent = phase == "Pending" and trouble is None
    end = _end_of_master(status) if labels.get(LABEL_ROLE) == "master" else None
    return PodState(
        plan_name=labels.get(LABEL_POD, ""),
        role=labels.get(LABEL_ROLE, ""),
        phase=phase,
        ready=_condition(raw, "Ready").get("status") == "True",
        ip=status.get("podIP", ""),
        created=unix(meta.get("creationTimestamp")),
        reason=reason,
        message=short(message),
        disrupted=reason in _DISRUPTIONS or reason.startswith(_NO_ROOM) or _condition(raw, "DisruptionTarget").get("status") == "True",
        exits=tuple(_exits(status)),
        restarts=tuple((c["name"], c["restartCount"]) for c in _containers(status) if c.get("restartCount")),
        trouble=trouble,
        begun=begun,
        pending_since=_pending_since(raw, unix(placed.get("lastTransitionTime") or meta.get("creationTimestamp"))) if silent else None,
        unseen=_unseen(raw) if silent and not placed else None,
        done=end is not None and any("running" in c.get("state", {}) for c in status.get("containerStatuses", ())),
        last_words=end.get("message", "") if end else "",
    )


def _end_of_master(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The master's end, if it ended without an error. Other containers of its pod may run on: `spec.templates` or a webhook adds them."""
    ends = (c.get("state", {}).get("terminated") for c in status.get("containerStatuses", ()) if c["name"] == "master")
    return next((end for end in ends if end and not end.get("exitCode")), None)


def _pending_since(raw: Manifest, placed: float) -> float | None:
    """Since when, at the earliest, a pod waits for its next container (for mounts, its sandbox, an image); None if one is at work.

    Containers start one after the other: an init container must have ended, a sidecar its startup probe passed.
    """
    sidecars = {c["name"] for c in raw.get("spec", {}).get("initContainers", ()) if c.get("restartPolicy") == "Always"}
    since = placed
    for container in raw.get("status", {}).get("initContainerStatuses", ()):
        state = container.get("state", {})
        if "terminated" in state:
            since = max(since, unix(state["terminated"].get("finishedAt")))
        elif "running" in state and container["name"] in sidecars and container.get("started"):
            since = max(since, unix(state["running"].get("startedAt")))
        elif "running" in state:
            return None
        else:
            break
    return since


def _unseen(raw: Manifest) -> Unseen | None:
    """None for a pod that was given its node by name."""
    spec = raw.get("spec", {})
    return None if spec.get("nodeName") else Unseen(spec.get("schedulerName", "default-scheduler"), _claims(raw))


def _claims(raw: Manifest) -> tuple[str, ...]:
    """PersistentVolumeClaims that a pod mounts."""
    volumes = raw.get("spec", {}).get("volumes", ())
    return tuple(sorted({v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}))


def silence_of(pod: str, events: Iterable[Manifest]) -> Trouble | None:
    """Why a pod that has its node waits, from its events; None if they do not tell."""
    # That it once had no node is over.
    told = [event for event in events if event.get("reason") != "FailedScheduling"]
    # Of one second, what comes later in a pod's life counts.
    newest = max(told, key=lambda event: (_told_at(event), {"Scheduled": 0, "Pulling": 1}.get(event.get("reason", ""), 2)), default=None)
    if newest is not None and newest.get("reason") == "Pulling":
        since, what = iso(_told_at(newest)), short(newest.get("message", ""))
        return Trouble(
            "PullingImage",
            f"pod {pod} waits since {since}: {what}; a large image takes minutes, and a registry that does not answer looks the same for "
            "some: check its name and the way to it",
        )
    warned = _newest(told, "Warning")
    return Trouble("ContainerCannotStart", f"pod {pod}: {warned}") if warned else None


def unplaced(pod: str, role: str, scheduler: str, events: Iterable[Manifest], claims: Iterable[tuple[Manifest, list[Manifest]]]) -> Trouble:
    """Why no scheduler has placed a pod, nor said why: from its events, and from its claims without a volume, each with its own events."""
    if warned := _newest(events, "Warning"):
        return Trouble("Unschedulable", f"pod {pod} has no node: {warned}; create or correct what it names")
    for claim, told in claims:
        meta, said = claim["metadata"], _newest(told, "Warning")
        if not said and _SELECTED_NODE in meta.get("annotations", {}):
            said = _newest(told) or "nobody has said why"
        if said:
            what = f"pod {pod} waits for its PersistentVolumeClaim {meta['name']}"
            return Trouble("VolumePending", f"{what}: {said}; {_volume_remedy([meta['name']])}")
    remedy = f"wait if {scheduler} is busy, start it if it does not run, or name another in spec.templates.{role}.spec.schedulerName"
    return Trouble("Unschedulable", f"no scheduler has said anything of pod {pod} yet: {remedy}")


def _newest(events: Iterable[Mapping[str, Any]], kind: str = "") -> str:
    """What the newest event (of a kind) says; empty if there is none."""
    found = max((event for event in events if kind in ("", event.get("type"))), key=_told_at, default=None)
    return short(f"{found.get('reason')}: {found.get('message')}") if found else ""


def _volume_remedy(claims: Iterable[str]) -> str:
    return (
        f"make the claim if it is missing (spec.checkpoint.volume, spec.files.claim), else kubectl describe pvc {' '.join(claims)} tells "
        "more: its class has to provide what it asks for (settings.storageClass and settings.accessMode of the chart)"
    )


def _told_at(event: Mapping[str, Any]) -> float:
    return unix(event.get("lastTimestamp") or event.get("eventTime"))


def _exits(status: Mapping[str, Any]) -> Iterator[Exit]:
    for container in _containers(status):
        for where in ("state", "lastState"):
            end = container.get(where, {}).get("terminated")
            if end and end.get("exitCode"):
                yield Exit(container["name"], end["exitCode"], _last_words(end), unix(end.get("finishedAt")))
                break


def _last_words(end: Mapping[str, Any]) -> str:
    reason, text = end.get("reason", "Error"), end.get("message", "")
    # With `FallbackToLogsOnError` the message is the end of the log: an error line of ours says it all.
    said = next((line for line in reversed(text.splitlines()) if line.startswith("error: ")), None)
    if said is not None:
        return short(said.removeprefix("error: "))
    if reason == "OOMKilled":
        return "was killed for using more memory than its limit; ask for more in spec.templates, or make the job smaller"
    return short(text) or f"{reason}, exit status {end.get('exitCode')}"


def _refused(raw: Manifest) -> Trouble | None:
    """Why the node's kubelet did not take a pod; None if it did."""
    status = raw.get("status", {})
    reason = status.get("reason", "")
    if not (reason.startswith(_NO_ROOM) or reason in ("TopologyAffinityError", "UnexpectedAdmissionError")):
        return None
    node = raw.get("spec", {}).get("nodeName", "its node")
    said = short(status.get("message", ""))
    return Trouble("RefusedByNode", f"pod {raw['metadata']['name']}: {node} did not take it ({reason}): {said}; it is made anew")


def _pod_trouble(raw: Manifest) -> Trouble | None:
    name = raw["metadata"]["name"]
    placed = _condition(raw, "PodScheduled")
    if placed.get("status") == "False":
        if placed.get("reason") == "SchedulingGated":
            return Trouble("Queued", f"pod {name} waits until its queue admits it")
        said = short(placed.get("message", ""))
        if _NO_VOLUME.search(said):
            return Trouble("VolumePending", f"pod {name} waits for its volume: {said}; {_volume_remedy(_claims(raw))}")
        remedy = "free, label or add such nodes, or ask for less (spec.accelerator, spec.templates)"
        return Trouble("Unschedulable", f"pod {name} fits on no node: {said}; {remedy}")
    for container in _containers(raw.get("status", {})):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), short(waiting.get("message", ""))
        where = f"pod {name}, container {container['name']}"
        if reason in _PULL:
            remedy = "correct the image's name, push it, or name a pull secret in the operator's settings"
            return Trouble("ImagePullFailed", f"{where}: image {container.get('image')} cannot be pulled ({reason}): {message}; {remedy}")
        if reason in _CONFIG:
            return Trouble("ContainerCannotStart", f"{where}: {reason}: {message}; create or correct what it names")
        if reason == "CrashLoopBackOff":
            ends = [e for e in _exits(raw["status"]) if e.container == container["name"]]
            last = f": {ends[0].message}" if ends else ""
            return Trouble("CrashLoop", f"{where} ended {container.get('restartCount', 0)} times{last}")
    return None


def _deployment(raw: Manifest) -> DeploymentState:
    status, name = raw.get("status", {}), raw["metadata"]["name"]
    failure, progress = _condition(raw, "ReplicaFailure"), _condition(raw, "Progressing")
    trouble = None
    if failure.get("status") == "True":
        said = failure.get("message", "")
        reason, remedy = refusal(said)
        trouble = Trouble(reason, f"Deployment {name}: {short(said)}; {remedy}")
    stuck = None
    if progress.get("reason") == "ProgressDeadlineExceeded":
        said = short(progress.get("message", "")).rstrip(".")
        remedy = "its newest pods do not become ready: their logs and events (kubectl describe) say why"
        stuck = Trouble("ProgressDeadlineExceeded", f"Deployment {name}: {said}; {remedy}")
    # As `kubectl rollout status` has it: pods of an older template that still answer stand for none of the newest.
    current = status.get("observedGeneration", 0) >= raw["metadata"].get("generation", 0)
    replicas, updated = raw.get("spec", {}).get("replicas", 1), status.get("updatedReplicas", 0)
    enough = updated >= replicas and status.get("replicas", 0) == updated and status.get("availableReplicas", 0) >= updated
    return DeploymentState(available=current and enough, trouble=trouble, stuck=stuck)


def refusal(message: str, code: int = 403) -> tuple[str, str]:
    """(One word for why the API server refused an object, what helps)."""
    for words, reason, remedy in _REFUSALS:
        if re.search(words, message):
            return reason, remedy
    if code == 403:
        return "Forbidden", "allow it in the namespace, or change spec.templates"
    return "Refused", "correct the field that it comes from, mostly one of spec.templates"
