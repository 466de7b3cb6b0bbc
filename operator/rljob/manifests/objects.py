"""What a job has besides pods: configuration, storage, names, accounts."""

from rljob.manifests.containers import MiB
from rljob.manifests.context import Context
from rljob.manifests.environment import nodes_service, port_number
from rljob.manifests.names import child, match, metadata
from rljob.manifests.pods import pod_template
from rljob.manifests.types import Manifest
from rljob.plan import Pod
from rljob.plan.types import Service, Volume

GiB = 1024 * MiB


def config_map(context: Context) -> Manifest:
    """`job.json` for every role."""
    meta = metadata(context.owner, child(context.name, "config"))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(context.files.values())}


def claim(context: Context, volume: Volume) -> Manifest:
    """The volume for state and checkpoints; half as much again as the plan counts, at least a GiB."""
    size = f"{max(1, -(-volume.size * 3 // (2 * GiB)))}Gi" if context.plan.sized else context.settings.storage_size
    spec: Manifest = {"accessModes": [context.settings.access_mode], "resources": {"requests": {"storage": size}}}
    if context.settings.storage_class is not None:
        spec["storageClassName"] = context.settings.storage_class
    name = child(context.name, volume.name)
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(context.owner, name), "spec": spec}


def service_account(context: Context, role: str) -> Manifest:
    """An account without rights and without a token; a cloud's workload identity can be bound to it."""
    meta = metadata(context.owner, child(context.name, role), role)
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False}


def service(context: Context, what: Service) -> Manifest:
    """A name for a role's port."""
    pod = context.plan.pod(what.pod)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(context.owner, child(context.name, what.name), pod.role),
        "spec": {
            "selector": match(context.name, pod.role),
            "ports": [{"name": what.port, "port": port_number(pod, what.port), "targetPort": what.port, "protocol": "TCP"}],
        },
    }


def nodes(context: Context) -> Manifest:
    """Host names for worker pods, also before they are ready: their trainers look for each other while they start."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(context.owner, nodes_service(context.name), "worker"),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": match(context.name, "worker")},
    }


def deployment(context: Context, pod: Pod) -> Manifest:
    """Equal replicas of a pod without state."""
    template = pod_template(context, pod, "Always")
    for container in template["spec"]["containers"]:
        if "livenessProbe" in container:
            container.setdefault("readinessProbe", container["livenessProbe"] | {"failureThreshold": 2})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(context.owner, child(context.name, pod.name), pod.role),
        "spec": {
            "replicas": pod.replicas,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": match(context.name, pod.role)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": template,
        },
    }


def disruption_budget(context: Context, pod: Pod) -> Manifest:
    """One replica at a time may be evicted; a single one may, because whoever asks asks again. One that is not ready always may: it answers
    nobody, and would hold up the drain of its node for as long as it crashes or loads."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(context.owner, child(context.name, pod.name), pod.role),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": match(context.name, pod.role)},
        },
    }
