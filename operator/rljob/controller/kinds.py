"""Kinds of objects that a job consists of, and where an API server keeps them."""

from typing import NamedTuple

from rljob.api import GROUP, KIND, VERSION


class Kind(NamedTuple):
    """One kind of object."""

    kind: str
    api_version: str
    plural: str
    whole: bool = False
    """Status is read, so that whole objects are watched; of the others, metadata is enough."""
    optional: bool = False
    """Not every cluster serves it."""

    @property
    def path(self) -> str:
        """Prefix of its URLs."""
        return f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"


RLJOB = Kind(KIND, f"{GROUP}/{VERSION}", "rljobs", whole=True)
POD = Kind("Pod", "v1", "pods", whole=True)
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments", whole=True)
EVENT = Kind("Event", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
DEVICE_CLASS = Kind("DeviceClass", "resource.k8s.io/v1", "deviceclasses", optional=True)

CHILDREN = (
    Kind("ServiceAccount", "v1", "serviceaccounts"),
    Kind("ConfigMap", "v1", "configmaps"),
    Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Kind("Service", "v1", "services"),
    Kind("ResourceClaimTemplate", "resource.k8s.io/v1", "resourceclaimtemplates", optional=True),
    DEPLOYMENT,
    Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    POD,
)
"""Kinds of a job's children, in the order in which they are made."""

KINDS = {kind.kind: kind for kind in (RLJOB, EVENT, LEASE, DEVICE_CLASS, *CHILDREN)}
RUNNING = frozenset({"Pod", "Deployment", "PodDisruptionBudget"})
"""What exists only while a job runs; the rest stays until the RLJob is deleted."""


class Key(NamedTuple):
    """A job."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Ref(NamedTuple):
    """One object."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"
