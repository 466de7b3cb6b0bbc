"""The record of an iteration: one line of metrics.jsonl. docs/metrics.md has every key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rljob.api.status import HeldOutStatus
from rljob.master.decisions.assemble import Summary
from rljob.wire.node import TrainMetrics


def rollout_part(summary: Summary, tokens: int, carried: int, rounds: int, speed: float, discarded: int) -> dict[str, Any]:
    """What is known once the batch is assembled."""
    return {
        **asdict(summary),
        "carried": carried,
        "rounds": rounds,
        "tokens": tokens,
        "tokens_per_second": speed,
        "discarded_tokens": discarded,
    }


def iteration_record(
    iteration: int, rollout: Mapping[str, Any], metrics: TrainMetrics, seconds: Mapping[str, float], switch: Mapping[str, str], now: float
) -> dict[str, Any]:
    """The whole record, as it is committed. A reward model's reward is the share of training pairs in the right order."""
    pairs = metrics.pairs
    order = dict.fromkeys(("reward", "total_reward", "success_rate"), pairs.right) | {"margin": pairs.margin} if pairs else {}
    return {
        "iteration": iteration,
        "version": metrics.version,
        **rollout,
        **order,
        "loss": metrics.loss,
        "grad_norm": metrics.grad_norm,
        "learning_rate": metrics.learning_rate,
        "kl": metrics.kl,
        "logprob_gap": metrics.logprob_gap,
        "train_steps": metrics.steps,
        "train_samples": metrics.samples,
        "train_tokens": metrics.tokens,
        "train_seconds": metrics.seconds,
        **switch,
        "seconds": dict(seconds),
        "finished": now,
    }


def added_seconds(*parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds per phase, summed."""
    total: dict[str, float] = {}
    for part in parts:
        for phase, seconds in part.items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total


def lines(
    iterations: Sequence[Mapping[str, Any]], evaluations: Mapping[int, tuple[HeldOutStatus, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: iteration records joined with the held-out evaluations (by iteration) of the policy before and after."""
    joined = []
    for record in iterations:
        before, after = evaluations.get(record["iteration"] - 1), evaluations.get(record["iteration"])
        evaluation = {**after[0].model_dump(exclude={"iteration"}), **after[1]} if after else None
        held_out = {"held_out": after[0].accuracy if after else None, "held_out_before": before[0].accuracy if before else None}
        joined.append({**record, **held_out, "evaluation": evaluation})
    return joined
