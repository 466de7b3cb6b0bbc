"""Preference pairs: the batch of a reward model's iteration, and what its held-out pairs amount to. Pure."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from rljob.api.algorithm import RewardModelSpec
from rljob.master.decisions.assemble import Summary
from rljob.master.decisions.evaluation import HeldOutAnswer
from rljob.master.decisions.record import rollout_part
from rljob.wire.batch import Batch, Group, Sample
from rljob.wire.data import PromptRecord


def pair_batch(
    records: Sequence[PromptRecord], held_out: Sequence[PromptRecord], settings: RewardModelSpec, iteration: int, seed: int, shuffled: bool
) -> Batch:
    """The batch of an iteration: its stepsPerIteration × batchSize pairs, and after them the held-out pairs to measure.

    The training pairs are walked once, then again, from iteration to iteration; `shuffled` anew for every pass, else as they stand.

    Raises:
        ValueError: a record has no pair.
    """
    count = settings.steps_per_iteration * settings.batch_size
    first = (iteration - 1) * count
    passes: dict[int, list[int]] = {}

    def at(place: int) -> PromptRecord:
        number, index = divmod(place, len(records))
        if number not in passes:
            passes[number] = list(range(len(records)))
            if shuffled:
                Random(f"{seed}/pairs/{number}").shuffle(passes[number])
        return records[passes[number][index]]

    groups = [_pair(at(place)) for place in range(first, first + count)] + [_pair(record) for record in held_out]
    return Batch(iteration, tuple(groups), len(held_out))


def _pair(record: PromptRecord) -> Group:
    if record.chosen is None or record.rejected is None:
        raise ValueError(f"record {record.id} has no pair of answers")
    samples = []
    for tokens, sign in ((record.chosen, 1.0), (record.rejected, -1.0)):
        length = len(tokens)
        samples.append(Sample(np.array(tokens, np.int32), np.ones(length, np.uint8), np.zeros(length, np.float32), sign))
    return Group(np.array(record.tokens, np.int32), tuple(samples))


def pair_part(batch: Batch) -> dict[str, Any]:
    """The part of an iteration's record that is known before training; rewards are filled in after it (`iteration_record`)."""
    trained = batch.groups[: len(batch.groups) - batch.held_out]
    lengths = [len(sample.tokens) for group in trained for sample in group.samples]
    summary = Summary(
        groups=len(trained),
        answers=len(lengths),
        reward=0.0,
        total_reward=0.0,
        success_rate=0.0,
        zero_advantage=0.0,
        response_length=sum(lengths) / max(1, len(lengths)),
        stopped=1.0,
        cut=0.0,
        repeated=0.0,
        stale_tokens=0.0,
        masked_tokens=0.0,
    )
    return rollout_part(summary, tokens=0, carried=0, rounds=1, speed=0.0, discarded=0)


def judged_pairs(records: Sequence[PromptRecord], margins: Sequence[float], chosen: Sequence[str]) -> list[HeldOutAnswer]:
    """Held-out pairs as judged answers: right where the chosen answer has the higher score. `chosen`: those answers' texts."""
    return [
        HeldOutAnswer(
            r.id, r.family, r.question, text, len(r.chosen or ()), margin > 0, f"the chosen answer's score is higher by {margin:.3f}"
        )
        for r, margin, text in zip(records, margins, chosen, strict=True)
    ]
