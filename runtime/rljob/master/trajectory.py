"""What the master knows of an answer: segments by policy version, how it ended, how it was judged."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from rljob.wire.data import PromptRecord

Finish = Literal["stop", "length", "repeat"]
"""`stop`: the model ended it. `length`: it reached the longest length allowed. `repeat`: it looped and was ended early."""

Tokens = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """The identity of a policy: number and checksum, never the number alone."""

    version: int
    checksum: str

    @property
    def label(self) -> str:
        """What an engine that holds these weights answers with (`weight_version`)."""
        return f"{self.version}:{self.checksum}"


@dataclass(frozen=True)
class Segment:
    """Tokens in a row that one policy wrote, with that policy's log-probabilities (one per token)."""

    weights: Weights
    tokens: Tokens
    logprobs: Logprobs

    def joined(self, later: "Segment") -> "Segment":
        """This segment and a later one of the same policy as one."""
        return Segment(self.weights, np.concatenate([self.tokens, later.tokens]), np.concatenate([self.logprobs, later.logprobs]))


@dataclass(frozen=True)
class Verdict:
    """The judgement of a finished answer. There is none for an infrastructure failure."""

    right: bool
    reward: float
    reason: str = ""


@dataclass(frozen=True)
class Trajectory:
    """One answer, finished or not. `finish` is None while it can still grow."""

    sample: int
    segments: tuple[Segment, ...] = ()
    finish: Finish | None = None
    answer: str | None = None
    verdict: Verdict | None = None

    @property
    def tokens(self) -> Tokens:
        """All tokens, across policies."""
        return np.concatenate([s.tokens for s in self.segments]) if self.segments else np.zeros(0, np.int32)

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(len(s.tokens) for s in self.segments)

    def length_by(self, version: int) -> int:
        """Number of tokens that one policy version wrote."""
        return sum(len(s.tokens) for s in self.segments if s.weights.version == version)

    def extended(self, piece: Segment) -> "Trajectory":
        """With a piece appended; pieces of one policy join into one segment."""
        if not len(piece.tokens):
            return self
        if self.segments and self.segments[-1].weights == piece.weights:
            return replace(self, segments=(*self.segments[:-1], self.segments[-1].joined(piece)))
        return replace(self, segments=(*self.segments, piece))


def added(before: Trajectory, after: Trajectory) -> Segment | None:
    """The tokens that `after` has and `before` has not; all of one policy. None if there are none."""
    count = after.length - before.length
    if not count:
        return None
    last = after.segments[-1]
    return Segment(last.weights, last.tokens[-count:], last.logprobs[-count:])


@dataclass(frozen=True)
class PromptGroup:
    """A drawn prompt and its k answers: what the replay buffer holds until it is trained on."""

    id: int
    """Ordinal of the draw: 0 for the first prompt of the job. Each is consumed by exactly one batch."""
    iteration: int
    """Iteration that drew it."""
    prompt: PromptRecord
    trajectories: tuple[Trajectory, ...]

    @property
    def complete(self) -> bool:
        """True when every answer is finished and judged."""
        return all(t.verdict is not None for t in self.trajectories)
