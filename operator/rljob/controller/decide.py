"""The whole of what the operator decides for one job: the world in, actions, status and notices out. Pure, and without memory."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ValidationError

from rljob.api.status import JobStatus
from rljob.controller.backoff import remember
from rljob.controller.conditions import Notice, conditions, names
from rljob.controller.converge import Action, Apply, Create, Delete, DeleteJob, pause, steps
from rljob.controller.kinds import RUNNING
from rljob.controller.trim import iso, unix
from rljob.controller.verdict import NEWER, Failure, Verdict, ends, in_order, judge, queued, settling, stands, trouble_of
from rljob.controller.world import Child, DeploymentState, Desired, Observed, Trouble

Status = dict[str, Any]

FIELDS = {str(field.alias) for field in JobStatus.model_fields.values()}
"""What a master reports and the status takes over."""
SMALL_TALK = {"phase", "progress", "tokensPerSecond", "engines", "nodes", "updated"}
"""Of those, what changes with every look; it alone is written only now and then."""
SILENT_SECONDS = 15.0
"""A pod that waits for so long without saying why is asked for its events."""
UNKNOWN_SECONDS = 60.0
"""A spec with fields that this operator does not know is looked at again after so long: what the API server publishes of its definition
trails the definition itself."""


@dataclass(frozen=True)
class Decision:
    """What comes of one look."""

    actions: tuple[Action, ...] = ()
    status: Status | None = None
    """The whole new status; None: write nothing."""
    again: float | None = None
    """Look again after so many seconds, if nothing happens before."""
    making: tuple[str, str] = ("", "")
    """Reason of the event about pods that are made, and what it says beside their names; no reason: another event tells of it."""
    silent: tuple[str, ...] = ()
    """Pods whose events would tell why they wait, the first of the plan first."""


def decide(desired: Desired, seen: Observed, now: float, version: str) -> Decision:
    """One look at a job."""
    if seen.deleting:
        # Children go with it: the garbage collector follows their owner references.
        return Decision()
    verdict = judge(desired, seen, now, version)
    again = UNKNOWN_SECONDS if desired.refusal is not None and desired.refusal.reason == NEWER else None
    if verdict.fate in ("foreign", "refused"):
        over = verdict.fate == "refused" and (verdict.paused or bool(verdict.success) or stands(seen.status))
        stops = pause(seen, verdict) if over else ()
        return Decision(tuple(action for step in stops for action in step.actions), _stand_aside(desired, seen, verdict, now), again)
    found = list(steps(desired, seen, verdict, now))
    actions = tuple(action for step in found for action in step.actions)
    trouble = trouble_of(desired, seen, now) or next((step.trouble for step in found if step.trouble), None)
    status = _status(desired, seen, verdict, trouble, now, version)
    ttl = _ttl(desired, verdict, status, now)
    if ttl is not None and ttl <= 0:
        return Decision((DeleteJob(seen.uid),), status)
    silent = _silent(desired, seen, verdict)
    waits = [step.again for step in found] + [
        again,
        ttl,
        _deadline(desired, verdict, status, now),
        *(max(0.1, since + SILENT_SECONDS - now) if since + SILENT_SECONDS > now else SILENT_SECONDS for since in silent.values()),
        settling(seen, now),
    ]
    return Decision(
        actions,
        status,
        min((wait for wait in waits if wait is not None), default=None),
        _making(desired, seen, verdict),
        tuple(name for name, since in silent.items() if now - since >= SILENT_SECONDS),
    )


def _stand_aside(desired: Desired, seen: Observed, verdict: Verdict, now: float) -> Status:
    status: Status = dict(seen.status)
    status["conditions"] = conditions(verdict, None, "", seen.status, seen.generation, now)
    status["observedGeneration"] = seen.generation
    if verdict.paused:
        status["phase"] = "Suspended"
    elif verdict.fate == "refused" and not (seen.status.get("startTime") or verdict.success):
        status["phase"] = "Stalled"
    elif verdict.fate == "refused" and not stands(seen.status):
        # Its pods run on, though what should be is not known.
        status |= _reported(seen)
        status["phase"] = "Succeeded" if verdict.success else _phase(desired, seen, verdict, status)
    if verdict.success:
        status["completionTime"] = iso(now)
    if "rollout" in status and verdict.fate == "refused":
        status["rollout"] = _rollout(seen, status["rollout"].get("selector", ""))
    return status


def _ttl(desired: Desired, verdict: Verdict, status: Mapping[str, Any], now: float) -> float | None:
    if desired.terms.ttl is None or not verdict.finished or verdict.refusal is not None:
        return None
    return unix(status.get("completionTime")) + desired.terms.ttl - now


def _deadline(desired: Desired, verdict: Verdict, status: Mapping[str, Any], now: float) -> float | None:
    if desired.terms.deadline is None or verdict.fate != "runs" or "startTime" not in status:
        return None
    return max(0.1, unix(status.get("startTime")) + desired.terms.deadline - now)


def _silent(desired: Desired, seen: Observed, verdict: Verdict) -> dict[str, float]:
    """Pods that wait without saying why: name to since when; as `trouble_of` tells of them, those of rollouts last."""
    if verdict.fate != "runs":
        return {}
    children = sorted(in_order(desired, seen), key=lambda child: child.pod is not None and child.pod.role == "rollout")
    pods = {child.name: child.pod.pending_since for child in children if child.pod is not None}
    return {name: since for name, since in pods.items() if since is not None}


def _making(desired: Desired, seen: Observed, verdict: Verdict) -> tuple[str, str]:
    begun = any(child.kind in ("Pod", "Deployment") and child.owner == seen.uid for child in seen.children.values())
    if begun or seen.status.get("startTime"):
        return ("", "") if verdict.retried else ("PodMade", "")
    mode, reason = desired.sharing
    return "Started", "" if mode == "none" else f"; sidecars share their accelerators by `{mode}`: {reason}"


def notices_of(done: Sequence[Action], making: tuple[str, str]) -> list[Notice]:
    """What people should hear of actions that took effect. What follows from the status is said by `conditions.notices`."""
    created = [action.name for action in done if isinstance(action, Create) and action.kind in ("Pod", "Deployment")]
    reason, more = making
    found = [Notice("Normal", reason, f"made {names(created)}{more}")] if created and reason else []
    for action in done:
        match action:
            case Delete(kind, name, why=why, alarming=True):
                found.append(Notice("Warning", "PodLost", f"{kind} {name}: {why}"))
            case Delete(kind, name, why=why) if why:
                found.append(Notice("Normal", "Remade", f"{kind} {name}: {why}"))
            case Apply(kind, name, why=why) if why:
                found.append(Notice("Normal", "Repaired", f"{kind} {name} {why}"))
            case _:
                pass
    return found


def _status(desired: Desired, seen: Observed, verdict: Verdict, trouble: Trouble | None, now: float, version: str) -> Status:
    status: Status = dict(seen.status)
    status |= (reported := _reported(seen))
    if verdict.failure is not None:
        status["lastFailure"] = _last_failure(verdict.failure)
    else:
        status |= _pod_failure(desired, seen)
    if verdict.fate == "runs" and queued(seen):
        # As a Job that its queue has suspended: its time counts from when it is admitted.
        status.pop("startTime", None)
    elif verdict.retried or not status.get("startTime"):
        status["startTime"] = iso(now)
    if not verdict.finished:
        status.pop("completionTime", None)
    if verdict.finished and not status.get("completionTime"):
        status["completionTime"] = iso(now)
    if verdict.fate == "succeeded" and (_current_master(desired, seen) or "iterations" not in status):
        # From now on, a spec that asks for more than this sets the job going again.
        status["iterations"] = desired.terms.iterations
    waiting = _waiting(desired, seen) if verdict.fate == "runs" else ""
    status["phase"] = _phase(desired, seen, verdict, status)
    if verdict.fate != "runs" or ("progress" not in reported and (reported or status["phase"] != seen.status.get("phase"))):
        status.pop("progress", None)  # of a phase that is over
    status["observedGeneration"] = seen.generation
    status["operatorVersion"] = version
    status["conditions"] = conditions(verdict, trouble, waiting, seen.status, seen.generation, now)
    status["rollout"] = _rollout(seen, desired.selector)
    mode, reason = desired.sharing
    status["sharing"] = {"mode": mode, "reason": reason}
    status["fingerprint"] = seen.fingerprint
    status["backoff"] = remember(seen, status, verdict.retried)
    return status


def _current_master(desired: Desired, seen: Observed) -> bool:
    want = next((w for w in desired.wants if w.pod == "master"), None)
    child = seen.children.get(("Pod", want.name)) if want else None
    return want is not None and child is not None and child.hash == want.hash


def _reported(seen: Observed) -> Status:
    """The master's words, except its phase: that is weighed against what the pods show."""
    report = {name: value for name, value in (seen.report or {}).items() if name in FIELDS and value is not None}
    if words := _last_words(seen):
        report |= words | _lists({**seen.status, **report}, words)
    report.pop("phase", None)
    return report


