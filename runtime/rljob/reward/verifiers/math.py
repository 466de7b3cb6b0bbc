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
from rljob.reward.verifiers.extraction import extract, has_box, last_boxed
from rljob.wire.reward import ScoreItem

_LONGEST = 2000
"""Characters of a result that are looked at. A longer box holds none; without a box, it stands at the end of the answer."""
_SHORT = 200
"""Characters of an answer that may be nothing but a result; prose is none."""
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
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
    place, boxed = extract(item.answer, options.place), options.place != "whole" and has_box(item.answer)
    return place if place is None or boxed else _end(place), boxed


def _end(text: str) -> str:
    """The last characters of a long text, from the beginning of a paragraph, line or word on: half a formula would be another one."""
    if len(text) <= _LONGEST:
        return text
    tail = text[-_LONGEST:]
    begins = (tail.find(sign, 0, _LONGEST // 2) for sign in ("\n\n", "\n", " "))
    return next((tail[at:].strip() for at in begins if at >= 0), text)


def _quick(item: ScoreItem, options: MathOptions) -> Judgement | None:
    place, boxed = _place(item, options)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    if len(place) > _LONGEST:
        return Judgement(False, "the result is too long")
    reference = _text(item.reference).strip()
    reference = last_boxed(reference) or reference
    equal = True if place == reference else algebra.same(reference, place)
    if not equal and not boxed and not _BARE.fullmatch(place):
        return None
    return None if equal is None else Judgement(equal, "" if equal else "another result")


def _same(item: ScoreItem, options: MathOptions) -> Hashable:
    return (_text(item.reference), *_place(item, options))


def _judge(item: ScoreItem, options: MathOptions) -> Judgement:
    from math_verify import parse, verify

    place, boxed = _place(item, options)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    in_box = f"\\boxed{{{place}}}"
    found = parse(in_box if boxed else place, parsing_timeout=None)
    # Without a box, math-verify searches for numbers and formulas between dollars; a short answer without any may itself be the result.
    if not found and not boxed and len(place) <= _SHORT and len(_WORD.findall(place)) < 2:
        found = parse(in_box, parsing_timeout=None)
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
