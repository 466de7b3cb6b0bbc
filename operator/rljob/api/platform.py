"""What the job runs on: accelerators, the hand-over, reward and sandbox services, checkpoints, pod overrides."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rljob.api.base import MEMORY, Part, Positive, exactly_one
from rljob.api.verifiers import VerifierName, fitting, reward_models

ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""Name of a Kubernetes object in the job's namespace."""


class MemoryGate(Part):
    """The next owner of the accelerator starts only when what is free covers what it will claim."""

    deadline_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long to wait for memory before the hand-over counts as failed."""
    leak_tolerance: Annotated[str, Field(pattern=MEMORY)] = "512Mi"
    """How much the rest that a sleeping owner keeps may grow over the first hand-over's; more is a leak and restarts that owner."""


class SwitchSpec(Part):
    """The hand-over between Megatron and vLLM."""

    policy: Literal["auto", "restart", "sleep"] = "auto"
    """`restart` ends vLLM after each rollout (as k1.5 does); `sleep` keeps it (on CPU: paused, memory kept). `auto` sleeps where the
    engine can and the gate finds the memory free, else restarts; on CPU it restarts."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long one step of the cycle (start, load, attest, export, ...) may take before it counts as failed. One that reads or writes a
    checkpoint has as much more as storage of 200 MB/s needs for it."""
    memory_gate: MemoryGate = MemoryGate()
    """The memory gate."""


class AcceleratorSpec(Part):
    """What Megatron and vLLM take turns on."""

    type: Literal["cpu", "nvidia"] = "cpu"
    """Kind of accelerator."""
    per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices of a worker pod (a rollout pod has `rollout.tensorParallel`); on CPU the number of its trainer processes."""
    sharing: Literal["auto", "claim", "single", "visible"] = "auto"
    """How the two sidecars share the devices in a cluster: one DRA `claim`, one `single` container, or the owner's device list made
    `visible` to the other. `auto` takes the first that the cluster supports."""


class RewardSpec(Part):
    """The reward service."""

    verifier: VerifierName | None = None
    """How answers are judged, unless a record says otherwise. Default: `reasoning-gym` for a generator's prompts, else `exact`."""
    options: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Options of that verifier (docs/reward.md); a record's own are laid over them."""
    replicas: Positive = 1
    """Pods of the Deployment."""
    workers: Positive = 1
    """Killable worker processes of one pod, for verifiers that can hang."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Hard limit of one judgement, seconds of processor time; a verifier that runs longer is killed and the answer counts as wrong only if
    the verifier's contract says so, else as an infrastructure failure."""

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folders of the reward models that the reward service holds itself, each once."""
        models = reward_models(self.verifier, self.options)
        return tuple(dict.fromkeys(model.folder for model in models if model.folder is not None))

    @field_validator("options")
    @classmethod
    def _options_fit(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if options and info.data.get("verifier", "") is None:
            raise ValueError("are set, but spec.reward.verifier is not; name the verifier that they are for")
        return fitting(info.data.get("verifier"), options)


class SandboxSpec(Part):
    """The code sandbox, in which programs run that nobody trusts: the answers that the verifier `code` judges."""

    enabled: bool = False
    """Start the service. It is started in any case where `reward` names the verifier `code`; set this where only records do."""
    replicas: Positive = 1
    """Pods of the Deployment."""
    slots: Positive = 2
    """Programs that run at the same time in one pod, each on a core of its own."""
    memory_per_run: Annotated[str, Field(pattern=MEMORY)] = "1Gi"
    """The most that one program may ask for, with the files it writes. Compilers get 1Gi of it, or all if it is less."""
    queue: Positive = 1024
    """Requests that one pod takes in at the same time, waiting and running; further ones are told when to come again."""
    minimum: Literal["namespaces", "full"] = "namespaces"
    """Refuse to start with less isolation than this. `namespaces`: every run has namespaces of its own, system call filter, limits. `full`:
    also cgroups for memory, processes and CPU, for which a cluster's node has to be prepared."""
    backend: Literal["namespaces", "crun"] = "namespaces"
    """`namespaces` runs programs in prepared slots; `crun` starts an OCI container for each, which is slower."""

    @property
    def memory_mb(self) -> int:
        """`memory_per_run` in MiB."""
        return int(self.memory_per_run[:-2]) * (1024 if self.memory_per_run.endswith("Gi") else 1)


class CheckpointSpec(Part):
    """Checkpoints. Every iteration is committed atomically: weights, sampler and buffer together or not at all."""

    keep: Positive = 2
    """Newest checkpoints kept."""
    keep_every: Positive | None = None
    """Also keep every so many iterations' checkpoint for good."""
    volume: ObjectName | None = None
    """Name of a PersistentVolumeClaim for state and checkpoints. Default: one is created. Local runs use the job folder."""


class FilesSpec(Part):
    """What relative paths of the job start at in a cluster. Exactly one field is set. On one machine they start at the job file's folder,
    and this is not read."""

    claim: ObjectName | None = None
    """Name of a PersistentVolumeClaim in the job's namespace; mounted read-only."""
    config_map: ObjectName | None = None
    """Name of a ConfigMap in the job's namespace, for small files: each key is a file."""

    @model_validator(mode="after")
    def _one(self) -> "FilesSpec":
        exactly_one("spec.files", {"claim": self.claim, "configMap": self.config_map})
        return self


class TemplateOverrides(Part):
    """Pod template overrides per role: a partial `PodTemplateSpec` (`metadata` and `spec`) merged over what the operator renders.
    Containers, volumes, environment variables and image pull secrets are found by their `name`, mounts by `mountPath`, ports by
    `containerPort`; tolerations are added; other lists are replaced, and `null` removes a field."""

    master: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Overrides for the master pod."""
    worker: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Overrides for worker pods."""
    rollout: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Overrides for rollout pods."""
    reward: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Overrides for reward pods."""
    sandbox: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Overrides for sandbox pods."""
