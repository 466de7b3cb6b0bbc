"""What a verifier is: typed options (rljob.api.verifiers), a check of the reference, and a judgement."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from rljob.api.verifiers import Options, Term
from rljob.reward.outside import Outside
from rljob.wire.reward import ScoreItem


@dataclass(frozen=True)
class Judgement:
    """What a verifier says of an answer."""

    right: bool
    reason: str = ""
    """One line: why it is wrong, or what the reward is made of."""
    reward: float | None = None
    """From 0 to 1. Default: 1 if right, else 0."""

    @property
    def earned(self) -> float:
        """The reward."""
        return float(self.right) if self.reward is None else self.reward


@dataclass(frozen=True)
class Verifier:
    """One way to judge answers.

    `judge` never raises because of what an answer says; an exception is a fault of ours. Only finished answers reach it.

    A `killable` verifier calls code whose time and memory nobody can bound. Each of its judgements gets a process of its own, so that an
    answer can neither hang the service nor change what a later answer is worth. If such a process runs out of time or memory, crashes or
    raises, and the same verifier accepts `probe` (an answer that is right by definition), then the answer is to blame and counts as wrong.
    """

    name: str
    options: type[Options]
    judge: Callable[[ScoreItem, Any], Judgement]
    check_reference: Callable[[Any, Any], None] = lambda reference, options: None
    """Raises ValueError if answers cannot be compared with this reference under these options. Imports nothing heavy."""
    killable: bool = False
    warm: Callable[[ScoreItem, Any], None] = lambda item, options: None
    """Does, and keeps, what depends on the reference alone; runs in the long-lived worker, outside the time limit of the judgement."""
    probe: Callable[[ScoreItem], str | None] = lambda item: None
    """An answer that must be accepted; empty if none is known, then it is enough that this can be judged; None: no probe can tell."""
    quick: Callable[[ScoreItem, Any], Judgement | None] = lambda item, options: None
    """Judges at once, in bounded time and without libraries, what can be judged so; None leaves it to `judge`."""
    same: Callable[[ScoreItem, Any], Hashable] = lambda item, options: None
    """Equal for items that get the same judgement, which is then made once; None: each is judged for itself."""
    slow_lane: bool = True
    """What takes long starts again in a lane of its own (rljob.reward.pool). False: a judgement is one call with its whole limit, and as
    many are made at a time as there are workers."""
    sees_thoughts: bool = False
    """Judges all that a model wrote. Others are given what stands behind its thoughts (`extraction.without_thoughts`)."""


@dataclass(frozen=True)
class RemoteVerifier:
    """Judges by asking another service. `ask` raises `NoAnswerError` for every failure that is not the answer's."""

    name: str
    options: type[Options]
    ask: Callable[[ScoreItem, Any, Outside], Awaitable[Judgement]]
    check_reference: Callable[[Any, Any], None] = lambda reference, options: None
    same: Callable[[ScoreItem, Any], Hashable] = lambda item, options: None
    """As a Verifier's: equal for items that get the same judgement."""
    probe: str | None = None
    """An answer that the service takes if it takes any. If it refuses another one, judges this and refuses the other again, then that is to
    blame and counts as wrong: it is longer than a model's context, or a provider's filter stops it. None: never the answer's fault."""
    sees_thoughts: bool = False
    """As a Verifier's."""


@dataclass(frozen=True)
class CombinedVerifier:
    """Judges by others' judgements of the same answer. If one of them fails, so does it."""

    name: str
    options: type[Options]
    terms: Callable[[Any], Sequence[Term]]
    combine: Callable[[Any, Sequence[Judgement]], Judgement]
    check_reference: Callable[[Any, Any], None] = lambda reference, options: None


AnyVerifier = Verifier | RemoteVerifier | CombinedVerifier
