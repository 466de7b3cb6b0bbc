"""The training task of a reward model: preference pairs, both answers of a pair in one micro-batch that holds their prompt once."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.algorithm import RewardModelSpec
from rljob.trainer.build import Replica
from rljob.trainer.objectives import Loss
from rljob.trainer.objectives.bradley_terry import bradley_terry
from rljob.trainer.objectives.sft import warmed_up
from rljob.trainer.packing import Answer, Part, Row, answers_of, share
from rljob.trainer.training import Reference, ReportProgress, Step, Totals, check, logprobs, run_step
from rljob.wire.batch import Batch
from rljob.wire.node import PairMetrics, TrainMetrics, TrainTask


@dataclass
class Tally:
    """What this rank saw of training pairs."""

    pairs: int = 0
    right: int = 0
    margin: float = 0.0

    def objective(self, logprobs: Tensor, advantages: Tensor, start: Tensor) -> Loss:
        """The Objective: scores and signs [S] of whole pairs, the chosen answer first; pairs whose signs are 0 are not counted."""
        scores, counted = logprobs, advantages[0::2] > 0
        margins = (scores[0::2] - scores[1::2]).detach()
        self.pairs += int(counted.sum())
        self.right += int((counted & (margins > 0)).sum())
        self.margin += float(margins[counted].sum())
        return Loss(bradley_terry(scores[0::2], scores[1::2]), torch.zeros((), dtype=scores.dtype, device=scores.device))

    def over(self, replica: Replica) -> "Tally":
        """The sums over data-parallel ranks, known to every stage."""
        total = torch.tensor([self.pairs, self.right, self.margin], dtype=torch.float64, device=replica.device.device)
        dist.all_reduce(total, group=replica.data_group)
        dist.all_reduce(total, group=replica.pipeline_group)  # to which all stages but the last add zeros
        return Tally(int(total[0]), int(total[1]), float(total[2]))


def train(replica: Replica, spec: RLJobSpec, task: TrainTask, batch: Batch, report: ReportProgress) -> TrainMetrics:
    """Make version `task.version` of a reward model, and measure it on the batch's held-out pairs.

    The optimizer is not reset: the iterations of such a job are one training. As exact as `rljob.trainer.training.train`.

    Raises:
        ConfigurationError: the job trains no reward model, or the model folder holds none.
    """
    started = time.monotonic()
    settings = _settings(replica, spec)
    parts = pairs_of(batch)
    trained, held_out = parts[: len(parts) - batch.held_out], parts[len(parts) - batch.held_out :]
    budget = spec.trainer.micro_batch_tokens
    steps = plan_steps(replica, settings, task, trained, budget)
    measured = rows(replica, held_out, budget)
    at_first = measured if task.iteration == 1 else []
    total = len(at_first) + sum(len(step.rows) for step in steps) + len(measured)
    before = margins(replica, held_out, at_first, partial(_shift, report, 0, total))
    done, tally = len(at_first), Tally()
    results, norms = [], []
    for number, step in enumerate(steps):
        shown = partial(_shift, report, done, total)
        totals, norm = run_step(replica, step, tally.objective, Reference(), first=True, report=shown)
        check(task, number, totals, norm)
        done += len(step.rows)
        results.append(totals)
        norms.append(norm)
    seen = tally.over(replica)
    pairs = PairMetrics(
        right=seen.right / max(1, seen.pairs),
        margin=seen.margin / max(1, seen.pairs),
        held_out=margins(replica, held_out, measured, partial(_shift, report, done, total)),
        held_out_before=before,
    )
    return _metrics(task, steps, results, norms, pairs, time.monotonic() - started)


def _shift(report: ReportProgress, before: int, total: int, done: int) -> None:
    report(before + done, total)


def _settings(replica: Replica, spec: RLJobSpec) -> RewardModelSpec:
    if spec.reward_model is None:
        raise ConfigurationError("a task on preference pairs needs spec.rewardModel, which says its learning rate")
    if not replica.architecture.scored:
        raise ConfigurationError("the model folder holds no reward model (`architectures` in config.json); prepare the job again")
    return spec.reward_model


def pairs_of(batch: Batch) -> list[Part]:
    """Each group of a batch as a part of two answers, whose one prediction is made by their last token.

    Raises:
        ValueError: a group is no pair.
    """
    if any([s.advantage for s in group.samples] != [1.0, -1.0] for group in batch.groups):
        raise ValueError(f"the batch of version {batch.version} holds a group that is not a chosen and a rejected answer")
    return [replace(part, answers=tuple(_scored(a) for a in part.answers)) for part in answers_of(batch)]


def _scored(answer: Answer) -> Answer:
    """Rows are cut after the last predicting token, and the last token has nothing to predict: a placeholder stands behind it."""
    mask = np.zeros(len(answer.tokens) + 1, bool)
    mask[-1] = True
    return replace(answer, tokens=np.append(answer.tokens, 0), mask=mask, engine_logprobs=np.zeros(len(mask)))


def plan_steps(replica: Replica, settings: RewardModelSpec, task: TrainTask, parts: Sequence[Part], budget: int) -> list[Step]:
    """Deal pairs to optimizer steps in the order given, micro-batches and ranks; the same on every rank."""
    edges = np.linspace(0, len(parts), task.steps + 1).round().astype(int).tolist()
    before = (task.iteration - 1) * settings.steps_per_iteration
    return [
        Step(rows(replica, parts[a:b], budget), b - a, warmed_up(settings.learning_rate, before + i, settings.warmup_steps))
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]


def rows(replica: Replica, parts: Sequence[Part], budget: int) -> list[Row]:
    """This rank's micro-batches. A copy that only keeps ranks in step has signs of 0."""
    if not parts:
        return []
    shared = share(whole_bins(parts, budget, replica.data_size * replica.together), replica.place.data_rank, replica.data_size)
    return [row if row.counted else replace(row, advantages=np.zeros_like(row.advantages)) for row in shared]


