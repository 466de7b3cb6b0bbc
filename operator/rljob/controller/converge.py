"""From the objects that are to those that should be. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rljob.controller.kinds import RUNNING
from rljob.controller.verdict import Verdict
from rljob.controller.world import Child, Desired, Observed, Trouble, Want
from rljob.manifests.types import KUEUE, UPDATE

REPLACE_SECONDS = 10.0
"""A pod that dies at once is made anew so often, not more."""
LOST_SECONDS = 90.0
"""A pod that is still there so long after it should be gone is on a node that does not answer."""
QUEUE_FINALIZER = f"{KUEUE}/managed"
"""Kueue leaves it on a pod of a group until another one has taken its place. None can: it would have the same name."""

EDITED = "was changed by hand and is as rendered again"
RENDERED = "it is rendered otherwise now: the spec has changed, or the operator (its version, images or settings)"
KEPT = "was changed by hand: its labels and owner are as rendered again, its spec stays as it is"


@dataclass(frozen=True)
class Create:
    """Make an object of the plan."""

    kind: str
    name: str


@dataclass(frozen=True)
class Apply:
    """Write an object of the plan over the one that is there; `why` is for people, empty if it is nothing they must hear of."""

    kind: str
    name: str
    uid: str
    why: str = ""


@dataclass(frozen=True)
class Delete:
    """Remove an object; `why` is for people, empty if it is nothing they must hear of."""

    kind: str
    name: str
    uid: str
    why: str = ""
    alarming: bool = False


@dataclass(frozen=True)
class DeleteJob:
    """Remove the RLJob itself."""

    uid: str


Action = Create | Apply | Delete | DeleteJob


@dataclass(frozen=True)
class Steps:
    """What to do to one object."""

    actions: tuple[Action, ...] = ()
    again: float | None = None
    """Look again after so many seconds."""
    trouble: Trouble | None = None


def steps(desired: Desired, seen: Observed, verdict: Verdict, now: float) -> Iterator[Steps]:
    """For each object, in the order of the plan, then for what should not be there."""
    stopped = verdict.fate != "runs"
    wanted = {(want.kind, want.name) for want in desired.wants}
    for want in desired.wants:
        if stopped and want.kind in RUNNING:
            continue
        yield _towards(want, seen, now)
    for at, child in seen.children.items():
        if child.owner != seen.uid or child.deleting is not None:
            continue
        if stopped and child.kind in RUNNING:
            yield from _stop(child, verdict)
        elif at not in wanted and UPDATE.get(child.kind) != "keep":
            yield Steps((Delete(child.kind, child.name, child.uid),))


def held_by_queue(children: Iterable[Child]) -> list[Child]:
    """Pods of this job, or of one before it, of which nothing is left but that their queue keeps them."""
    return [child for child in children if child.bequeathed and QUEUE_FINALIZER in child.held]


def pause(seen: Observed, verdict: Verdict) -> Iterator[Steps]:
    """Stop what runs, without knowing what else should be."""
    for child in seen.children.values():
        if child.owner == seen.uid and child.deleting is None and child.kind in RUNNING:
            yield from _stop(child, verdict)


def _towards(want: Want, seen: Observed, now: float) -> Steps:
    child = seen.children.get((want.kind, want.name))
    if child is None:
        return Steps((Create(want.kind, want.name),))
    if child.deleting is not None:
        lost = now - child.deleting > LOST_SECONDS and child.kind == "Pod"
        return Steps(again=30.0, trouble=_lost(child) if lost else None)
    # One without an owner lost it: by hand, or because an RLJob of this name was deleted without its children (`--cascade=orphan`).
    orphan = not child.owner and bool(child.hash)
    if child.owner != seen.uid and not orphan:
        return Steps(again=5.0, trouble=_inherited(child) if child.bequeathed else _foreign(child))
    if child.hash != want.hash and UPDATE.get(child.kind) != "keep":
        return _update(child)
    if child.pod is not None and (child.pod.phase == "Failed" or (child.pod.phase == "Succeeded" and want.pod != "master")):
        return _replace(child, now)
    if orphan or (want.kind, want.name) in seen.drifted:
        return Steps((repair(want.kind, want.name, child.uid),))
    return Steps()


def _update(child: Child) -> Steps:
    if UPDATE.get(child.kind) == "recreate":
        return Steps((Delete(child.kind, child.name, child.uid, RENDERED),))
    return Steps((Apply(child.kind, child.name, child.uid),))


def repair(kind: str, name: str, uid: str) -> Apply:
    """Write over an object that somebody changed by hand."""
    return Apply(kind, name, uid, KEPT if UPDATE.get(kind) == "keep" else EDITED)


def _replace(child: Child, now: float) -> Steps:
    """A pod has died as a whole. One that died young waits for a moment, so that what cannot live is not made in a loop."""
    pod = child.pod
    assert pod is not None
    wait = pod.created + REPLACE_SECONDS - now
    if wait > 0:
        return Steps(again=wait)
    ended = "; ".join(f"{end.container}: {end.message}" for end in pod.exits)
    why = f"{pod.reason or pod.phase}: {pod.message or ended or 'it ended'}"
    return Steps((Delete("Pod", child.name, child.uid, f"it was lost ({why}) and is made anew", alarming=True),))


def _stop(child: Child, verdict: Verdict) -> Iterator[Steps]:
    """After the end, pods that have ended keep their log; the rest gives its resources back. They stay as well where a refused spec asks
    for a pause: whether the job is done, only a spec that can be read tells."""
    ended = child.pod is not None and child.pod.phase in ("Succeeded", "Failed")
    if not ended or verdict.fate == "suspended":
        yield Steps((Delete(child.kind, child.name, child.uid),))


def _foreign(child: Child) -> Trouble:
    return Trouble(
        "NameTaken",
        f"{child.kind} {child.name} exists and does not belong to this RLJob; delete it, or give the RLJob another name",
    )


def _inherited(child: Child) -> Trouble:
    """The garbage collector takes it away: the RLJob that owns it is gone."""
    return Trouble("PodsStarting", f"waits until {child.kind} {child.name} of an earlier RLJob of this name is gone")


def _lost(child: Child) -> Trouble:
    if child.held:
        return Trouble(
            "HeldByFinalizer",
            f"pod {child.name} has ended and should be gone, but finalizers keep it ({', '.join(child.held)}): look at what has set them, "
            f"or take them off (kubectl edit pod {child.name}); then the pod is made anew",
        )
    return Trouble(
        "NodeLost",
        f"pod {child.name} should be gone and is not: its node does not answer. Bring the node back, delete it (kubectl delete node), or "
        "mark it with the taint node.kubernetes.io/out-of-service=nodeshutdown:NoExecute; then the pod is made anew",
    )
