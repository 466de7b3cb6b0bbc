"""How an operator was installed: what no job says. Read from one YAML file, which the chart writes."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from rljob.api import ConfigurationError
from rljob.api.base import Part
from rljob.api.platform import ObjectName

Sharing = Literal["claim", "single", "visible"]


class Images(Part):
    """Image of each process. One repository with several tags, or several repositories."""

    operator: str = "rljob/operator:latest"
    """The operator itself."""
    master: str = "rljob/master:latest"
    """The master and, but for Mooncake, the node agent (`checkpoint-engine`), both without torch."""
    reward: str = "rljob/reward:latest"
    """The reward service."""
    trainer: str = "rljob/trainer:latest"
    """The sidecar `megatron`, the init container `prepare`, which converts models, and a reward service that holds a reward model."""
    rollout: str = "rljob/rollout:latest"
    """The sidecar `vllm`, and the node agent of jobs that move weights with Mooncake."""
    combined: str = "rljob/combined:latest"
    """Trainer and rollout in one, for `accelerator.sharing: single`."""
    sandbox: str = "rljob/sandbox:latest"
    """The code sandbox."""


class Devices(Part):
    """How accelerators of a type are asked for."""

    resource: str = "nvidia.com/gpu"
    """Extended resource of the device plugin, for `single` and `visible`."""
    device_class: str = "gpu.nvidia.com"
    """DeviceClass of the DRA driver, for `claim`."""
    runtime_class: str | None = None
    """RuntimeClass of pods that see devices without asking for them (`visible`)."""


class SandboxPods(Part):
    """What sandbox pods are given so that they can isolate what they run (docs/sandbox.md). Depends on how nodes are set up."""

    host_users: bool = False
    """Pods share the node's users. `false` needs Linux 6.3, containerd 2.0 or CRI-O 1.25; `true` leaves runs no /proc of their own."""
    seccomp_profile: str = "rljob/sandbox.json"
    """Profile below the kubelet's seccomp folder of every node (charts/rljob/files/sandbox-seccomp.json); empty: none (`Unconfined`)."""
    app_armor_profile: str = ""
    """AppArmor profile of the nodes that allows mounts and user namespaces, or `unconfined`; empty: the runtime's, where there is one."""


class LeaderElection(Part):
    """Which of several operators acts: the holder of a Lease."""

    enabled: bool = True
    """Off only where a single replica is certain."""
    lease: str = "rljob-operator"
    """Name of the Lease, in the operator's own namespace."""
    seconds: Annotated[int, Field(ge=5)] = 15
    """A holder that has not renewed for so long is replaced."""


class Settings(Part):
    """The operator's settings file."""

    images: Images = Images()
    """Images."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of every container."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list)
    """Names of Secrets in the job's namespace."""
    namespaces: list[str] = Field(default_factory=list)
    """Namespaces whose jobs are run; empty: all."""
    devices: dict[str, Devices] = Field(default_factory=lambda: {"nvidia": Devices()})
    """Per `accelerator.type`."""
    storage_class: str | None = None
    """Class of the volumes that are created for jobs; None: the cluster's default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """Of those volumes. `ReadWriteOnce` keeps all pods of a job on one node."""
    storage_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")] = "100Gi"
    """Of those volumes where the job's need is not known, because the model is not."""
    operator_namespace: str | None = None
    """Namespace of the operator's pods, from which masters are asked for progress; None: NetworkPolicies allow any namespace."""
    leader_election: LeaderElection = LeaderElection()
    """Leader election."""
    progress_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Between two looks at a running job's master."""
    workers: Annotated[int, Field(ge=1)] = 16
    """Jobs looked at at the same time."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of /metrics, /healthz and /readyz."""
    sandbox: SandboxPods = SandboxPods()
    """Sandbox pods."""
    network_policies: bool = True
    """Write NetworkPolicies."""


def parse_settings(text: str, name: str) -> Settings:
    """Settings from YAML; `name` stands in the messages.

    Raises:
        ConfigurationError: it is no YAML, or a field is wrong.
    """
    try:
        data = yaml.safe_load(text)
        return Settings.model_validate(data or {}, by_alias=True, by_name=False)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name}: is not YAML ({' '.join(str(error).split())}); mind the indentation") from error
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: is {e['input']!r}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ConfigurationError(f"{name}: {'; '.join(found)}") from error


def load_settings(file: Path) -> Settings:
    """Settings from a file.

    Raises:
        ConfigurationError: it cannot be read or used.
    """
    try:
        return parse_settings(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read ({error}); name the operator's settings file") from error
