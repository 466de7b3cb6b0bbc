"""Names and labels of a job's objects. Deterministic: an object is found by them alone."""

from rljob.api import GROUP, KIND, VERSION, ConfigurationError
from rljob.manifests.types import LABEL_COMPONENT, LABEL_JOB, LABEL_POD, LABEL_ROLE, MANAGED_BY, Manifest, Owner

LONGEST = 63
"""Of a name that is part of a host name (DNS label)."""


def child(job: str, part: str) -> str:
    """Name of one object: `JOB-worker-0`, `JOB-master`, `JOB-work`."""
    return f"{job}-{part}"


def checked(name: str) -> str:
    """`name`, if it can be a host name.

    Raises:
        ConfigurationError: it is too long.
    """
    if len(name) > LONGEST:
        raise ConfigurationError(
            f"metadata.name: {name} has {len(name)} characters, a pod's host name at most {LONGEST}: give the job a name that is "
            f"{len(name) - LONGEST} shorter"
        )
    return name


def labels(job: str, role: str | None = None, pod: str | None = None) -> dict[str, str]:
    """Labels of an object."""
    found = MANAGED_BY | {"app.kubernetes.io/name": "rljob", LABEL_JOB: job}
    if role is not None:
        found |= {LABEL_ROLE: role, LABEL_COMPONENT: role}
    return found | ({LABEL_POD: pod} if pod is not None else {})


def match(job: str, role: str | None = None) -> dict[str, str]:
    """`matchLabels` of a job's pods, or of those of one role."""
    return {LABEL_JOB: job} | ({LABEL_ROLE: role} if role else {})


def selector(job: str, role: str | None = None) -> str:
    """The same as text, such as `kubectl get pods -l` takes."""
    return ",".join(f"{name}={value}" for name, value in match(job, role).items())


def metadata(owner: Owner, name: str, role: str | None = None, pod: str | None = None) -> Manifest:
    """Metadata of an object of this job."""
    found: Manifest = {"name": name, "namespace": owner.namespace, "labels": labels(owner.name, role, pod), "annotations": {}}
    if owner.uid is not None:
        found["ownerReferences"] = [
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return found
