"""`spec.backoffLimit`: restarts of one container in a row, without progress of the job between them. Pure.

Kubernetes counts restarts of a container for the life of its pod; what the status remembers is how many there were at the last progress,
and which pods have died since. So nothing is lost when the operator restarts, and nothing is counted twice.
"""

from collections.abc import Mapping
from typing import Any

from rljob.controller.world import Observed, PodState
from rljob.manifests.containers import NAMES


def _pods(seen: Observed) -> dict[str, tuple[str, PodState]]:
    """Master and workers: name to (uid, state). The job goes on without a rollout pod, so none of those can end it."""
    return {c.name: (c.uid, c.pod) for c in seen.own_pods() if c.pod is not None and c.pod.role != "rollout"}


def _restarts(seen: Observed) -> dict[str, int]:
    pods = _pods(seen).items()
    return {f"{pod}/{name}@{uid[:8]}": count for pod, (uid, state) in pods for name, count in state.restarts if name in NAMES}


def _failed(seen: Observed) -> dict[str, str]:
    """Pods that failed as a whole by their own fault: name to uid."""
    return {name: uid[:8] for name, (uid, state) in _pods(seen).items() if state.phase == "Failed" and not state.disrupted}


def _ended(seen: Observed) -> dict[str, str]:
    """Of these, the ones that have failed since the job last got on, or was tried anew."""
    base: Mapping[str, int] = (seen.status.get("backoff") or {}).get("base") or {}
    return {name: uid for name, uid in _failed(seen).items() if f"{name}@{uid}" not in base}


def marker(status: Mapping[str, Any]) -> str:
    """How far the job is."""
    return f"iteration {status.get('iteration', 0)}, version {status.get('policyVersion', 0)}"


def remember(seen: Observed, status: Mapping[str, Any], retried: bool) -> dict[str, Any]:
    """`status.backoff` after this look; `status` is the new one. Progress, or a new try, sets it back."""
    old: Mapping[str, Any] = seen.status.get("backoff") or {}
    # A pod that has failed and is still there belongs to the try before, as its restarts do.
    counted, at = _restarts(seen) | {f"{name}@{uid}": 1 for name, uid in _failed(seen).items()}, marker(status)
    if retried or old.get("at") != at:
        return {"at": at, "base": counted, "ended": {}}
    base = {key: count for key, count in (old.get("base") or {}).items() if key in counted}
    ended = {name: list(uids) for name, uids in (old.get("ended") or {}).items()}
    for name, uid in _ended(seen).items():
        if uid not in ended.setdefault(name, []):
            ended[name].append(uid)
    return {"at": at, "base": base, "ended": ended}


def worst(seen: Observed) -> tuple[str, int]:
    """(container or pod, restarts of it since the last progress)."""
    old: Mapping[str, Any] = seen.status.get("backoff") or {}
    base: Mapping[str, int] = old.get("base") or {}
    ended = {name: set(uids) for name, uids in (old.get("ended") or {}).items()}
    for name, uid in _ended(seen).items():
        ended.setdefault(name, set()).add(uid)
    counts = {key.partition("@")[0]: count - base.get(key, 0) for key, count in _restarts(seen).items()}
    counts |= {name: len(uids) for name, uids in ended.items()}
    where = max(counts, key=lambda name: counts[name], default="")
    return where, counts.get(where, 0)