def whole_bins(parts: Iterable[Part], budget: int, ranks: int) -> list[list[Part]]:
    """Micro-batches of at most `budget` tokens, longest pairs first, their number a multiple of `ranks`; no pair is ever split.

    One over the budget makes its own micro-batch. Unlike `packing.bins`, which may part the answers of a prompt.
    """
    filled: list[list[Part]] = []
    for part in sorted(parts, key=lambda p: (-p.size, p.answers[0].index)):
        room = next((b for b in filled if sum(p.size for p in b) + part.size <= budget), None)
        if room is None:
            filled.append([part])
        else:
            room.append(part)
    while len(filled) % ranks:
        largest = max(range(len(filled)), key=lambda i: len(filled[i]))
        half = len(filled[largest]) // 2
        filled[largest : largest + 1] = [filled[largest][:half], filled[largest][half:]] if half else [filled[largest], []]
    return sorted(filled, key=lambda b: not b)  # a copy of the first stands in for an empty one


@torch.no_grad()
def margins(replica: Replica, parts: Sequence[Part], rows: Sequence[Row], report: Callable[[int], None]) -> tuple[float, ...]:
    """r_chosen - r_rejected of each pair under the weights that the replica holds, the same on every rank; nothing of no rows.

    `rows`: this rank's micro-batches of `parts`.
    """
    if not rows:
        return ()
    first = parts[0].answers[0].index
    scores = torch.zeros(2 * len(parts), dtype=torch.float64, device=replica.device.device)
    for number, row in enumerate(rows, 1):
        report(number)
        values = logprobs(replica, row)
        if row.counted:
            scores[torch.from_numpy(row.indices - first).to(scores.device)] = values.to(scores.dtype)
    dist.all_reduce(scores, group=replica.data_group)
    return tuple((scores[0::2] - scores[1::2]).tolist())


def _metrics(
    task: TrainTask, steps: Sequence[Step], results: Sequence[Totals], norms: Sequence[float], pairs: PairMetrics, seconds: float
) -> TrainMetrics:
    return TrainMetrics(
        version=task.version,
        loss=sum(t.loss / max(1, s.samples) for t, s in zip(results, steps, strict=True)) / len(steps),
        grad_norm=sum(norms) / len(norms),
        learning_rate=steps[-1].learning_rate,
        steps=len(steps),
        samples=2 * sum(step.samples for step in steps),
        tokens=sum(t.tokens for t in results),
        seconds=seconds,
        kl=0.0,
        logprob_gap=0.0,
        pairs=pairs,
    )
