"""How the sidecars of a pod come to the same accelerators."""

from typing import get_args

from rljob.api import ConfigurationError, RLJob
from rljob.manifests.settings import Devices, Settings, Sharing
from rljob.manifests.types import Cluster, SharingChoice

SHARING = frozenset(get_args(Sharing))


def devices_of(job: RLJob, settings: Settings) -> Devices:
    """How this installation asks for the job's accelerators.

    Raises:
        ConfigurationError: the operator's settings do not know the type.
    """
    kind = job.spec.accelerator.type
    if kind not in settings.devices:
        known = ", ".join(sorted(settings.devices)) or "none"
        raise ConfigurationError(
            f"spec.accelerator.type: is {kind}, the operator's settings know {known}; add {kind} to `devices` there, or choose another type"
        )
    return settings.devices[kind]


def choose_sharing(job: RLJob, settings: Settings, cluster: Cluster, chosen: SharingChoice | None = None) -> SharingChoice:
    """Decide how accelerators are shared: as the job says, or the first way that the cluster offers. `chosen`: how the job's pods share
    them; what the cluster offers by now is then not asked, for another choice would end pods that run.

    Raises:
        ConfigurationError: the cluster cannot do what the job says, or the operator does not know the accelerator.
    """
    accelerator = job.spec.accelerator
    if accelerator.type == "cpu":
        return SharingChoice("none", "accelerator.type is cpu: there are no devices to share")
    devices = devices_of(job, settings)
    if chosen is not None and chosen.mode in SHARING and accelerator.sharing in ("auto", chosen.mode):
        return chosen
    offered = devices.device_class in cluster.device_classes
    version = ".".join(map(str, cluster.version))
    if accelerator.sharing == "claim" and not offered:
        found = ", ".join(sorted(cluster.device_classes)) or "none"
        raise ConfigurationError(
            f"spec.accelerator.sharing: is claim, which needs the DeviceClass {devices.device_class}; Kubernetes {version} here has "
            f"{found}: install the DRA driver (Kubernetes 1.34 or newer), or set sharing to single"
        )
    if accelerator.sharing != "auto":
        return SharingChoice(accelerator.sharing, f"accelerator.sharing is {accelerator.sharing}")
    if offered:
        return SharingChoice("claim", f"the cluster has the DeviceClass {devices.device_class}")
    missing = f"the cluster (Kubernetes {version}) has no DeviceClass {devices.device_class}"
    return SharingChoice("single", f"{missing}, and one container can hold devices everywhere")