def _last_words(seen: Observed) -> Status:
    """What a master left behind when it ended; {} before, or if it is none of a master's."""
    text = next((child.pod.last_words for child in seen.own_pods() if child.pod is not None and child.pod.last_words), "")
    if not text:
        return {}
    try:
        return JobStatus.model_validate_json(text, extra="ignore").model_dump(mode="json", by_alias=True, exclude_unset=True)
    except ValidationError:
        return {}


def _lists(known: Mapping[str, Any], words: Mapping[str, Any]) -> Status:
    """Rewards and evaluations: last words hold only the newest."""
    first, start = int(known.get("rewardsBefore") or 0), int(words.get("rewardsBefore") or 0)
    older = list(known.get("rewards") or ())[: max(0, start - first)]
    whole = first + len(older) == start
    evaluations = {each["iteration"]: each for source in (known, words) for each in source.get("heldOut") or ()}
    return {
        "rewards": [*(older if whole else ()), *(words.get("rewards") or ())],
        "rewardsBefore": first if whole else start,
        "heldOut": [evaluations[iteration] for iteration in sorted(evaluations)],
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Literal["none", "small talk", "news"]:
    """How much two statuses differ."""
    if _without(old) == _without(new):
        return "none"
    return "small talk" if _news(old) == _news(new) else "news"


def _news(status: Mapping[str, Any]) -> Status:
    """What is worth a write at once; that a failure has come back is not."""
    failure = {name: value for name, value in (status.get("lastFailure") or {}).items() if name != "at"}
    return _without(status, SMALL_TALK) | {"lastFailure": failure}


def _without(status: Mapping[str, Any], names: Container[str] = ()) -> Status:
    return {name: value for name, value in status.items() if name not in names and value is not None}


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Status:
    """What a merge patch (RFC 7386) has to say so that `old` becomes `new`: None removes, and mappings are merged, not replaced."""
    patch: Status = {name: None for name, value in old.items() if name not in new and value is not None}
    for name, value in new.items():
        was = old.get(name)
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            if below := merge_patch(was, value):
                patch[name] = below
        elif was != value:
            patch[name] = value
    return patch


def _pod_failure(desired: Desired, seen: Observed) -> Status:
    """A container that ended after the master's last word is news that the master does not have."""
    last = max(ends(desired, seen), key=lambda found: found[2].finished, default=None)
    if last is None or last[2].finished <= float((seen.report or seen.status).get("updated") or 0.0):
        return {}
    child, _, end = last
    return {"lastFailure": _last_failure(Failure(end.container, child.name, f"Exit{end.code}", end.message, end.finished))}


def _last_failure(failure: Failure) -> Status:
    return asdict(failure) | {"at": iso(failure.at)}


def _phase(desired: Desired, seen: Observed, verdict: Verdict, status: Mapping[str, Any]) -> str:
    match verdict.fate:
        case "suspended":
            return "Suspended"
        case "succeeded":
            return "Succeeded"
        case "failed":
            return "Failed"
        case _:
            pass
    masters = [c.pod for c in seen.own_pods() if c.pod is not None and c.pod.plan_name == "master" and c.deleting is None]
    if not masters or masters[0].phase != "Running":
        return "Preparing" if masters and masters[0].phase == "Pending" and masters[0].begun else "Pending"
    if seen.report is not None:
        return str(seen.report.get("phase") or "Preparing")
    before = str(status.get("phase") or "")
    return before if before not in ("", "Pending", "Suspended", "Failed", "Succeeded", "Stalled") else "Preparing"


def _is_ready(child: Child | None) -> bool:
    if child is None or child.deleting is not None:
        return False
    if isinstance(child.state, DeploymentState):
        return child.state.available
    return child.pod is None or child.pod.ready


def _waiting(desired: Desired, seen: Observed) -> str:
    """What is not ready; empty if all is."""
    wanted = [want for want in desired.wants if want.kind in ("Pod", "Deployment")]
    missing = [want.name for want in wanted if not _is_ready(seen.children.get((want.kind, want.name)))]
    others = [w.name for w in desired.wants if w.kind not in RUNNING and (w.kind, w.name) not in seen.children]
    if others:
        return f"{names(others)} not made yet"
    return f"{len(wanted) - len(missing)} of {len(wanted)} ready; waiting for {names(missing)}" if missing else ""


def _rollout(seen: Observed, selector: str) -> Status:
    pods = [c.pod for c in seen.own_pods() if c.pod is not None and c.pod.role == "rollout" and c.deleting is None]
    return {"replicas": len(pods), "readyReplicas": sum(pod.ready for pod in pods), "selector": selector}
