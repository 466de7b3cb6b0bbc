"""From a plan's references to what they are on this machine. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from rljob.local.marked import MARK
from rljob.plan.types import (
    AdvertiseHost,
    Container,
    Listen,
    Plan,
    Pod,
    PodHost,
    PodName,
    PodPort,
    ServiceUrl,
    Threads,
    Value,
    VolumePath,
)

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Places:
    """Where one run's things are."""

    run: str
    """Id of the run, new for each."""
    folder: Path
    """The job folder, absolute."""
    source: Path
    """Folder of the job file."""
    cache: Path
    memory: Path
    """Below /dev/shm."""
    sockets: Path
    """Short: the path of a unix socket has at most 107 bytes."""
    ports: Mapping[tuple[str, str], int]
    """(pod, port name) to a free port."""
    python: str
    cores: int
    devices: tuple[str, ...] = ()
    """Accelerators that the run may use, as `CUDA_VISIBLE_DEVICES` names them."""


def mark(places: Places, pod: Pod, container: Container) -> str:
    """The mark of a container's processes."""
    return f"{places.run}/{pod.name}/{container.name}"


def volume_path(plan: Plan, places: Places, pod: Pod, path: VolumePath) -> Path:
    """Where a container of `pod` finds a path of a volume."""
    kind = plan.volume(path.volume).kind
    root = {
        "state": places.folder,
        "config": places.folder / "run",
        "source": places.source,
        "cache": places.cache,
        "memory": places.memory / pod.name,
        "sockets": places.sockets / pod.name,
        "scratch": places.sockets / f"{pod.name}-{path.volume}",
    }[kind]
    return root / path.sub if path.sub else root


def service_url(plan: Plan, places: Places, name: str) -> str:
    """Base address of a service.

    Raises:
        KeyError: the plan has no such service.
    """
    for service in plan.services:
        if service.name == name:
            return f"http://{HOST}:{places.ports[service.pod, service.port]}"
    raise KeyError(name)


TORCHRUN = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"})
"""What launchers of torch say of a process; a trainer that inherited it would look for the ranks of somebody else."""


def value(plan: Plan, places: Places, pod: Pod, what: Value) -> str:
    """An environment variable's value."""
    match what:
        case str():
            return what
        case VolumePath():
            return str(volume_path(plan, places, pod, what))
        case ServiceUrl(name):
            return service_url(plan, places, name)
        case Listen(port):
            return f"{HOST}:{places.ports[pod.name, port]}"
        case PodName():
            return pod.name
        case AdvertiseHost() | PodHost():
            return HOST
        case PodPort(other, port):
            return str(places.ports[other, port])
        case Threads(processes):
            return str(max(1, places.cores // processes))


def visible_devices(count: int, inherited: Mapping[str, str]) -> tuple[str, ...]:
    """Those of a machine's accelerators that the caller may use, as CUDA does it: all, or those that `CUDA_VISIBLE_DEVICES` names up to the
    first that is none."""
    said = inherited.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if said is None else map(str.strip, said.split(","))
    return tuple(takewhile(lambda name: name.startswith(("GPU-", "MIG-")) or (name.isdigit() and int(name) < count), names))


def devices_of(plan: Plan, places: Places, pod: Pod) -> tuple[str, ...]:
    """The accelerators of a pod, which no other pod has: as many as it asks for, after those of the pods before it."""
    first = sum(other.accelerators for other in takewhile(lambda other: other.name != pod.name, plan.pods))
    return places.devices[first : first + pod.accelerators]


def command(places: Places, container: Container) -> list[str]:
    """The command; `python` is the interpreter that runs this."""
    first, *rest = container.command
    return [places.python if first == "python" else first, *rest]


def environment(plan: Plan, places: Places, pod: Pod, container: Container, inherited: Mapping[str, str]) -> dict[str, str]:
    """All variables of a container: the caller's (without this project's own and those of a torchrun around it), what local processes need,
    the plan's, the mark."""
    env = {name: text for name, text in inherited.items() if not name.startswith("RLJOB_") and name not in TORCHRUN}
    # Lines reach the log when they are written; files are UTF-8 whatever the caller's locale, as in a cluster; setproctitle must not
    # overwrite the mark (rljob.local.marked).
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "SPT_NOENV": "1"}
    if devices := devices_of(plan, places, pod):
        # In this order the driver counts them too, and so does the memory gate; CUDA alone would put the fastest first.
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    env |= {name: value(plan, places, pod, what) for name, what in container.env.items()}
    return env | {MARK: mark(places, pod, container)}


def folders(plan: Plan, places: Places) -> list[Path]:
    """Folders to make before the first container starts."""
    found = {places.folder / "logs", places.folder / "run", places.cache}
    for pod in plan.pods:
        for container in pod.all_containers:
            found |= {volume_path(plan, places, pod, VolumePath(m.volume)) for m in container.mounts if m.volume != "source"}
            # What a container names as a folder (`RLJOB_DIR_*`) exists when it starts.
            named = [what for name, what in container.env.items() if name.startswith("RLJOB_DIR_") and isinstance(what, VolumePath)]
            found |= {volume_path(plan, places, pod, what) for what in named}
    return sorted(found)


def backoff_text(seconds: float) -> str:
    """`0.5 s`, `2 s`."""
    return f"{seconds:g} s" if seconds < 1 else f"{math.ceil(seconds)} s"
