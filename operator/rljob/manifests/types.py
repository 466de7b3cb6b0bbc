"""What a rendering starts from and ends with. Values, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Manifest = dict[str, Any]
"""One Kubernetes object as it is applied: plain JSON."""

LABEL_JOB = "rljob.dev/job"
LABEL_ROLE = "rljob.dev/role"
LABEL_POD = "rljob.dev/pod"
"""Name of the pod in the plan, such as `worker-0`."""
ANNOTATION_HASH = "rljob.dev/spec-hash"
"""Hash of the rendered object. An object whose hash differs from the wanted one is out of date; live objects are never compared deeply."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "rljob"}
FIELD_MANAGER = "rljob"
KUEUE = "kueue.x-k8s.io"
"""Prefix of Kueue's labels, annotations and finalizer."""
LABEL_COMPONENT = "app.kubernetes.io/component"
OPERATOR_LABELS = {"app.kubernetes.io/name": "rljob", LABEL_COMPONENT: "operator"}
"""Labels of the operator's own pods: the chart sets them, NetworkPolicies let them reach masters."""

UPDATE: Mapping[str, Literal["recreate", "keep"]] = {
    "Pod": "recreate",
    "ResourceClaimTemplate": "recreate",
    "PersistentVolumeClaim": "keep",
}
"""What to do with an existing object whose hash is not the wanted one, by kind: delete it and make it again, or leave it as it is (a claim
cannot shrink, and what it holds is the job's state) and never write more of it than labels and owner. Every other kind is applied over the
existing object."""


@dataclass(frozen=True)
class Owner:
    """The RLJob that owns what is rendered. `uid` is None where nothing owns it (`rljob render`)."""

    name: str
    namespace: str
    uid: str | None


@dataclass(frozen=True)
class Cluster:
    """What the operator found the cluster to offer, as far as rendering depends on it."""

    version: tuple[int, int] = (1, 34)
    device_classes: frozenset[str] = frozenset()
    """Names of the DeviceClasses of resource.k8s.io/v1; empty if that is not served."""


@dataclass(frozen=True)
class SharingChoice:
    """How a job's sidecars share their accelerators."""

    mode: str
    """`none` (CPU), `claim`, `single` or `visible`."""
    reason: str
    """Why, for status."""
