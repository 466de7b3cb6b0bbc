"""Pods: the plan's containers in their order, volumes, rights, where they run."""

from typing import Any

from rljob.manifests.containers import SECRET, TEMPORARY, MiB, container, wait_container
from rljob.manifests.context import Context
from rljob.manifests.devices import combined, pod_devices
from rljob.manifests.environment import nodes_service
from rljob.manifests.jobfile import AUDIENCE
from rljob.manifests.merge import merge_template
from rljob.manifests.names import checked, child, labels, match, metadata
from rljob.manifests.settings import SandboxPods
from rljob.manifests.types import KUEUE, LABEL_ROLE, Manifest
from rljob.plan import Pod
from rljob.plan.types import Volume

USER = 65532
"""User and group of every process; the images have it."""


def pod_manifest(context: Context, pod: Pod) -> Manifest:
    """A bare pod."""
    meta = metadata(context.owner, checked(child(context.name, pod.name)), pod.role, pod.name)
    template = pod_template(context, pod, "OnFailure")
    for part in ("labels", "annotations"):
        meta[part] = template["metadata"][part] | meta[part]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


def pod_template(context: Context, pod: Pod, restart_policy: str) -> Manifest:
    """Labels, annotations and spec of a pod, with the job's overrides merged in.

    Raises:
        ConfigurationError: the overrides cannot be merged.
    """
    known = labels(context.name, pod.role)
    more, annotations = _queue(context, pod)
    spec = _spec(context, pod, restart_policy)
    template: Manifest = {"metadata": {"labels": known | more, "annotations": annotations}, "spec": spec}
    override: dict[str, Any] = getattr(context.job.spec.templates, pod.role)
    single = context.sharing.mode == "single" and pod.sidecars
    hint = f", because {context.sharing.reason}" if single else ""
    merged = merge_template(template, override, f"spec.templates.{pod.role}", hint)
    metadata = merged.setdefault("metadata", {})
    metadata["annotations"] = metadata.get("annotations") or {}
    metadata["labels"] = (metadata.get("labels") or {}) | known  # by these the operator and the Services find it
    return merged


def _spec(context: Context, pod: Pod, restart_policy: str) -> Manifest:
    single = context.sharing.mode == "single" and bool(pod.sidecars)
    whole = pod
    if single:
        whole, one = combined(context, pod)
        init, main = [], [one]
    else:
        init = [container(context, pod, c) for c in pod.init_containers]
        # Order of the start: the sidecars, which import while `wait` waits, then the rest.
        init += [container(context, pod, c) | {"restartPolicy": "Always"} for c in pod.sidecars]
        init += [wait_container(context, pod)] if pod.waits else []
        main = [container(context, pod, c) for c in pod.containers]
    spec: Manifest = {
        "serviceAccountName": child(context.name, pod.role),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": restart_policy,
        "terminationGracePeriodSeconds": grace_seconds(pod),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"initContainers": init} if init else {}),
        "containers": main,
        "volumes": _volumes(context, pod),
    }
    if context.settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in context.settings.image_pull_secrets]
    if pod.role == "worker" and context.several_workers:
        spec |= {"hostname": child(context.name, pod.name), "subdomain": nodes_service(context.name)}
    pod_devices(context, spec, whole)
    if pod.role == "sandbox":
        _allow_namespaces(context.settings.sandbox, spec)
    return spec | _place(context, pod)


def _allow_namespaces(sandbox: SandboxPods, spec: Manifest) -> None:
    """Let the sandbox make namespaces for what it runs, in place: `RuntimeDefault` forbids that to whoever has no capabilities."""
    security, profile = spec["securityContext"], sandbox.seccomp_profile
    spec["hostUsers"] = sandbox.host_users
    security["seccompProfile"] = {"type": "Localhost", "localhostProfile": profile} if profile else {"type": "Unconfined"}
    if sandbox.app_armor_profile == "unconfined":
        security["appArmorProfile"] = {"type": "Unconfined"}
    elif sandbox.app_armor_profile:
        security["appArmorProfile"] = {"type": "Localhost", "localhostProfile": sandbox.app_armor_profile}


def grace_seconds(pod: Pod) -> int:
    """Ordinary containers end together, sidecars after them one by one."""
    return round(max(c.grace_seconds for c in pod.containers) + sum(c.grace_seconds for c in pod.sidecars))


def _volumes(context: Context, pod: Pod) -> list[Manifest]:
    used = {mount.volume for c in pod.all_containers for mount in c.mounts}
    found: list[Manifest] = [{"name": v.name, **_volume(context, pod, v)} for v in context.plan.volumes if v.name in used]
    found.append({"name": TEMPORARY, "emptyDir": {}})
    if context.job.spec.credentials and any(c.name == "prepare" for c in pod.init_containers):
        found.append({"name": SECRET, "secret": {"secretName": context.job.spec.credentials, "defaultMode": 0o440}})
    return found


def _volume(context: Context, pod: Pod, volume: Volume) -> Manifest:
    match volume.kind:
        case "config":
            key, _ = context.files[AUDIENCE[pod.role]]
            return {"configMap": {"name": child(context.name, "config"), "items": [{"key": key, "path": "job.json"}]}}
        case "state":
            return {"persistentVolumeClaim": {"claimName": volume.claim or child(context.name, volume.name)}}
        case "source":
            return _source(context)
        case "memory":
            size = {"sizeLimit": f"{-(-volume.size * 5 // (4 * MiB)) + 64}Mi"} if context.plan.sized else {}
            return {"emptyDir": {"medium": "Memory", **size}}
        case "cache" | "sockets" | "scratch":
            return {"emptyDir": {}}


def _source(context: Context) -> Manifest:
    files = context.job.spec.files
    if files is None:
        return {"emptyDir": {}}
    if files.claim is not None:
        return {"persistentVolumeClaim": {"claimName": files.claim, "readOnly": True}}
    return {"configMap": {"name": files.config_map}}


def _place(context: Context, pod: Pod) -> Manifest:
    """Where pods run: together if their volume can be on one node only, else elastic ones apart where possible."""
    host = "kubernetes.io/hostname"
    if context.settings.access_mode == "ReadWriteOnce" and _has_state(context, pod):
        together = {
            "topologyKey": host,
            "labelSelector": {
                "matchLabels": match(context.name),
                "matchExpressions": [{"key": LABEL_ROLE, "operator": "In", "values": _stateful_roles(context)}],
            },
        }
        return {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [together]}}}
    if pod.role in ("rollout", "reward", "sandbox"):
        apart = {
            "maxSkew": 1,
            "topologyKey": host,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": match(context.name, pod.role)},
        }
        return {"topologySpreadConstraints": [apart]}
    return {}


def _has_state(context: Context, pod: Pod) -> bool:
    return any(context.plan.volume(m.volume).kind == "state" for c in pod.all_containers for m in c.mounts)


def _stateful_roles(context: Context) -> list[str]:
    """All roles that share the state; also those without a pod now, so that one that comes changes no other."""
    return ["master", "rollout", "worker"]


def _queue(context: Context, pod: Pod) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations for Kueue (plain pods): master and workers are admitted together, a rollout pod by itself."""
    queue = context.job.spec.queue_name
    if not queue or pod.role in ("reward", "sandbox"):
        return {}, {}
    label = {f"{KUEUE}/queue-name": queue}
    if pod.role == "rollout":
        return label, {}
    members = sum(p.role in ("master", "worker") for p in context.plan.pods)
    return label | {f"{KUEUE}/pod-group-name": context.name}, {f"{KUEUE}/pod-group-total-count": str(members)}
