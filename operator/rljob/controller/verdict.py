"""What has become of a job, read from what exists. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rljob.api.errors import EXIT_CONFIGURATION, EXIT_FAILED
from rljob.controller.backoff import worst
from rljob.controller.trim import ANNOTATION_OPERATOR, unix
from rljob.controller.world import Child, DeploymentState, Desired, Exit, Observed, PodState, Trouble
from rljob.manifests.containers import NAMES

FINISHED = "Finished"
"""Reason of a job that is done."""
NEWER = "NewerOperator"
"""Reason of a job that this operator leaves to a newer one."""
STANDS = ("Suspended", "Succeeded", "Failed")
"""Conditions of which one is true while a job does not run."""
Fate = Literal["runs", "suspended", "succeeded", "failed", "refused", "foreign"]


@dataclass(frozen=True)
class Failure:
    """Where a job failed, and when."""

    stage: str
    pod: str
    reason: str
    message: str
    at: float


@dataclass(frozen=True)
class Verdict:
    """State of a job, and why."""

    fate: Fate
    reason: str = ""
    message: str = ""
    failure: Failure | None = None
    retried: bool = False
    """A job that stood still (failed, suspended) goes on: its clock starts anew."""
    paused: bool = False
    """The spec is refused, but that it asks for a pause can be read, and is done."""
    success: str = ""
    """The spec is refused, but what one before it asked for is done; what is said of that."""
    refusal: Trouble | None = None
    """The spec is refused, and this is the state of what the spec before it came to."""

    @property
    def finished(self) -> bool:
        """It will not go on by itself."""
        return self.fate in ("succeeded", "failed")


def condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A condition of a status; empty if it is not there."""
    found: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c.get("type") == kind), {})
    return found


def holds(status: Mapping[str, Any], kind: str) -> bool:
    """Is a condition true?"""
    return condition(status, kind).get("status") == "True"


def stands(status: Mapping[str, Any]) -> bool:
    """Has the job ended, or was it paused?"""
    return any(holds(status, kind) for kind in STANDS)


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(p) for p in parts) if all(p.isdigit() for p in parts) else ()


def newer_operator(seen: Observed, version: str) -> str | None:
    """Version of the operator that has the job, if it is newer than `version` (patch releases apart)."""
    last = seen.operator or seen.status.get("operatorVersion") or ""
    return last if _version(last) > _version(version) else None


def judge(desired: Desired, seen: Observed, now: float, version: str) -> Verdict:
    """State of the job now."""
    if (other := newer_operator(seen, version)) is not None:
        return Verdict("foreign", NEWER, _newer(other, version))
    if desired.refusal is not None:
        return _refused(desired, desired.refusal, seen, now)
    return _ended(desired, seen) or _going(desired, seen, now)


def _newer(other: str, version: str) -> str:
    return (
        f"operator {other} has worked on this job and this one is {version}: it is left alone. Run operator {other} or newer, or hand the "
        f"job to this one with the annotation {ANNOTATION_OPERATOR}={version}"
    )


def _refused(desired: Desired, refusal: Trouble, seen: Observed, now: float) -> Verdict:
    """A spec that cannot be used can ask for a pause, and sets nothing going; what ran before it goes on to its end, if it is known."""
    if desired.wants and not stands(seen.status):
        going = _going(desired, seen, now)
        if going.fate != "suspended":
            return replace(going, refusal=refusal)
    ended = holds(seen.status, "Succeeded") or holds(seen.status, "Failed")
    success = _success(seen) if not stands(seen.status) and _master_done(desired, seen) else ""
    paused = desired.terms.suspend and not ended and not success
    return Verdict("refused", refusal.reason, refusal.message, paused=paused, success=success)


def _ended(desired: Desired, seen: Observed) -> Verdict | None:
    """The end that was written down, as long as the spec does not ask for more."""
    status, terms = seen.status, desired.terms
    if holds(status, "Succeeded") and terms.iterations <= status.get("iterations", terms.iterations):
        was = condition(status, "Succeeded")
        return Verdict("succeeded", was.get("reason", ""), was.get("message", ""))
    was = condition(status, "Failed")
    if holds(status, "Failed") and was.get("observedGeneration") == seen.generation:
        return Verdict("failed", was.get("reason", ""), was.get("message", ""))
    return None


def _going(desired: Desired, seen: Observed, now: float) -> Verdict:
    status, terms = seen.status, desired.terms
    if _master_done(desired, seen):
        return Verdict("succeeded", FINISHED, _success(seen))
    if terms.suspend:
        return Verdict("suspended", "Suspended", "spec.suspend is true: no pod runs, the state is kept; set it to false to go on")
    if stands(status):
        return Verdict("runs", retried=True)
    return _failed(desired, seen, now) or Verdict("runs")


def queued(seen: Observed) -> bool:
    """Does the job wait until its queue admits it? Master and workers are admitted together, rollout pods one by one."""
    pods = [child.pod for child in seen.own_pods() if child.deleting is None and child.pod is not None and child.pod.role != "rollout"]
    return bool(pods) and all(pod.trouble is not None and pod.trouble.reason == "Queued" for pod in pods)


def _success(seen: Observed) -> str:
    total = f" after {seen.status['iteration']} iterations" if seen.status.get("iteration") else ""
    return f"the job is done{total}; its model is on its volume, the master's pod is kept for its log"


def _master_done(desired: Desired, seen: Observed) -> bool:
    child = next((c for c in seen.own_pods() if c.pod is not None and c.pod.plan_name == "master"), None)
    if child is None or child.pod is None or not (child.pod.done or child.pod.phase == "Succeeded"):
        return False
    # A master of an older spec that has ended did not know of iterations that were added since; a refused spec adds none.
    current = not desired.wants or any(want.name == child.name and want.hash == child.hash for want in desired.wants)
    return current or desired.terms.iterations <= seen.status.get("iterations", 0)


