"""From a plan's references to environment variables of a container in a cluster."""

from collections.abc import Iterator

from rljob.manifests.context import Context
from rljob.manifests.names import child
from rljob.manifests.types import Manifest
from rljob.plan import Container, Pod
from rljob.plan.types import AdvertiseHost, Listen, PodHost, PodName, PodPort, ServiceUrl, Threads, Value, VolumePath

HOME = "/tmp"
"""The only writable folder besides the plan's volumes."""
CREDENTIALS = "/rljob/credentials"
_DOWNLOADS = {"HF_TOKEN_PATH": f"{CREDENTIALS}/hf-token", "AWS_SHARED_CREDENTIALS_FILE": f"{CREDENTIALS}/aws-credentials"}


def nodes_service(job: str) -> str:
    """Name of the headless Service that gives worker pods host names."""
    return child(job, "nodes")


def port_number(pod: Pod, name: str) -> int:
    """Number of a port of a pod.

    Raises:
        KeyError: no container of it has such a port.
    """
    for container in pod.all_containers:
        for port in container.ports:
            if port.name == name:
                return port.number
    raise KeyError(f"{pod.name} has no port {name}")


def service_url(context: Context, name: str) -> str:
    """Base address of a service.

    Raises:
        KeyError: the plan has no such service.
    """
    for service in context.plan.services:
        if service.name == name:
            return f"http://{child(context.name, name)}:{port_number(context.plan.pod(service.pod), service.port)}"
    raise KeyError(name)


def mounted(container: Container, path: VolumePath) -> str:
    """Where a container sees a path of a volume.

    Raises:
        KeyError: it does not mount the volume.
    """
    for mount in container.mounts:
        if mount.volume == path.volume:
            return f"{mount.path}/{path.sub}" if path.sub else mount.path
    raise KeyError(f"{container.name} does not mount {path.volume}")


def _of_field(path: str) -> Manifest:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def _variable(context: Context, pod: Pod, container: Container, name: str, what: Value) -> Iterator[Manifest]:
    match what:
        case str():
            yield {"name": name, "value": what}
        case VolumePath():
            yield {"name": name, "value": mounted(container, what)}
        case ServiceUrl(service):
            yield {"name": name, "value": service_url(context, service)}
        case Listen(port):
            yield {"name": name, "value": f"0.0.0.0:{port_number(pod, port)}"}
        case PodName():
            yield {"name": name, "value": pod.name}
        case AdvertiseHost():
            yield {"name": name} | _of_field("status.podIP")
        case PodHost(other):
            yield {"name": name, "value": f"{child(context.name, other)}.{nodes_service(context.name)}"}
        case PodPort(other, port):
            yield {"name": name, "value": str(port_number(context.plan.pod(other), port))}
        case Threads(processes):
            # A manifest cannot divide: the shim makes OMP_NUM_THREADS of the two (rljob.checkpoint_engine.container). Without a limit,
            # Kubernetes names the node's cores.
            yield {"name": "RLJOB_CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}}
            yield {"name": "RLJOB_CORES_SHARED_BY", "value": str(processes)}


def environment(context: Context, pod: Pod, container: Container) -> list[Manifest]:
    """`env` of a container."""
    common = {"PYTHONUNBUFFERED": "1", "HOME": HOME, "USER": "rljob"}
    found: list[Manifest] = [{"name": name, "value": value} for name, value in common.items()]
    for name, what in container.env.items():
        found.extend(_variable(context, pod, container, name, what))
    if container.name == "prepare" and context.job.spec.credentials:
        found += [{"name": name, "value": value} for name, value in _DOWNLOADS.items()]
    return found
