"""What the job does next, from what is durable: the whole loop as one table."""

from collections.abc import Collection
from dataclasses import dataclass

from rljob.api import RLJobSpec
from rljob.master.decisions.evaluation import due


@dataclass(frozen=True)
class Durable:
    """What the job has reached for good."""

    version: int
    """Committed version of the weights."""
    batch: bool
    """The batch that makes version + 1 is stored."""
    evaluated: Collection[int]
    """Versions whose held-out evaluation is recorded."""


@dataclass(frozen=True)
class Train:
    """Have the nodes make `version` from the stored batch."""

    version: int


@dataclass(frozen=True)
class WarmStart:
    """Store the batch of demonstrations that makes version 1."""


@dataclass(frozen=True)
class Pairs:
    """Store the batch of preference pairs for `iteration` (from 1) of a reward model."""

    iteration: int


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the committed version, the policy after `iteration`."""

    iteration: int


@dataclass(frozen=True)
class Rollout:
    """Collect answers of the committed version until a batch for `iteration` (from 1) is stored."""

    iteration: int


@dataclass(frozen=True)
class Finish:
    """All iterations are done."""


Stage = Train | WarmStart | Pairs | Evaluate | Rollout | Finish


def first_policy(spec: RLJobSpec) -> int:
    """Version that RL starts from: 1 after a warm start, else 0."""
    return 1 if spec.warm_start is not None else 0


def next_stage(durable: Durable, spec: RLJobSpec) -> Stage:
    """Exactly one thing is next; it is the same before and after a restart."""
    if durable.batch:
        return Train(durable.version + 1)
    iteration = durable.version - first_policy(spec)
    if iteration < 0:
        return WarmStart()
    if not spec.generates:  # it is measured by the task that makes it
        return Finish() if iteration >= spec.iterations else Pairs(iteration + 1)
    if due(spec.evaluation, iteration, spec.iterations) and durable.version not in durable.evaluated:
        return Evaluate(iteration)
    return Finish() if iteration >= spec.iterations else Rollout(iteration + 1)
