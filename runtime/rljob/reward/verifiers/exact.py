"""The whole answer equals the reference."""

from typing import Any

from rljob.api.verifiers import ExactOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.words import composed
from rljob.wire.reward import ScoreItem


def _check_reference(reference: Any, options: ExactOptions) -> None:
    texts = reference if isinstance(reference, list) and reference else [reference]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`reference` must be a text or a list of texts, not {reference!r:.60}")


def _judge(item: ScoreItem, options: ExactOptions) -> Judgement:
    texts = item.reference if isinstance(item.reference, list) else [item.reference]
    if _even(item.answer, options) in {_even(text, options) for text in texts}:
        return Judgement(True)
    return Judgement(False, "differs from the reference")


def _even(text: str, options: ExactOptions) -> str:
    """Surrounding white space and how accents are encoded never count: they cannot be seen."""
    text = composed(text.strip())
    return text.casefold() if options.ignore_case else text


VERIFIER = Verifier("exact", ExactOptions, _judge, _check_reference)
