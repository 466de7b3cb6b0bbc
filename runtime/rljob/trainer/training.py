"""One training task: from a batch to the next version of the weights."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.algorithm import WarmStart
from rljob.trainer.build import Replica
from rljob.trainer.objectives import Loss, Objective
from rljob.trainer.objectives.mirror_descent import mirror_descent
from rljob.trainer.objectives.sft import negative_log_likelihood, warmed_up
from rljob.trainer.packing import Part, Row, answers_of, bins, needed, rl_steps, sft_steps, share
from rljob.trainer.pipeline import forward_backward, forward_only, relay
from rljob.wire.batch import Batch
from rljob.wire.node import TrainMetrics, TrainTask

ReportProgress = Callable[[int, int], None]
"""(micro-batches done, all of them)"""
_RATE = {"rl": "trainer.optimizer.learningRate", "sft": "warmStart.learningRate", "preference": "rewardModel.learningRate"}
"""Field of `spec` by kind of task."""


@dataclass(frozen=True)
class Step:
    """One optimizer step of this data-parallel rank."""

    rows: list[Row]
    samples: int
    """Samples of the step on all ranks, those without gradient included: what the loss is averaged over."""
    learning_rate: float


@dataclass
class Totals:
    """Sums of one step on the last pipeline stage, which alone sees log-probabilities; added up over all ranks."""

    loss: float = 0.0
    kl: float = 0.0
    gap: float = 0.0
    compared: int = 0
    """Answer tokens that the engine wrote with the weights that the trainer began with."""
    tokens: int = 0
    computed: int = 0
    """Samples that went through the model."""

    def add(self, row: Row, loss: Loss, gaps: Tensor) -> None:
        if row.counted:
            self.loss += float(loss.total.detach())
            self.kl += float(loss.kl)
            self.gap += float(gaps.sum())
            self.compared += len(gaps)
            self.tokens += len(row.tokens)
            self.computed += len(row.indices)

    def over(self, replica: Replica) -> "Totals":
        """The sums over all data-parallel ranks, known to every stage."""
        mine = [self.loss, self.kl, self.gap, self.compared, self.tokens, self.computed]
        t = torch.tensor(mine, dtype=torch.float64, device=replica.device.device)
        dist.all_reduce(t, group=replica.data_group)
        dist.all_reduce(t, group=replica.pipeline_group)  # to which all stages but one add zeros
        loss, kl, gap, compared, tokens, computed = t.tolist()
        return Totals(loss, kl, gap, int(compared), int(tokens), int(computed))


@dataclass
class Reference:
    """Summed log-probabilities of samples under the iteration's first policy; on the last pipeline stage only."""

    known: dict[int, float] = field(default_factory=dict)
    """By place of the sample in the batch."""

    def of(self, row: Row, logprobs: Tensor, engine: Tensor) -> Tensor:
        """[S]. For samples that no forward pass has seen under the first policy the engine's log-probabilities stand in, as far as that
        policy wrote them: only the reported KL uses them, since a regularised task (tau > 0) computes every reference first."""
        values = [self.known.get(int(i), float(e)) for i, e in zip(row.indices, engine, strict=True)]
        return torch.tensor(values, dtype=logprobs.dtype, device=logprobs.device)


def train(replica: Replica, spec: RLJobSpec, task: TrainTask, batch: Batch, report: ReportProgress) -> TrainMetrics:
    """Make version `task.version` of the weights held by `replica`, which are of the version before.

    The same batch on the same weights gives the same result, bit for bit, with the same number of ranks and threads.
    """
    started = time.monotonic()
    if spec.algorithm.reset_optimizer:
        replica.optimizer.reset()
    steps = plan_steps(replica, spec, task, batch)
    tau = spec.algorithm.tau if task.kind == "rl" else 0.0
    later = [row for step in steps[1:] for row in step.rows] if tau > 0 else []
    total = len(later) + sum(len(step.rows) for step in steps)
    reference = Reference()
    _look_ahead(replica, later, reference, partial(_shift, report, 0, total))
    done, results, norms = len(later), [], []
    for number, step in enumerate(steps):
        objective: Objective = partial(mirror_descent, tau=tau) if task.kind == "rl" else negative_log_likelihood
        totals, norm = run_step(replica, step, objective, reference, first=number == 0, report=partial(_shift, report, done, total))
        check(task, number, totals, norm)
        done += len(step.rows)
        results.append(totals)
        norms.append(norm)
    if spec.algorithm.reset_optimizer:
        replica.optimizer.reset()
    return _metrics(task, batch, steps, results, norms, time.monotonic() - started)


def _shift(report: ReportProgress, before: int, total: int, done: int) -> None:
    report(before + done, total)


