"""Accelerators in a rendered pod: a shared claim, one container for everything, or one owner whose devices others see."""

import dataclasses
from collections.abc import Iterable, Sequence

from rljob.manifests.containers import AGENT, CLAIM, assemble
from rljob.manifests.context import Context
from rljob.manifests.environment import environment, mounted
from rljob.manifests.names import child, metadata
from rljob.manifests.types import Manifest
from rljob.plan import Container, Pod
from rljob.plan.types import ExecProbe, HttpProbe, Probe, Resources, Role, VolumePath

DEVICES = "RLJOB_DEVICES"
"""`publish`: write the list of own devices to the sockets folder. `adopt`: use those of that list (rljob.checkpoint_engine.container)."""


def claim_templates(context: Context) -> list[Manifest]:
    """Devices of a pod, for all containers that name the claim; one for each number of them, whether or not there are rollout pods now.
    resource.k8s.io/v1 (Kubernetes 1.34)."""
    spec = context.job.spec
    counts = {claim_template_name(context, "worker"): spec.accelerator.per_node}
    if spec.generates:
        counts[claim_template_name(context, "rollout")] = spec.rollout.tensor_parallel
    return [_claim_template(context, name, count) for name, count in counts.items()]


def _claim_template(context: Context, name: str, count: int) -> Manifest:
    device_class = context.devices.device_class if context.devices else ""
    request = {"name": CLAIM, "exactly": {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata(context.owner, name),
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


def claim_template_name(context: Context, role: Role) -> str:
    """Name of the ResourceClaimTemplate of a role's pods."""
    spec = context.job.spec
    own = role == "rollout" and spec.rollout.tensor_parallel != spec.accelerator.per_node
    return child(context.name, f"{role}-{CLAIM}" if own else CLAIM)


def pod_devices(context: Context, spec: Manifest, pod: Pod) -> None:
    """Give a rendered pod its devices, in place. The node agent is among those who see them: it measures their memory."""
    if context.devices is None or not pod.accelerators:
        return
    spec["tolerations"] = [{"key": context.devices.resource, "operator": "Exists", "effect": "NoSchedule"}]
    everyone: list[Manifest] = [*spec.get("initContainers", ()), *spec["containers"]]
    count = {c.name: c.resources.accelerators for c in pod.all_containers}
    users = [c for c in everyone if count.get(c["name"]) or c["name"] == AGENT]
    for user in users:
        # The NVIDIA runtime's hooks write to the root file system of every container that sees a device.
        user["securityContext"]["readOnlyRootFilesystem"] = False
    if context.sharing.mode == "claim":
        # An extended resource beside the claim would ask for the devices a second time.
        spec["resourceClaims"] = [{"name": CLAIM, "resourceClaimTemplateName": claim_template_name(context, pod.role)}]
        for user in users:
            user["resources"]["claims"] = [{"name": CLAIM}]
        return
    owner, *others = users
    owner["resources"].setdefault("limits", {})[context.devices.resource] = str(count[owner["name"]])
    if context.sharing.mode == "visible":
        if context.devices.runtime_class:
            spec["runtimeClassName"] = context.devices.runtime_class
        owner["env"].append({"name": DEVICES, "value": "publish"})
        for other in others:
            other["env"] += [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}, {"name": DEVICES, "value": "adopt"}]


def combined(context: Context, pod: Pod) -> tuple[Pod, Manifest]:
    """A pod with one container that holds the devices and runs everything: shims, and the node agent once the awaited files are there.

    What all of them get stands in the container's environment, what is one's own before its command (rljob.checkpoint_engine.together).
    """
    (agent,) = pod.containers
    members = (*pod.sidecars, agent)
    env = {member.name: environment(context, pod, member) for member in members}
    shared = [entry for entry in env[agent.name] if all(entry in env[member.name] for member in members)]
    # A reference (the node's cores) cannot stand in a command.
    shared += _unique(entry for member in members for entry in env[member.name] if "value" not in entry and entry not in shared)
    words: list[str] = []
    for member in members:
        own = [f"{e['name']}={e['value']}" for e in env[member.name] if e not in shared]
        waiting = (
            ("python", "-m", "rljob.wire.wait", *(mounted(agent, p) for p in pod.waits), "--") if member is agent and pod.waits else ()
        )
        words += ["--member", *own, *waiting, *member.command]
    one = Container(
        name=AGENT,
        command=("python", "-m", "rljob.checkpoint_engine.together", *words),
        env={},
        mounts=tuple(_unique(mount for m in members for mount in m.mounts)),
        resources=Resources(
            memory=sum(m.resources.memory for m in members),
            cpus=max(s.resources.cpus for s in pod.sidecars) + agent.resources.cpus,
            accelerators=pod.accelerators,
        ),
        restart=agent.restart,
        ports=tuple(_unique(port for m in members for port in m.ports)),
        probe=_all_sockets(pod.sidecars),
        grace_seconds=max(m.grace_seconds for m in members),
    )
    whole = dataclasses.replace(pod, containers=(one,), sidecars=(), waits=())
    return whole, assemble(context, whole, one, context.settings.images.combined, shared)


def _unique[T](things: Iterable[T]) -> list[T]:
    """In order; of equal ones the first."""
    found: list[T] = []
    for thing in things:
        if thing not in found:
            found.append(thing)
    return found


def _all_sockets(sidecars: Sequence[Container]) -> Probe | None:
    """One check of what is checked in each sidecar: that its unix socket answers."""
    probes = [(s, s.probe, s.probe.check) for s in sidecars if s.probe]
    asked = [
        (mounted(s, check.at), check.path) for s, _, check in probes if isinstance(check, HttpProbe) and isinstance(check.at, VolumePath)
    ]
    if not asked:
        return None
    (path,) = {path for _, path in asked}
    sockets = tuple(socket for socket, _ in asked)
    return dataclasses.replace(probes[0][1], check=ExecProbe(("python", "-m", "rljob.wire.probe", path, *sockets)))
