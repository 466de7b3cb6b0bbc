"""What a verifier is: typed options, a check of the reference, and a judgement."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from rljob.wire.reward import ScoreItem


class Options(BaseModel):
    """Options of one verifier. Closed: a misspelt option is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Judgement:
    """What a verifier says of an answer."""

    right: bool
    reason: str = ""
    """One line: why it is wrong."""


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
    """An answer that must be accepted; None if there is none to be had."""
