"""Partial rollouts (Kimi k1.5 §2.6.2): how far an answer may grow now, and what a piece from an engine makes of it."""

from dataclasses import dataclass, replace

import numpy as np

from rljob.api.algorithm import Repetition
from rljob.master.decisions.repetition import loop_end
from rljob.master.trajectory import Finish, Segment, Trajectory, Weights

SLICE = 512
"""Tokens of one request to an engine. Long answers are asked for in slices, so that a looping one is seen early and a lost engine costs
little; the engine's prefix cache makes going on cheap."""
PART = 8
"""A slice is a PART-th of what there is where that is more: every request carries the whole answer, so that slices of one size would cost
the square of its length."""


@dataclass(frozen=True)
class Limits:
    """How far an answer may grow."""

    answer: int
    """Most tokens of the whole answer."""
    growth: int | None
    """Most tokens that the present policy version may write of it; None for no limit."""
    repetition: Repetition


def slice_after(length: int) -> int:
    """Tokens of the next request for an answer that has `length`."""
    return max(SLICE, length // PART)


def next_request(trajectory: Trajectory, version: int, limits: Limits) -> int:
    """Tokens to ask an engine for; 0 if the answer is finished or parked until the next iteration."""
    if trajectory.finish is not None:
        return 0
    room = limits.answer - trajectory.length
    if limits.growth is not None:
        room = min(room, limits.growth - trajectory.length_by(version))
    return max(0, min(room, slice_after(trajectory.length)))


def grown(trajectory: Trajectory, piece: Segment, stopped: bool, limits: Limits) -> Trajectory:
    """The answer with a piece appended, and finished if it ended by itself (`stopped`), began to loop or is as long as allowed.

    What follows the point where a loop is recognised is dropped.
    """
    longer = trajectory.extended(piece)
    end = _loop_end(longer, trajectory.length, limits.repetition) if limits.repetition.enabled else None
    finish: Finish | None = "repeat" if end is not None else "stop" if stopped else "length" if longer.length >= limits.answer else None
    if end is not None and end < longer.length:
        longer = trajectory.extended(_shortened(piece, max(0, end - trajectory.length)))
    return replace(longer, finish=finish)


def _loop_end(answer: Trajectory, known: int, repetition: Repetition) -> int | None:
    """Length at which the answer counts as looping, none of its first `known` tokens being such a place."""
    start = max(0, known - repetition.window * repetition.times)
    end = loop_end(answer.tokens[start:], repetition.window, repetition.times)
    return start + end if end is not None else None


def parked(trajectory: Trajectory, version: int, limits: Limits) -> bool:
    """True if the answer is unfinished but has used up what it may grow by now."""
    return trajectory.finish is None and next_request(trajectory, version, limits) == 0


def loss_mask(segment: Segment, policy: int, max_staleness: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """1 for each token that takes part in the loss: none of a segment written more than `max_staleness` versions before `policy`."""
    fresh = policy - segment.weights.version <= max_staleness
    return np.full(len(segment.tokens), 1 if fresh else 0, np.uint8)


def piece_of(weights: Weights, tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> Segment:
    """What an engine answered, as a segment."""
    return Segment(weights, np.array(tokens, np.int32), np.array(logprobs, np.float32))


def _shortened(piece: Segment, length: int) -> Segment:
    return Segment(piece.weights, piece.tokens[:length], piece.logprobs[:length])
