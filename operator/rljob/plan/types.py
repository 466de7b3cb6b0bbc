"""What a plan consists of. Values, no behaviour: a supervisor on this machine or an operator in a cluster gives them their meaning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["master", "worker", "rollout", "reward", "sandbox"]


@dataclass(frozen=True)
class VolumePath:
    """A path on one of the plan's volumes; becomes the path at which the container sees it."""

    volume: str
    sub: str = ""


@dataclass(frozen=True)
class ServiceUrl:
    """Base address of a service, such as `http://host:port`."""

    name: str


@dataclass(frozen=True)
class Listen:
    """`host:port` to listen on; `port` is a port of the same pod."""

    port: str


@dataclass(frozen=True)
class PodName:
    """Name of the pod, such as `worker-0`."""


@dataclass(frozen=True)
class AdvertiseHost:
    """Host under which others reach this pod."""


@dataclass(frozen=True)
class PodHost:
    """Host under which another pod of this job is reached."""

    pod: str


@dataclass(frozen=True)
class PodPort:
    """Number of a port of another pod of this job."""

    pod: str
    port: str


@dataclass(frozen=True)
class Threads:
    """CPU cores of the pod, shared by so many processes; at least 1."""

    processes: int


Value = str | VolumePath | ServiceUrl | Listen | PodName | AdvertiseHost | PodHost | PodPort | Threads
"""Value of an environment variable."""


@dataclass(frozen=True)
class Port:
    """A port of a container. `number` holds in a cluster, where every pod has its own address; on one machine a free one is taken."""

    name: str
    number: int


@dataclass(frozen=True)
class HttpProbe:
    """GET `path` on a port or a unix socket of the pod; any status below 400 is good."""

    at: Listen | VolumePath
    path: str


@dataclass(frozen=True)
class ExecProbe:
    """A command in the container; exit status 0 is good."""

    command: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """When a container counts as started, and when as hung."""

    check: HttpProbe | ExecProbe
    startup_seconds: float = 180.0
    """Not good for so long after the start: the container failed."""
    period_seconds: float = 10.0
    """Between two checks once it has started."""
    failures: int = 12
    """So many bad checks in a row: the container hangs and is ended."""


@dataclass(frozen=True)
class Mount:
    """A volume inside a container."""

    volume: str
    path: str
    read_only: bool = False


@dataclass(frozen=True)
class Resources:
    """What a container asks for."""

    memory: int
    """Bytes."""
    cpus: float
    accelerators: int = 0


@dataclass(frozen=True)
class Container:
    """One process with its children."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, Value]
    mounts: tuple[Mount, ...]
    resources: Resources
    restart: Literal["always", "on-failure"]
    """`always`: an end is a failure. `on-failure`: exit status 0 is the end."""
    ports: tuple[Port, ...] = ()
    probe: Probe | None = None
    grace_seconds: float = 20.0
    """Between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Pod:
    """Containers that share a host, sockets and shared memory."""

    role: Role
    name: str
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    """Run to their end one after the other, before the rest."""
    sidecars: tuple[Container, ...] = ()
    """Started one after the other before `containers`, stopped after them."""
    replicas: int = 1
    """Equal copies behind the service."""
    waits: tuple[VolumePath, ...] = ()
    """Files that another pod makes and that must exist before `containers` start; sidecars use the time to import what they need."""

    @property
    def all_containers(self) -> tuple[Container, ...]:
        """Every container, in the order of their first start."""
        return self.init_containers + self.sidecars + self.containers

    @property
    def accelerators(self) -> int:
        """Devices of the pod; those of its containers that use any use all of them."""
        return max(container.resources.accelerators for container in self.all_containers)


@dataclass(frozen=True)
class Volume:
    """Storage.

    kind: `state` is durable and shared by the job's pods; `cache` is durable but can be lost; `source` is the folder of the job file (what
    relative paths of the job start at); `config` holds `files`; `memory` (of `size` bytes), `sockets` and `scratch` are private to each pod
    and end with it.
    """

    name: str
    kind: Literal["state", "cache", "source", "config", "memory", "sockets", "scratch"]
    size: int = 0
    """Bytes that the job needs there; 0 is unknown or little."""
    files: Mapping[str, str] = field(default_factory=dict)
    claim: str | None = None
    """Name of an existing claim (`spec.checkpoint.volume`)."""


@dataclass(frozen=True)
class Service:
    """A name under which a pod's port is reached."""

    name: str
    pod: str
    port: str


@dataclass(frozen=True)
class Plan:
    """Everything that runs for a job."""

    job: str
    pods: tuple[Pod, ...]
    volumes: tuple[Volume, ...]
    services: tuple[Service, ...]
    notes: tuple[str, ...] = ()
    """What the plan could not know, for people."""
    sized: bool = True
    """False where the model is not known: memory and volume sizes are lower bounds."""

    def pod(self, name: str) -> Pod:
        """The pod of that name.

        Raises:
            KeyError: there is none.
        """
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise KeyError(name)

    def volume(self, name: str) -> Volume:
        """The volume of that name.

        Raises:
            KeyError: there is none.
        """
        for volume in self.volumes:
            if volume.name == name:
                return volume
        raise KeyError(name)
