"""What a person should do next about a job, from what its cluster says. Pure."""

from rljob.remote.observe import PodState, Snapshot

_PATIENCE = 30.0
"""Seconds after which an operator should have looked at a job."""
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


def advice(seen: Snapshot) -> tuple[str, ...]:
    """One sentence or several, the most pressing first; empty while everything goes its way."""
    if _refused(seen):
        return (_change(seen),)
    if seen.phase == "Succeeded":
        return (_model(seen),)
    if seen.suspended:
        return (f"it is suspended: kubectl rljob resume {seen.name}{_in(seen)}",)
    found = [*_of_job(seen), *(text for pod in seen.pods if (text := _of_pod(seen, pod)))]
    return tuple(dict.fromkeys(found))


def _refused(seen: Snapshot) -> bool:
    """Whether the spec of a job that stands still has been changed to one that cannot be used."""
    stands = seen.suspended or seen.phase in ("Suspended", "Succeeded", "Failed")
    stalled, failed = seen.condition("Stalled"), seen.condition("Failed")
    if not stands or stalled is None or not stalled.holds:
        return False
    return failed is None or not failed.holds or failed.reason != stalled.reason


def _in(seen: Snapshot) -> str:
    """What names this job's place, whatever kubectl would take by itself: another job there may have its name."""
    return f" -n {seen.namespace}{seen.options}"


def _apply(seen: Snapshot) -> str:
    return f"kubectl apply{_in(seen)} -f FILE"


def _change(seen: Snapshot) -> str:
    return f"change what the condition Stalled names, then {_apply(seen)}; the operator goes on by itself"


def _model(seen: Snapshot) -> str:
    return f"the trained model is the folder `model` on PersistentVolumeClaim {seen.volume}; it loads with transformers and vLLM"


def _ready(seen: Snapshot) -> str:
    """Reason that the operator gives why the job is or is not ready."""
    found = seen.condition("Ready")
    return found.reason if found is not None else ""


def _of_job(seen: Snapshot) -> list[str]:
    found = []
    if not seen.seen and seen.age > _PATIENCE:
        look = f"kubectl get deployments -A{seen.options} | grep rljob"
        found.append(f"no operator has acted on this job's spec: is it installed and running? {look}")
    if _ready(seen) == "VolumePending":
        look = f"kubectl describe pvc CLAIM{_in(seen)}"
        found.append(f"it waits for a volume: {look} says more of the claim that the condition Ready names, which says what helps, too")
    elif _ready(seen) == "Unschedulable" and all(pod.state != "Unschedulable" for pod in seen.pods):
        found.append("a pod waits for a node: the condition Ready says why, and what helps")
    failure = seen.status.last_failure
    if seen.phase == "Failed":
        ended = next((pod.short for pod in seen.pods if pod.state in ("Error", "Failed", "OOMKilled")), failure.pod if failure else "")
        pod = f" {ended}" if ended else ""
        found.append(f"read what was said: kubectl rljob logs {seen.name}{pod}{_in(seen)}")
        found.append(f"then change the spec and {_apply(seen)}: it goes on from the last committed iteration")
        kept = f", which removes its volume {seen.volume} too" if seen.own_volume else ""
        delete = f"kubectl delete rljob {seen.name}{_in(seen)}"
        found.append(f"to start over, or to change what cannot change: {delete}{kept}, and {_apply(seen)}")
    elif seen.holds("Stalled"):
        found.append(_change(seen))
    elif failure is not None:
        found.append(f"the job went on by itself; if that failure comes back: kubectl rljob logs {seen.name} {failure.pod}{_in(seen)}")
    return found


def _of_pod(seen: Snapshot, pod: PodState) -> str:
    """What to do about a pod that does not run."""
    if pod.state in _IMAGE:
        return f"{pod.short}: the image cannot be pulled; check `images` and `imagePullSecrets` of the operator's settings"
    if pod.state == "Unschedulable" and _ready(seen) != "VolumePending":
        return (
            f"{pod.short}: no node has room; lower what the job asks for (kubectl rljob plan {seen.name}{_in(seen)} shows it), add or "
            "label nodes, or change nodeSelector and tolerations in spec.templates"
        )
    if "OOMKilled" in pod.message or pod.state == "OOMKilled":
        return f"{pod.short}: out of memory; raise its limit in spec.templates.{pod.role or 'ROLE'}"
    if pod.state == "CrashLoopBackOff" and seen.phase != "Failed":
        return f"{pod.short}: keeps ending; kubectl rljob logs {seen.name} {pod.short} --previous{_in(seen)}"
    if pod.state == "Evicted":
        node = f"kubectl describe node {pod.node or '...'}{seen.options}"
        return f"{pod.short}: evicted, the operator replaces it; {node} says what the node lacks"
    if pod.state == "CreateContainerConfigError":
        return f"{pod.short}: a Secret, ConfigMap or volume that it names is missing; the pod's message says which"
    return ""
