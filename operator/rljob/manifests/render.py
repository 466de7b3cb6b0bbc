"""`render`: every object of a job, in the order in which they are applied.

What a change of the spec reaches: an object carries the hash of what was rendered, and only what renders differently is touched. A pod
depends on the fields that its processes read (rljob.manifests.jobfile), on what the plan makes of the spec for it (command, memory,
devices), on its role's `templates` and on the operator's settings. So `rollout.replicas` adds or removes rollout pods and nothing else;
`iterations`, `evaluation`, `checkpoint` and the limits reach the master alone, `reward.workers` the reward pods alone,
`sandbox` the sandbox pods (and, where it makes or removes them, the master, whose preparation asks whether there is one, and the reward
pods, which are told where they are).
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from rljob.api import ConfigurationError, RLJob
from rljob.manifests import devices, objects
from rljob.manifests.context import Context
from rljob.manifests.jobfile import digest, job_files
from rljob.manifests.network import network_policies
from rljob.manifests.pods import pod_manifest
from rljob.manifests.settings import Settings
from rljob.manifests.sharing import choose_sharing, devices_of
from rljob.manifests.types import ANNOTATION_HASH, Cluster, Manifest, Owner, SharingChoice
from rljob.plan import Plan


def render(
    job: RLJob, plan: Plan, owner: Owner, settings: Settings, cluster: Cluster, chosen: SharingChoice | None = None
) -> tuple[Manifest, ...]:
    """A plan as Kubernetes objects, each with labels, its owner and its hash. `chosen`: how its pods share accelerators, if there are any.

    Raises:
        ConfigurationError: the job cannot run in this cluster as it is written; the message names field, value and remedy.
    """
    check_files(job)
    sharing = choose_sharing(job, settings, cluster, chosen)
    asked = None if sharing.mode == "none" else devices_of(job, settings)
    context = Context(job, plan, owner, settings, sharing, job_files(job), asked)
    return tuple(stamped(manifest) for manifest in _objects(context))


def _objects(context: Context) -> Iterator[Manifest]:
    plan = context.plan
    roles = dict.fromkeys(pod.role for pod in plan.pods)
    yield from (objects.service_account(context, role) for role in roles)
    yield objects.config_map(context)
    yield from (objects.claim(context, v) for v in plan.volumes if v.kind == "state" and v.claim is None)
    if context.settings.network_policies:
        yield from network_policies(context)
    yield from (objects.service(context, service) for service in plan.services)
    if context.several_workers:
        yield objects.nodes(context)
    if context.sharing.mode == "claim":
        yield from devices.claim_templates(context)
    for pod in plan.pods:
        if pod.role in ("reward", "sandbox"):
            yield objects.deployment(context, pod)
            yield objects.disruption_budget(context, pod)
        else:
            yield pod_manifest(context, pod)


def stamped(manifest: Manifest) -> Manifest:
    """With its hash as an annotation."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    annotations = manifest["metadata"].get("annotations", {}) | {ANNOTATION_HASH: digest(text)[:16]}
    return manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}}


def relative_paths(job: RLJob) -> dict[str, str]:
    """Field to path, of every path of the job that is relative."""
    spec = job.spec
    named = {"spec.model.source.path": spec.model.source.path, "spec.data.train.path": spec.data.train.path}
    named["spec.reward.options.folder"] = next((path for path in spec.reward.model_folders if _relative(path)), None)
    if spec.evaluation is not None:
        named["spec.evaluation.data.path"] = spec.evaluation.data.path
    if spec.warm_start is not None and spec.warm_start.data is not None:
        named["spec.warmStart.data.path"] = spec.warm_start.data.path
    return {field: path for field, path in named.items() if path is not None and _relative(path)}


def _relative(path: str) -> bool:
    return not PurePosixPath(path).is_absolute()


def check_files(job: RLJob) -> None:
    """Refuse relative paths that start nowhere.

    Raises:
        ConfigurationError: there are some, and no `spec.files`; or a ConfigMap that cannot hold them.
    """
    found, files = relative_paths(job), job.spec.files
    if found and files is None:
        field, path = next(iter(found.items()))
        others = f" (so are {', '.join(list(found)[1:])})" if len(found) > 1 else ""
        raise ConfigurationError(
            f"{field}: {path} is relative{others}, and a cluster has no folder of the job file: put the files on a volume and name its "
            "PersistentVolumeClaim in spec.files.claim, or small ones into a ConfigMap and name it in spec.files.configMap"
        )
    if files is not None and files.config_map is not None:
        for field, path in found.items():
            if "/" in path:
                raise ConfigurationError(
                    f"{field}: {path} has folders, the ConfigMap {files.config_map} of spec.files.configMap has only files: name its key"
                )
