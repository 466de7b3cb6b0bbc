"""Mathematical equality: `1/2`, `0.5` and `\\frac{1}{2}` are the same answer.

What can be decided exactly and in bounded time is (algebra.py); the rest is math-verify's, one process for each judgement.
"""

import re
from collections.abc import Hashable
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any

from rljob.api.verifiers import MathOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers import algebra
from rljob.reward.verifiers.extraction import extract, last_boxed
from rljob.wire.reward import ScoreItem

_LONGEST = 2000
"""Characters of a result that are looked at; a longer one is no result."""
_BARE = re.compile(r"\s*-?\d+(?:\.\d+|/\d+)?\s*")
"""Without a box, math-verify searches the answer; only of a bare number it is clear what it finds."""


def _check_reference(reference: Any, options: MathOptions) -> None:
    if isinstance(reference, bool) or not isinstance(reference, int | float | str) or not _text(reference).strip():
        raise ValueError(f"`reference` must be a number or an expression, not {reference!r:.60}")


def _text(reference: Any) -> str:
    """A reference as people write it: JSON's and Parquet's numbers without Python's exponents, which no answer has."""
    return format(Decimal(repr(reference)), "f") if isinstance(reference, float) and isfinite(reference) else str(reference)


@lru_cache(maxsize=4096)
def _gold(reference: str) -> tuple[Any, ...]:
    from math_verify import parse

    # Without time limits of its own: they are alarms, and the process around is limited from outside.
    found = parse(reference if "\\boxed" in reference else f"\\boxed{{{reference}}}", parsing_timeout=None)
    if not found:
        raise ValueError(f"reference {reference!r:.60} cannot be read as mathematics")
    return tuple(found)


def _place(item: ScoreItem, options: MathOptions) -> tuple[str | None, bool]:
    """Where the result stands, and whether that is a box."""
    return extract(item.answer, options.place), options.place != "whole" and "\\boxed{" in item.answer


def _quick(item: ScoreItem, options: MathOptions) -> Judgement | None:
    place, boxed = _place(item, options)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    if len(place) > _LONGEST:
        return Judgement(False, "the result is too long")
    if not boxed and not _BARE.fullmatch(place):
        return None
    reference = _text(item.reference).strip()
    reference = last_boxed(reference) or reference
    equal = True if place == reference else algebra.same(reference, place)
    return None if equal is None else Judgement(equal, "" if equal else "another result")


def _same(item: ScoreItem, options: MathOptions) -> Hashable:
    return (_text(item.reference), *_place(item, options))


def _judge(item: ScoreItem, options: MathOptions) -> Judgement:
    from math_verify import parse, verify

    place, boxed = _place(item, options)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    found = parse(f"\\boxed{{{place}}}" if boxed else place, parsing_timeout=None)
    if not found:
        return Judgement(False, "no mathematics in the answer")
    right = verify(list(_gold(_text(item.reference))), found, timeout_seconds=None)
    return Judgement(True) if right else Judgement(False, "another result")


def _warm(item: ScoreItem, options: MathOptions) -> None:
    _exercise()
    _gold(_text(item.reference))


_EXERCISES = (
    ("x^2+1", "17"),
    ("y=3x+2", "y=3x+3"),
    ("x^2-2x+1", "(x-1)^2"),
    ("\\frac{\\sqrt{3}}{2}", "0.87"),
    ("(1,2)\\cup(3,4)", "(1,2)\\cup[3,4)"),
    ("x \\ge 3", "x>3"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
    ("\\sin(x)^2+\\cos(x)^2", "1"),
    ("\\log_2 8", "3"),
    ("50\\%", "0.5"),
    ("\\text{even}", "\\text{odd}"),
    ("x=7 \\text{ or } x=8", "7,8"),
)


@lru_cache(maxsize=1)
def _exercise() -> None:
    """Fill the libraries' caches with texts of our own: what a fork finds there it need not make again, and that is most of its time."""
    from math_verify import parse, verify

    for wanted, found in _EXERCISES:
        sides = [parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (wanted, found)]
        verify(sides[0], sides[1], timeout_seconds=None)


def _probe(item: ScoreItem) -> str:
    reference = _text(item.reference)
    return reference if "\\boxed" in reference else f"\\boxed{{{reference}}}"


VERIFIER = Verifier("math", MathOptions, _judge, _check_reference, killable=True, warm=_warm, probe=_probe, quick=_quick, same=_same)
