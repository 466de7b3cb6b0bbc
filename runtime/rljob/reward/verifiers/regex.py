"""A regular expression matches. Some expressions take for ever on some texts, which is why each match runs in a process of its own."""

from collections.abc import Hashable
from typing import Any

from rljob.api.verifiers import RegexOptions, compiled
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.extraction import extract
from rljob.wire.reward import ScoreItem

_REMEMBERED = 4096
"""Characters of a text whose judgement is kept."""


def _check_reference(reference: Any, options: RegexOptions) -> None:
    if options.pattern is None:
        if not isinstance(reference, str) or not reference:
            raise ValueError(f"`reference` must be a regular expression, not {reference!r:.60}; or set the option `pattern`")
        compiled(reference)


def _pattern(item: ScoreItem, options: RegexOptions) -> str:
    return str(item.reference) if options.pattern is None else options.pattern


def _quick(item: ScoreItem, options: RegexOptions) -> Judgement | None:
    return Judgement(False, "no \\boxed{} in the answer") if extract(item.answer, options.place) is None else None


def _same(item: ScoreItem, options: RegexOptions) -> Hashable:
    place = extract(item.answer, options.place) or ""
    return (_pattern(item, options), options, place) if len(place) <= _REMEMBERED else None


def _judge(item: ScoreItem, options: RegexOptions) -> Judgement:
    place = extract(item.answer, options.place) or ""
    expression = compiled(_pattern(item, options), options.ignore_case)
    found = expression.fullmatch(place) if options.match == "full" else expression.search(place)
    return Judgement(True) if found else Judgement(False, "does not match")


def _warm(item: ScoreItem, options: RegexOptions) -> None:
    compiled(_pattern(item, options), options.ignore_case)


def _probe(item: ScoreItem) -> str:
    """Nothing that surely matches is known; if the empty text can be judged, then it was the answer that could not."""
    return ""


VERIFIER = Verifier(
    "regex",
    RegexOptions,
    _judge,
    _check_reference,
    killable=True,
    warm=_warm,
    probe=_probe,
    quick=_quick,
    same=_same,
    sees_thoughts=True,
)
