"""What is known of jobs and their children: values, trimmed to what decisions need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rljob.controller.kinds import Key


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a container."""

    container: str
    code: int
    message: str
    finished: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something does not start or cannot be made."""

    reason: str
    """One CamelCase word."""
    message: str
    """One line: what, and what to do."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """What a pod needs of which no scheduler has said anything."""

    scheduler: str
    claims: tuple[str, ...]
    """Names of PersistentVolumeClaims."""


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod's status."""

    plan_name: str
    """Such as `worker-0`; empty for pods of a Deployment."""
    role: str
    phase: str
    ready: bool
    ip: str
    created: float
    """Unix time."""
    reason: str = ""
    """Of a pod that failed as a whole, such as `Evicted`."""
    message: str = ""
    disrupted: bool = False
    """It was ended by the cluster (evicted, preempted, node drained), by no fault of its own."""
    exits: tuple[Exit, ...] = ()
    """Last end of each container that ended with an error."""
    restarts: tuple[tuple[str, int], ...] = ()
    """Containers that were restarted."""
    trouble: Trouble | None = None
    begun: bool = False
    """A container of it runs or has run; a pod is pending until its init containers are done."""
    pending_since: float | None = None
    """Since when it waits for a node or for its next container without saying why (volume, mounts, sandbox, image)."""
    unseen: Unseen | None = None
    """It waits for a node."""
    done: bool = False
    """The master has ended without an error, and other containers of its pod run on, so that the pod does not end by itself. (One whose
    containers have all ended is Succeeded a moment later.)"""
    last_words: str = ""
    """What a master that has succeeded left behind (`rljob.master.lastwords`): a JobStatus in JSON."""


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """A Deployment's status."""

    available: bool
    """All its pods are of its newest template, and ready."""
    trouble: Trouble | None = None
    stuck: Trouble | None = None
    """It has not got on for long; what its pods say is more telling."""


@dataclass(frozen=True, slots=True)
class Child:
    """An object of a job."""

    kind: str
    name: str
    uid: str
    version: int
    hash: str
    owner: str
    """uid of the controlling owner; empty: nobody."""
    deleting: float | None = None
    """Unix time by which it should be gone."""
    own: int = 0
    """Fingerprint of the fields that the operator owns in it: another one means that somebody took or removed some."""
    edited: bool = False
    """Somebody else wrote to it after the operator did."""
    bequeathed: bool = False
    """Its owner is, or was, an RLJob of the name that its label says: if not this job, one before it."""
    held: tuple[str, ...] = ()
    """Of a pod that is being deleted and of which nothing runs any more: the finalizers that keep it."""
    state: PodState | DeploymentState | None = None

    @property
    def pod(self) -> PodState | None:
        """Status, if it is a pod."""
        return self.state if isinstance(self.state, PodState) else None


@dataclass(frozen=True, slots=True)
class Job:
    """An RLJob. Spec and status are JSON: a thousand parsed ones would fill the memory."""

    key: Key
    uid: str
    version: str
    generation: int
    created: float
    deleting: bool
    operator: str
    """Annotation `rljob.dev/operator-version`."""
    spec: bytes
    status: bytes


@dataclass(frozen=True)
class Terms:
    """What the operator itself reads of a spec."""

    suspend: bool = False
    backoff_limit: int = 6
    deadline: int | None = None
    ttl: int | None = None
    iterations: int = 1
    rollouts: int = 0


@dataclass(frozen=True)
class Want:
    """An object that the plan asks for."""

    kind: str
    name: str
    hash: str
    role: str = ""
    pod: str = ""


@dataclass(frozen=True)
class Desired:
    """What a spec comes to: objects, or the reason why it is refused. Beside that reason stands what the spec before it came to, if it is
    known: that goes on."""

    terms: Terms = field(default_factory=Terms)
    wants: tuple[Want, ...] = ()
    sharing: tuple[str, str] = ("", "")
    """How accelerators are shared, and why."""
    selector: str = ""
    """Label selector of rollout pods, for the scale subresource."""
    refusal: Trouble | None = None


@dataclass(frozen=True)
class Observed:
    """The world around one job at one moment."""

    uid: str
    generation: int
    status: Mapping[str, Any]
    """As it stands at the API server."""
    deleting: bool = False
    operator: str = ""
    children: Mapping[tuple[str, str], Child] = field(default_factory=dict)
    """By kind and name."""
    drifted: frozenset[tuple[str, str]] = frozenset()
    """Children that somebody changed by hand."""
    fingerprint: str = ""
    """Of the children as the operator wrote them."""
    troubles: Mapping[str, Trouble] = field(default_factory=dict)
    """Objects that the API server refused, by `Kind name`."""
    report: Mapping[str, Any] | None = None
    """What the master last said (JobStatus)."""
    silences: Mapping[str, Trouble] = field(default_factory=dict)
    """What events tell of pods that wait without saying why themselves, by pod name."""

    def own_pods(self) -> Iterator[Child]:
        """Master, workers and rollout pods of this job, not those of an earlier one of its name that are still there."""
        return (child for child in self.children.values() if child.pod is not None and child.owner == self.uid)
