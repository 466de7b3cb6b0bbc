"""Batches: complete groups for RL, demonstrations for the warm start."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from rljob.api import RLJobSpec
from rljob.api.algorithm import WarmStart
from rljob.master.decisions.partial import loss_mask
from rljob.master.decisions.rewards import advantages, total_rewards, verdict_of
from rljob.master.trajectory import Logprobs, PromptGroup, Segment, Trajectory
from rljob.wire.batch import Batch, Group, Sample
from rljob.wire.data import PromptRecord


@dataclass(frozen=True)
class Summary:
    """What an iteration's batch amounts to; every mean is over its answers unless said otherwise."""

    groups: int
    answers: int
    reward: float
    """Verifier's reward."""
    total_reward: float
    """With length reward and penalties: what is learned from."""
    success_rate: float
    """Share of answers judged right."""
    zero_advantage: float
    """Share of answers whose advantage is 0: they teach nothing."""
    response_length: float
    """Tokens of an answer."""
    stopped: float
    """Share that ended by themselves."""
    cut: float
    """Share that reached the longest length."""
    repeated: float
    """Share that looped."""
    stale_tokens: float
    """Share of answer tokens that an older policy wrote."""
    masked_tokens: float
    """Share of answer tokens left out of the loss."""


def rl_batch(groups: Sequence[PromptGroup], version: int, iteration: int, spec: RLJobSpec) -> tuple[Batch, Summary]:
    """The batch that makes `version` from complete groups, in an order shuffled by the seed, and its summary.

    Raises:
        ValueError: a group is not complete.
    """
    shuffled = sorted(groups, key=lambda g: g.id)
    Random(f"{spec.seed}/batch/{version}").shuffle(shuffled)
    totals = [total_rewards(g.trajectories, iteration, spec.algorithm.length_penalty, spec.rollout.repetition.penalty) for g in shuffled]
    rows = [_group(g, advantages(total), version - 1, spec.rollout.max_staleness) for g, total in zip(shuffled, totals, strict=True)]
    return Batch(version, tuple(rows)), _summary(shuffled, [r for total in totals for r in total], rows, version - 1)


def warm_start_batch(records: Sequence[PromptRecord], warm_start: WarmStart, seed: int) -> Batch:
    """The batch that makes version 1: steps × batchSize demonstrations, walked in an order shuffled anew for every pass.

    Raises:
        ValueError: a record has no demonstration.
    """
    order: list[int] = []
    need, epoch = warm_start.steps * warm_start.batch_size, 0
    while len(order) < need:
        indices = list(range(len(records)))
        Random(f"{seed}/warm-start/{epoch}").shuffle(indices)
        order, epoch = order + indices, epoch + 1
    return Batch(1, tuple(_demonstration(records[i]) for i in order[:need]))


def _group(group: PromptGroup, advantage: Sequence[float], policy: int, max_staleness: int) -> Group:
    samples = tuple(_sample(t, a, policy, max_staleness) for t, a in zip(group.trajectories, advantage, strict=True))
    return Group(np.array(group.prompt.tokens, np.int32), samples)


def _sample(trajectory: Trajectory, advantage: float, policy: int, max_staleness: int) -> Sample:
    none = np.zeros(0)
    return Sample(
        tokens=trajectory.tokens,
        loss_mask=np.concatenate([none, *(loss_mask(s, policy, max_staleness) for s in trajectory.segments)]).astype(np.uint8),
        logprobs=np.concatenate([none, *(_own(s, policy) for s in trajectory.segments)]).astype(np.float32),
        advantage=advantage,
    )


def _own(segment: Segment, policy: int) -> Logprobs:
    """What the policy said when it wrote this; nothing (NaN) where another one did."""
    return segment.logprobs if segment.weights.version == policy else np.full(len(segment.tokens), np.nan, np.float32)


def _demonstration(record: PromptRecord) -> Group:
    if not record.demonstration:
        raise ValueError(f"record {record.id} has no demonstration")
    tokens = np.array(record.demonstration, np.int32)
    sample = Sample(tokens, np.ones(len(tokens), np.uint8), np.zeros(len(tokens), np.float32), 0.0)
    return Group(np.array(record.tokens, np.int32), (sample,))


def _summary(groups: Sequence[PromptGroup], totals: Sequence[float], rows: Sequence[Group], policy: int) -> Summary:
    answers = [t for g in groups for t in g.trajectories]
    samples = [s for row in rows for s in row.samples]
    count, tokens = len(answers), max(1, sum(t.length for t in answers))
    fresh = sum(t.length_by(policy) for t in answers)
    verdicts = [verdict_of(t) for t in answers]
    return Summary(
        groups=len(groups),
        answers=count,
        reward=sum(v.reward for v in verdicts) / count,
        total_reward=sum(totals) / count,
        success_rate=sum(v.right for v in verdicts) / count,
        zero_advantage=sum(s.advantage == 0 for s in samples) / count,
        response_length=sum(t.length for t in answers) / count,
        stopped=sum(t.finish == "stop" for t in answers) / count,
        cut=sum(t.finish == "length" for t in answers) / count,
        repeated=sum(t.finish == "repeat" for t in answers) / count,
        stale_tokens=1 - fresh / tokens,
        masked_tokens=1 - sum(int(s.loss_mask.sum()) for s in samples) / tokens,
    )
