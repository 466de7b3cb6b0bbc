"""The few changes that `kubectl rljob` makes itself. A job that a GitOps tool applies is changed there, or the tool sets it back."""

from rljob.api import ConfigurationError
from rljob.remote.cluster import Api
from rljob.remote.observe import find, jobs_path


def scale(api: Api, name: str, replicas: int) -> tuple[int, int]:
    """Set the number of rollout-only pods through the scale subresource; (before, after).

    Raises:
        ConfigurationError: there is no such job, or the number is refused.
    """
    if replicas < 0:
        raise ConfigurationError(f"spec.rollout.replicas: {replicas} is not possible; give a number from 0 on")
    before = int(find(api, name)["spec"].get("rollout", {}).get("replicas", 0))
    api.patch(jobs_path(api.namespace, name, "scale"), {"spec": {"replicas": replicas}})
    return before, replicas


def suspend(api: Api, name: str, suspended: bool) -> bool:
    """Set or unset `spec.suspend`. False: it was so already.

    Raises:
        ConfigurationError: there is no such job, or it has ended.
    """
    job = find(api, name)
    phase = job.get("status", {}).get("phase", "")
    if phase in ("Succeeded", "Failed"):
        raise ConfigurationError(f"{name} has ended ({phase}); there is nothing to {'suspend' if suspended else 'resume'}")
    if bool(job["spec"].get("suspend", False)) == suspended:
        return False
    api.patch(jobs_path(api.namespace, name), {"spec": {"suspend": suspended}})
    return True
