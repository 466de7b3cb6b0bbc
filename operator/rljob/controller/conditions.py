"""Conditions as kstatus reads them, and what of their changes a person should hear. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rljob.controller.trim import iso
from rljob.controller.verdict import FINISHED, STANDS, Verdict, condition, holds, stands
from rljob.controller.world import Trouble

TYPES = ("Ready", "Reconciling", "Stalled", *STANDS)


@dataclass(frozen=True)
class Said:
    """A condition without its times."""

    holds: bool
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Notice:
    """An event for people."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def conditions(
    verdict: Verdict, trouble: Trouble | None, waiting: str, old: Mapping[str, Any], generation: int, now: float
) -> list[dict[str, Any]]:
    """All conditions. `waiting`: what is not ready yet; empty when all runs."""
    said = _said(verdict, trouble, waiting)
    if verdict.fate == "refused":
        # A spec that cannot be used ends and sets going nothing: how the job stands is what the next spec goes on from. It can ask for a
        # pause.
        said = {kind: one for kind, one in said.items() if one.holds or kind not in STANDS or not condition(old, kind)}
    if verdict.fate == "foreign":
        # Somebody else's words stay; ours is that we stand aside.
        said = {"Ready": Said(False, verdict.reason, verdict.message), "Stalled": said["Stalled"], "Reconciling": said["Reconciling"]}
    return [_stamped(kind, said[kind], old, generation, now) for kind in TYPES if kind in said] + [
        dict(c) for c in old.get("conditions") or () if c.get("type") not in said
    ]


def _said(verdict: Verdict, trouble: Trouble | None, waiting: str) -> dict[str, Said]:
    why = Said(True, verdict.reason, verdict.message)
    no = Said(False, verdict.reason or "Running")
    found = {kind: no for kind in TYPES}
    match verdict.fate:
        case "runs" if trouble is not None:
            found |= {"Ready": Said(False, trouble.reason, trouble.message), "Reconciling": Said(True, trouble.reason, trouble.message)}
        case "runs" if waiting:
            found |= {"Ready": Said(False, "PodsStarting", waiting), "Reconciling": Said(True, "PodsStarting", waiting)}
        case "runs":
            found |= {"Ready": Said(True, "Running", "all pods run")}
        case "suspended":
            # What the spec asks for is so: nothing is in progress, nothing is wrong.
            found |= {"Ready": why, "Suspended": why}
        case "succeeded":
            found |= {"Ready": why, "Succeeded": why}
        case "failed":
            found |= {"Ready": Said(False, verdict.reason, verdict.message), "Stalled": why, "Failed": why}
        case "refused" | "foreign":
            found |= {"Ready": Said(False, verdict.reason, verdict.message), "Stalled": why}
    if verdict.success:
        found["Succeeded"] = Said(True, FINISHED, verdict.success)
    if verdict.refusal is not None:
        # Whatever else is to be said of what goes on: it is not what the spec asks for.
        reason, message = verdict.refusal.reason, verdict.refusal.message
        besides = f"; meanwhile, {trouble.message}" if trouble is not None and verdict.fate == "runs" else ""
        found |= {"Ready": Said(False, reason, message + besides), "Stalled": Said(True, reason, message), "Reconciling": no}
    if verdict.paused:
        message = "spec.suspend is true: no pod runs, the state is kept; to go on, correct what Stalled names and set it to false"
        found["Suspended"] = Said(True, "Suspended", message)
    return found


def _stamped(kind: str, said: Said, old: Mapping[str, Any], generation: int, now: float) -> dict[str, Any]:
    was, status = condition(old, kind), "True" if said.holds else "False"
    since = was.get("lastTransitionTime") if was.get("status") == status else None
    return {
        "type": kind,
        "status": status,
        "reason": said.reason,
        "message": said.message,
        "observedGeneration": generation,
        "lastTransitionTime": since or iso(now),
    }


def notices(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Notice]:
    """What has changed between two statuses that a person should hear, each once."""
    found: list[Notice] = []
    for kind, tone in (("Succeeded", "Normal"), ("Failed", "Warning"), ("Suspended", "Normal")):
        if holds(new, kind) and not holds(old, kind):
            now = condition(new, kind)
            found.append(Notice("Warning" if tone == "Warning" else "Normal", kind, _line(now)))
    if holds(old, "Suspended") and not holds(new, "Suspended"):
        found.append(Notice("Normal", "Resumed", "spec.suspend is false: the pods are made again and go on where they stopped"))
    ready, was = condition(new, "Ready"), condition(old, "Ready")
    was_stalled = condition(old, "Stalled").get("reason") if holds(old, "Stalled") else None
    refused = holds(new, "Stalled") and condition(new, "Stalled").get("reason") not in (condition(new, "Failed").get("reason"), was_stalled)
    if stands(new) and not refused:
        return found
    if holds(new, "Ready") and not holds(old, "Ready"):
        found.append(Notice("Normal", "Running", ready.get("message", "")))
    elif not holds(new, "Ready") and _is_bad_news(ready.get("reason"), was.get("reason")):
        found.append(Notice("Warning", str(ready.get("reason")), _line(ready)))
    return found


def _is_bad_news(reason: str | None, before: str | None) -> bool:
    if reason == "ProgressDeadlineExceeded":
        return before == "PodsStarting"  # after anything else it only says again that pods are late, whose cause has been told
    return reason not in ("PodsStarting", "Queued", "PullingImage", before)


def _line(said: Mapping[str, Any]) -> str:
    return str(said.get("message") or said.get("reason") or "")


def names(items: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