def plan_steps(replica: Replica, spec: RLJobSpec, task: TrainTask, batch: Batch) -> list[Step]:
    """Deal the batch to optimizer steps, micro-batches and ranks; the same on every rank."""
    parts = answers_of(batch)
    if task.kind == "rl":
        dealt = rl_steps(parts, task.steps, (spec.seed, task.version))
        rates = [spec.trainer.optimizer.learning_rate] * task.steps
    else:
        warm = _warm_start(spec)
        dealt = sft_steps(parts, task.steps)
        rates = [warmed_up(warm.learning_rate, i, warm.warmup_steps) for i in range(task.steps)]
    # In the first step the regulariser's gradient is exactly 0: the policy is the one that it pulls towards.
    everything = [task.kind == "sft" or (spec.algorithm.tau > 0 and number > 0) for number in range(task.steps)]
    return [
        Step(_rows(replica, needed(members, whole), spec), sum(len(p.answers) for p in members), rate)
        for members, whole, rate in zip(dealt, everything, rates, strict=True)
    ]


def _rows(replica: Replica, parts: list[Part], spec: RLJobSpec) -> list[Row]:
    filled = bins(parts, spec.trainer.micro_batch_tokens, replica.data_size * replica.together) if parts else []
    return share(filled, replica.place.data_rank, replica.data_size)


def _warm_start(spec: RLJobSpec) -> WarmStart:
    if spec.warm_start is None:
        raise ConfigurationError("a supervised task needs spec.warmStart, which says its learning rate")
    return spec.warm_start


def run_step(
    replica: Replica, step: Step, objective: Objective, reference: Reference, *, first: bool, report: Callable[[int], None]
) -> tuple[Totals, float]:
    """Accumulate the gradients of all micro-batches and take one optimizer step. A step without samples to compute changes nothing."""
    totals = Totals()
    if not step.rows:
        return totals, 0.0
    count = itertools.count(1)

    def contribute(row: Row, token_logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, now, engine = per_sample(row, token_logprobs), token_logprobs.detach(), _tensor(row.engine_logprobs, token_logprobs)
        own = ~engine.isnan()
        start = logprobs.detach() if first else reference.of(row, logprobs, per_sample(row, torch.where(own, engine, now)))
        loss = objective(logprobs, _tensor(row.advantages, logprobs), start=start)
        totals.add(row, loss, (now - engine)[own].abs())
        # Megatron divides by the number of micro-batches and averages over data-parallel ranks; the objective is a mean over samples.
        scale = len(step.rows) * replica.data_size / step.samples
        return loss.total * (scale if row.counted else 0.0), {}

    with replica.device.megatron():
        for chunk in replica.chunks:
            chunk.ddp.zero_grad_buffer()
        replica.optimizer.megatron.zero_grad()
        forward_backward(replica, step.rows, contribute, lambda _: report(next(count)))
        norm = replica.optimizer.step(step.learning_rate)
    return totals.over(replica), norm


def check(task: TrainTask, number: int, totals: Totals, norm: float) -> None:
    """After optimizer step `number` (from 0) of a task; all ranks come to the same result.

    Raises:
        ConfigurationError: the numbers have left the finite ones. The weights are lost, and trying again would lose them again.
    """
    if not math.isfinite(totals.loss + norm):
        raise ConfigurationError(
            f"spec.{_RATE[task.kind]}: training of version {task.version} has diverged in optimizer step {number + 1} of {task.steps} "
            f"(sum of losses {totals.loss:.4g}, gradient norm {norm:.4g}); the version before is kept: lower the learning rate"
        )


def _look_ahead(replica: Replica, rows: list[Row], reference: Reference, report: Callable[[int], None]) -> None:
    """Forward passes under the first policy for the samples of later steps."""
    count = itertools.count(1)
    found = forward_only(replica, rows, lambda _: report(next(count)))
    for row, values in zip(rows, found, strict=replica.place.last):
        reference.known.update(zip(row.indices.tolist(), per_sample(row, values).tolist(), strict=True))


def logprobs(replica: Replica, row: Row) -> Tensor:
    """Log-probabilities of the row's targets in the training precision, fp32 [N]."""
    return relay(replica, row)


def per_sample(row: Row, values: Tensor) -> Tensor:
    """Sum values [N] of predictions over the samples they belong to: [S]."""
    zeros = torch.zeros(len(row.indices), dtype=values.dtype, device=values.device)
    return zeros.index_add(0, torch.from_numpy(row.sample).to(values.device), values)


def _tensor(array: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like)


def _metrics(task: TrainTask, batch: Batch, steps: list[Step], results: list[Totals], norms: list[float], seconds: float) -> TrainMetrics:
    first, last = results[0], results[-1]
    return TrainMetrics(
        version=task.version,
        loss=sum(t.loss / max(1, s.samples) for t, s in zip(results, steps, strict=True)) / len(steps),
        grad_norm=sum(norms) / len(norms),
        learning_rate=steps[-1].learning_rate,
        steps=len(steps),
        samples=sum(len(g.samples) for g in batch.groups),
        tokens=sum(t.tokens for t in results),
        seconds=seconds,
        kl=last.kl / max(1, last.computed),
        logprob_gap=first.gap / max(1, first.compared) if task.kind == "rl" else 0.0,
    )
