"""One container: image, command, environment, probes, resources, rights."""

import math
from collections.abc import Sequence

from rljob.api import RLJobSpec
from rljob.manifests.context import Context
from rljob.manifests.environment import CREDENTIALS, environment, mounted
from rljob.manifests.settings import Images, SandboxPods
from rljob.manifests.types import Manifest
from rljob.plan import Container, Pod, prompt_sets
from rljob.plan.types import ExecProbe, Listen, Mount, Probe, Resources

MiB = 1 << 20
WAIT = "wait"
AGENT = "checkpoint-engine"
TEMPORARY, SECRET, CLAIM = "tmp", "credentials", "devices"
"""Volumes that every pod has, and that `prepare` has; name of the claim that sidecars share."""
_PROBE_SECONDS = 10
"""Time that one check has: starting a Python on a busy machine can take seconds."""
_IMAGES = {
    "prepare": "trainer",
    "master": "master",
    AGENT: "master",
    "megatron": "trainer",
    "vllm": "rollout",
    "reward": "reward",
    "sandbox": "sandbox",
}
NAMES = frozenset({*_IMAGES, WAIT})
"""Containers that the operator puts into pods; others come from `spec.templates` or from a webhook of the cluster."""
_OF_MODEL, _OF_PROMPTS = ("prepare", AGENT, "megatron", "vllm"), ("prepare", "master")
"""Containers whose memory depends on the model; on the prompts."""


def image_of(images: Images, container: str, job: RLJobSpec) -> str:
    """Image of a container of the plan. Two processes need now and then what their slim image has not, and what another of the job has: an
    agent that moves weights with Mooncake, and a reward service that holds a reward model."""
    kind = _IMAGES[container]
    if container == AGENT and job.rollout.weights.transport == "mooncake":
        kind = "rollout"
    if _scores(container, job):
        kind = "trainer"
    image: str = getattr(images, kind)
    return image


def _scores(container: str, job: RLJobSpec) -> bool:
    """It holds a reward model, which the operator has not seen."""
    return container == "reward" and bool(job.reward.model_folders)


def container(context: Context, pod: Pod, what: Container) -> Manifest:
    """A container of the plan, without what depends on its place in the pod."""
    return assemble(context, pod, what, image_of(context.settings.images, what.name, context.job.spec), environment(context, pod, what))


def assemble(context: Context, pod: Pod, what: Container, image: str, env: Sequence[Manifest]) -> Manifest:
    """A container from its parts."""
    found: Manifest = {
        "name": what.name,
        "image": image,
        "imagePullPolicy": context.settings.image_pull_policy,
        "command": list(what.command),
        "env": list(env),
        "resources": resources(context, pod, what),
        "securityContext": rights() | (own_proc(context.settings.sandbox) if pod.role == "sandbox" else {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(context, what),
    }
    if what.ports:
        found["ports"] = [{"name": port.name, "containerPort": port.number, "protocol": "TCP"} for port in what.ports]
    if what.probe:
        found |= probes(what, what.probe)
    return found


def wait_container(context: Context, pod: Pod) -> Manifest:
    """Init container that ends when the files that the pod waits for are there. The last one, so that sidecars import in the meantime."""
    (agent,) = pod.containers
    files = tuple(mounted(agent, path) for path in pod.waits)
    mount = tuple(m for m in agent.mounts if m.volume in {path.volume for path in pod.waits})
    waiting = Container(
        name=WAIT,
        command=("python", "-m", "rljob.wire.wait", *files),
        env={},
        mounts=tuple(Mount(m.volume, m.path, read_only=True) for m in mount),
        resources=Resources(32 * MiB, 0.01),
        restart="on-failure",
    )
    return assemble(context, pod, waiting, context.settings.images.master, environment(context, pod, waiting))


def rights() -> Manifest:
    """What the restricted Pod Security Standard asks for, and a root file system that cannot be written."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def own_proc(sandbox: SandboxPods) -> Manifest:
    """A run has a /proc of its own, which the kernel allows only where the pod's is not masked; Kubernetes allows that to pods with users
    of their own."""
    return {} if sandbox.host_users else {"procMount": "Unmasked"}


def mounts(context: Context, what: Container) -> list[Manifest]:
    """The plan's mounts, a writable /tmp, and for `prepare` the credentials."""
    found: list[Manifest] = []
    for mount in what.mounts:
        found.append({"name": mount.volume, "mountPath": mount.path} | ({"readOnly": True} if mount.read_only else {}))
    found.append({"name": TEMPORARY, "mountPath": "/tmp"})
    if what.name == "prepare" and context.job.spec.credentials:
        found.append({"name": SECRET, "mountPath": CREDENTIALS, "readOnly": True})
    return found


def _mebibytes(size: float) -> str:
    return f"{math.ceil(size / MiB)}Mi"


def shared_memory(context: Context, what: Container) -> int:
    """Bytes of the memory volumes that a container can fill; they count against its limit."""
    return sum(volume.size for m in what.mounts if (volume := context.plan.volume(m.volume)).kind == "memory")


def resources(context: Context, pod: Pod, what: Container) -> Manifest:
    """Requests from the plan; a memory limit that only catches a leak; no CPU limit, because idle cores help whoever has a turn.

    Sidecars take turns, so that together they ask for the cores of one. Where the model or the prompts are not known, neither is a limit,
    nor where a device's driver and libraries take main memory too.
    """
    asked = what.resources
    sharers = len(pod.sidecars) if any(what.name == sidecar.name for sidecar in pod.sidecars) else 1
    shared = shared_memory(context, what)
    # Shared memory is asked for once in a pod: by the sidecar that writes it.
    writes = not pod.sidecars or what.name == pod.sidecars[0].name
    request = 1.2 * asked.memory + (shared if writes else 0)
    found: Manifest = {"requests": {"cpu": f"{math.ceil(1000 * asked.cpus / sharers)}m", "memory": _mebibytes(request)}}
    if _is_sized(context, what):
        found["limits"] = {"memory": _mebibytes(2 * asked.memory + 2 * shared + 256 * MiB)}
    return found


def _is_sized(context: Context, what: Container) -> bool:
    """Whether its memory is known."""
    if what.resources.accelerators or _scores(what.name, context.job.spec):
        return False
    generated = all(data.reasoning_gym is not None for _, data in prompt_sets(context.job))
    return (context.plan.sized or what.name not in _OF_MODEL) and (generated or what.name not in _OF_PROMPTS)


def _seconds(value: float) -> int:
    return max(1, math.ceil(value))


def probes(what: Container, probe: Probe) -> Manifest:
    """`startupProbe` looks every second, because what comes next waits for it; `livenessProbe` as the plan says."""
    check = _check(what, probe)
    period = _seconds(probe.period_seconds)
    return {
        "startupProbe": check | {"periodSeconds": 1, "failureThreshold": _seconds(probe.startup_seconds), "timeoutSeconds": _PROBE_SECONDS},
        "livenessProbe": check | {"periodSeconds": period, "failureThreshold": probe.failures, "timeoutSeconds": _PROBE_SECONDS},
    }


def _check(what: Container, probe: Probe) -> Manifest:
    check = probe.check
    if isinstance(check, ExecProbe):
        return {"exec": {"command": list(check.command)}}
    if isinstance(check.at, Listen):
        return {"httpGet": {"path": check.path, "port": check.at.port}}
    # A kubelet cannot ask a unix socket.
    return {"exec": {"command": ["python", "-m", "rljob.wire.probe", check.path, mounted(what, check.at)]}}
