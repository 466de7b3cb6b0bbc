"""What the job says of itself: written by the master (`GET /v1/status`, `status.json`), shown by the CLI, copied by the operator."""

from typing import Literal

from pydantic import AwareDatetime, Field

from rljob.api.base import Part


class ProgressStatus(Part):
    """How far something is."""

    done: int
    """Finished so far."""
    total: int
    """All of it."""
    unit: str = ""
    """What is counted: `answers`, `steps`, `tokens`."""


class NodeStatus(Part):
    """One worker or rollout pod."""

    name: str
    """Pod name, such as `worker-0`."""
    step: str
    """Step of the hand-over cycle it is in."""
    step_seconds: float = 0.0
    """For how long."""
    progress: ProgressStatus | None = None
    """How far that step is, where it can be counted."""
    version: int | None = None
    """Version its engine serves, if it is routable."""
    failure: str = ""
    """Why the step does not succeed; empty if it does."""
    switch: str = ""
    """What its last hand-over did with the engine (`restart` or `sleep`) and why; empty before the first, and without a trainer."""


class HeldOutStatus(Part):
    """One held-out evaluation."""

    iteration: int
    """After so many iterations; 0 is the policy that RL starts from."""
    accuracy: float
    """Share of right answers."""
    families: dict[str, float] = Field(default_factory=dict)
    """Accuracy per family of prompts; of an RLJob with very many, those of the first and the newest evaluations."""
    count: int = 0
    """Prompts."""


class LastFailure(Part):
    """The newest failure, also if the job went on."""

    stage: str
    """Step of the cycle."""
    pod: str
    """Where."""
    reason: str
    """One CamelCase word."""
    message: str
    """One line: what, and what to do."""
    at: AwareDatetime | None = None
    """When; not known of one that an older release has written down."""


class JobStatus(Part):
    """Everything a person or the operator wants to know in one screen."""

    phase: Literal["Preparing", "WarmStart", "Rollout", "Training", "Evaluating", "Finishing", "Succeeded", "Failed"]
    """What the job is doing: `Pending` and `Suspended` in a cluster alone, `Preparing`, `WarmStart`, `Rollout`, `Training`, `Evaluating`,
    `Finishing`, `Succeeded`, `Failed`."""
    iteration: int
    """Iteration in progress, from 1; after the end the number of iterations done."""
    iterations: int
    """Iterations in all."""
    policy_version: int
    """Committed version of the weights."""
    reward: float | None = None
    """Mean reward of the last finished iteration."""
    rewards: list[float] = Field(default_factory=list)
    """Mean reward of every finished iteration; of an RLJob, the newest 200."""
    rewards_before: int = 0
    """Finished iterations before the first one of `rewards`."""
    held_out: list[HeldOutStatus] = Field(default_factory=list)
    """Held-out evaluations so far; of an RLJob, the first and the newest 199."""
    progress: ProgressStatus | None = None
    """Progress of the phase."""
    tokens_per_second: float = 0.0
    """Generation speed of the running rollout or evaluation, else of the last rollout; while a version is trained, that of `iteration`."""
    engines: int = 0
    """Routable engines."""
    nodes: list[NodeStatus] = Field(default_factory=list)
    """Worker and rollout pods."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds per phase of the last finished iteration."""
    last_failure: LastFailure | None = None
    """The newest failure."""
    started: float = 0.0
    """Unix time of the job's first start."""
    updated: float = 0.0
    """Unix time of this status."""

    @property
    def finished(self) -> int:
        """Finished iterations."""
        return self.rewards_before + len(self.rewards)

    @property
    def switches(self) -> tuple[str, ...]:
        """What the nodes say of their hand-overs, each once."""
        return tuple(dict.fromkeys(node.switch for node in self.nodes if node.switch))