def _failed(desired: Desired, seen: Observed, now: float) -> Verdict | None:
    started = unix(seen.status.get("startTime"))
    # Before its queue lets a job go, it has no time yet; its reward service or a rollout pod may have begun, and ended.
    begun = started or min((child.pod.created for child in seen.own_pods() if child.pod is not None), default=now)
    for child, pod, end in ends(desired, seen):
        if end.code in (EXIT_CONFIGURATION, EXIT_FAILED) and end.finished >= begun:
            reason = "Configuration" if end.code == EXIT_CONFIGURATION else "JobFailed"
            failure = Failure(end.container, child.name, reason, end.message, end.finished)
            return Verdict("failed", reason, f"{pod.role} pod {child.name}, container {end.container}: {end.message}", failure)
    limit = desired.terms.backoff_limit
    where, count = worst(seen)
    if count > limit:
        last = max((e for _, _, e in ends(desired, seen)), key=lambda e: e.finished, default=None)
        message = f"{where} was restarted {count} times without progress between (spec.backoffLimit is {limit})"
        message += f"; it last said: {last.message}" if last else ""
        # A kubelet that has lost a container does not say when it ended.
        pod_name, at = where.partition("/")[0], (last.finished if last else 0.0) or now
        failure = Failure(where.rpartition("/")[2], pod_name, "BackoffLimitExceeded", message, at)
        return Verdict("failed", "BackoffLimitExceeded", message, failure)
    deadline = desired.terms.deadline
    if deadline is not None and started and now - started >= deadline and not queued(seen):
        message = f"the job has run for {now - started:.0f} s, spec.activeDeadlineSeconds is {deadline}; raise it to go on"
        return Verdict("failed", "DeadlineExceeded", message, Failure("job", "", "DeadlineExceeded", message, now))
    return None


def ends(desired: Desired, seen: Observed) -> Iterator[tuple[Child, PodState, Exit]]:
    """Containers of the job that ended with an error, in pods that are as they should be. What the exit status of one means that
    `spec.templates` or a webhook has added, nobody knows here."""
    wanted = {(w.kind, w.name): w.hash for w in desired.wants}
    for at, child in sorted(seen.children.items()):
        pod = child.pod
        if pod is None or child.deleting is not None:
            continue
        # Pods of a Deployment carry no hash: the time of their end tells whether it counts.
        if pod.plan_name and (child.owner != seen.uid or wanted.get(at) != child.hash):
            continue
        yield from ((child, pod, end) for end in pod.exits if end.container in NAMES)


SETTLE_SECONDS = 10.0
"""A young pod that has no node may only be waiting for its volume."""


def _unsettled(child: Child, now: float) -> float:
    """Seconds for which a pod's place is not yet worth a word."""
    pod = child.pod
    if pod is None or pod.trouble is None or pod.trouble.reason not in ("Unschedulable", "VolumePending"):
        return 0.0
    return pod.created + SETTLE_SECONDS - now


def settling(seen: Observed, now: float) -> float | None:
    """Seconds until the next young pod has had its time."""
    return min((wait for child in seen.children.values() if (wait := _unsettled(child, now)) > 0), default=None)


def in_order(desired: Desired, seen: Observed) -> list[Child]:
    """Children that stay, in the order of the plan; what is told first does not depend on what was seen first."""
    order = {want.name: index for index, want in enumerate(desired.wants)}
    children = (child for child in seen.children.values() if child.deleting is None)
    return sorted(children, key=lambda child: (order.get(child.name, len(order)), child.kind, child.name))


def _made_up_for(desired: Desired, seen: Observed, child: Child) -> bool:
    """Is it a pod that failed and that its Deployment has replaced? Such pods are kept, for days in a small cluster."""
    pod = child.pod
    if pod is None or pod.plan_name or pod.phase not in ("Failed", "Succeeded"):
        return False
    deployments = (seen.children.get((want.kind, want.name)) for want in desired.wants if want.role == pod.role)
    return any(isinstance(found.state, DeploymentState) and found.state.available for found in deployments if found is not None)


def trouble_of(desired: Desired, seen: Observed, now: float) -> Trouble | None:
    """What keeps the job from running, the most telling first. It goes on without a rollout pod, so what keeps those away comes last."""
    rollouts = {f"Pod {want.name}" for want in desired.wants if want.kind == "Pod" and want.role == "rollout"}
    at, trouble = min(_troubles(desired, seen, now), key=lambda found: found[0] in rollouts, default=("", None))
    if trouble is not None and at in rollouts and trouble.reason in ("QuotaExceeded", "Unschedulable"):
        remedy = f"the job goes on without it: lower spec.rollout.replicas ({desired.terms.rollouts}) if there will be no room"
        return Trouble(trouble.reason, f"{trouble.message}; {remedy}")
    return trouble


def _troubles(desired: Desired, seen: Observed, now: float) -> Iterator[tuple[str, Trouble]]:
    """With whose they are, as `Kind name`."""
    yield from seen.troubles.items()
    found = [(f"{child.kind} {child.name}", child) for child in in_order(desired, seen) if not _made_up_for(desired, seen, child)]
    for at, child in found:
        if child.state is not None and child.state.trouble is not None and _unsettled(child, now) <= 0:
            yield at, child.state.trouble
    for at, child in found:
        if child.pod is not None and child.pod.pending_since is not None and child.name in seen.silences:
            yield at, seen.silences[child.name]
    for at, child in found:
        if isinstance(child.state, DeploymentState) and child.state.stuck is not None:
            yield at, child.state.stuck
