"""RLJob itself: its spec, and the checks that need more than one topic."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rljob.api.algorithm import AlgorithmSpec, EvaluationSpec, RewardModelSpec, RolloutSpec, TrainerSpec, WarmStart
from rljob.api.base import Natural, Part, Positive
from rljob.api.metadata import Metadata
from rljob.api.platform import (
    AcceleratorSpec,
    CheckpointSpec,
    FilesSpec,
    ObjectName,
    RewardSpec,
    SandboxSpec,
    SwitchSpec,
    TemplateOverrides,
)
from rljob.api.sources import DataSpec, ModelSpec
from rljob.api.verifiers import programs, uses

GROUP = "rljob.dev"
VERSION = "v1alpha1"
KIND = "RLJob"


class RLJobSpec(Part):
    """What to train, on what, and how."""

    model: ModelSpec
    """The model to train: the policy."""
    data: DataSpec
    """The prompts to train on."""
    iterations: Positive = 100
    """Iterations of the loop: rollout, reward, train."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of every random choice of the job but those of generation, which does not repeat."""
    warm_start: WarmStart | None = None
    """Supervised fine-tuning before RL."""
    reward_model: RewardModelSpec | None = None
    """Train a reward model on preference pairs, not a policy; `{}` takes the defaults."""
    evaluation: EvaluationSpec | None = None
    """Held-out evaluation."""
    algorithm: AlgorithmSpec = AlgorithmSpec()
    """Objective and sampling."""
    trainer: TrainerSpec = TrainerSpec()
    """Training with Megatron-core."""
    rollout: RolloutSpec = RolloutSpec()
    """Generation with vLLM."""
    switch: SwitchSpec = SwitchSpec()
    """The hand-over between trainer and rollout engine."""
    accelerator: AcceleratorSpec = AcceleratorSpec()
    """What trainer and rollout engine run on."""
    reward: RewardSpec = RewardSpec()
    """How answers are judged."""
    sandbox: SandboxSpec = SandboxSpec()
    """The code sandbox."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Which checkpoints are kept, and where."""
    suspend: bool = False
    """Stop the job's pods and keep its state; set back to false to go on."""
    backoff_limit: Natural = 6
    """Restarts in a row of one container, without progress of the job between them, before the job fails."""
    active_deadline_seconds: Positive | None = None
    """The job fails when it has run for so long since it was started, admitted by its queue, or last resumed after `suspend` or its end."""
    ttl_seconds_after_finished: Natural | None = None
    """The finished job is deleted after so long."""
    queue_name: Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?)?$")] | None = None
    """Name of the Kueue LocalQueue to wait in. Empty: none."""
    files: FilesSpec | None = None
    """Where the files are that the job names by relative paths, in a cluster."""
    credentials: ObjectName | None = None
    """Name of a Secret in the job's namespace for downloads of model and data. Its keys are files that only the init container `prepare`
    sees: `hf-token` holds a Hugging Face token, `aws-credentials` an AWS credentials file. On one machine the user's own are taken."""
    templates: TemplateOverrides = TemplateOverrides()
    """Pod template overrides per role."""

    @property
    def world_size(self) -> int:
        """Trainer processes of the whole job."""
        return self.trainer.nodes * self.accelerator.per_node

    @property
    def data_parallel(self) -> int:
        """Data parallel size of the trainer (derived)."""
        t = self.trainer
        return self.world_size // (t.tensor_parallel * t.pipeline_parallel * t.context_parallel)

    @property
    def needs_sandbox(self) -> bool:
        """Is there a code sandbox?"""
        return self.generates and (self.sandbox.enabled or "code" in uses(self.reward.verifier, self.reward.options))

    @property
    def generates(self) -> bool:
        """Are there answers to generate and to judge? Not where a reward model is trained."""
        return self.reward_model is None

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16"]:
        """Arithmetic of generation, in which the trainer exports too."""
        chosen = self.rollout.engine.dtype
        if chosen != "auto":
            return chosen
        return "float32" if self.accelerator.type == "cpu" else "bfloat16"

    def check_programs(self, verifier: str | None, options: Mapping[str, Any]) -> None:
        """Whether the sandbox gives the programs that a verifier judges what its options say.

        Raises:
            ValueError: it does not, and would refuse the first answer.
        """
        for code in programs(verifier, options):
            if code.memory_mb > self.sandbox.memory_mb:
                raise ValueError(
                    f"memory_mb of the verifier code ({code.memory_mb}) is more than sandbox.memoryPerRun ({self.sandbox.memory_per_run}); "
                    "lower it or raise memoryPerRun"
                )

    @model_validator(mode="after")
    def _programs_fit(self) -> "RLJobSpec":
        self.check_programs(self.reward.verifier, self.reward.options)
        return self

    @model_validator(mode="after")
    def _parallel_sizes_fit(self) -> "RLJobSpec":
        t, per_node = self.trainer, self.accelerator.per_node
        need = t.tensor_parallel * t.pipeline_parallel * t.context_parallel
        if self.world_size % need:
            raise ValueError(
                f"trainer.tensorParallel ({t.tensor_parallel}) × pipelineParallel ({t.pipeline_parallel}) × contextParallel "
                f"({t.context_parallel}) = {need} must divide trainer.nodes × accelerator.perNode = {self.world_size}; "
                f"set accelerator.perNode to a multiple of {need // math.gcd(need, t.nodes)}"
            )
        experts = t.pipeline_parallel * t.expert_parallel
        if self.world_size % experts:
            need = math.lcm(need, experts)
            raise ValueError(
                f"trainer.pipelineParallel ({t.pipeline_parallel}) × expertParallel ({t.expert_parallel}) = {experts} must divide "
                f"trainer.nodes × accelerator.perNode = {self.world_size}, since the ranks of a stage share out its experts; lower "
                f"expertParallel, or set accelerator.perNode to a multiple of {need // math.gcd(need, t.nodes)}"
            )
        if t.virtual_pipeline_parallel > 1 and t.pipeline_parallel == 1:
            raise ValueError(
                f"trainer.virtualPipelineParallel ({t.virtual_pipeline_parallel}) needs stages to interleave, but trainer.pipelineParallel "
                "is 1; set it to 2 or more, or virtualPipelineParallel to 1"
            )
        if t.tensor_parallel > per_node:
            raise ValueError(
                f"trainer.tensorParallel ({t.tensor_parallel}) is more than accelerator.perNode ({per_node}): a tensor parallel "
                "group stays within one node; lower it or raise perNode"
            )
        if t.nodes > 1 and per_node % t.tensor_parallel:
            raise ValueError(
                f"trainer.tensorParallel ({t.tensor_parallel}) does not divide accelerator.perNode ({per_node}): with trainer.nodes "
                f"({t.nodes}) a tensor parallel group would lie on two nodes; set perNode to a multiple of it"
            )
        if self.rollout.tensor_parallel > per_node:
            raise ValueError(
                f"rollout.tensorParallel ({self.rollout.tensor_parallel}) is more than accelerator.perNode ({per_node}); "
                "lower it or raise perNode"
            )
        return self

    @model_validator(mode="after")
    def _topics_agree(self) -> "RLJobSpec":
        if self.model.source.scratch is not None and self.warm_start is None and self.generates:
            raise ValueError("model.source.scratch starts from random weights, which earn no reward: set spec.warmStart")
        if self.warm_start is not None and not self.generates:
            raise ValueError("warmStart and rewardModel are both set, but demonstrations teach no reward model: leave one of them out")
        length = self.model.max_length
        if self.generates and length is not None and self.rollout.max_tokens >= length:
            raise ValueError(
                f"rollout.maxTokens ({self.rollout.max_tokens}) leaves no room for a prompt in model.maxLength ({length}); "
                f"lower maxTokens or raise maxLength"
            )
        if self.algorithm.steps_per_iteration > self.algorithm.prompts_per_iteration:
            raise ValueError(
                f"algorithm.stepsPerIteration ({self.algorithm.steps_per_iteration}) is more than promptsPerIteration "
                f"({self.algorithm.prompts_per_iteration}): a step needs at least one prompt; lower stepsPerIteration"
            )
        return self


class RLJob(Part):
    """One reinforcement-learning post-training job."""

    api_version: Literal["rljob.dev/v1alpha1"]
    """`rljob.dev/v1alpha1`."""
    kind: Literal["RLJob"]
    """`RLJob`."""
    metadata: Metadata
    """Kubernetes object metadata."""
    spec: RLJobSpec
    """What the user wants."""
