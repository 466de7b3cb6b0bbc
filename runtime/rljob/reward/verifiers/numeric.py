"""The answer's number equals the reference's."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rljob.api.verifiers import NumericOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.extraction import extract
from rljob.wire.reward import ScoreItem

_DIGITS = 64
"""Numbers with more characters are not compared: no reference has as many, and huge exponents take for ever."""
_EXPONENT = 400
_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?")


def _check_reference(reference: Any, options: NumericOptions) -> None:
    if isinstance(reference, bool) or not isinstance(reference, int | float | str) or _last(str(reference)) is None:
        raise ValueError(f"`reference` must be a number or end with one, not {reference!r:.60}")


def _judge(item: ScoreItem, options: NumericOptions) -> Judgement:
    wanted = _last(str(item.reference))
    if wanted is None:
        raise ValueError(f"reference {item.reference!r:.60} holds no number")
    place = extract(item.answer, options.place)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    found = _only(place) if options.pick == "only" else _last(place)
    if found is None:
        return Judgement(False, "no number in the answer")
    allowed = max(Fraction(options.tolerance), abs(wanted) * Fraction(options.relative_tolerance))
    return Judgement(True) if abs(found - wanted) <= allowed else Judgement(False, "another number")


def _only(text: str) -> Fraction | None:
    text = _even(text).strip().strip("$").strip()
    return _value(text) if len(text) <= _DIGITS and _NUMBER.fullmatch(text) else None


def _last(text: str) -> Fraction | None:
    found, text = None, _even(text)
    for match in _NUMBER.finditer(text):
        found = match
    if found is None:
        return None
    # In "3-2" the minus is an operator, not a sign.
    joined = found[0][0] in "+-" and found.start() > 0 and text[found.start() - 1].isalnum()
    return _value(found[0][1:] if joined else found[0])


def _even(text: str) -> str:
    """With one sign for minus: models write the typographic one too."""
    return text.replace("\N{MINUS SIGN}", "-")


def _value(text: str) -> Fraction | None:
    if len(text) > _DIGITS:
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    try:
        decimal = Decimal(numerator)
        if abs(decimal.adjusted()) > _EXPONENT:
            return None
        return Fraction(decimal) / int(denominator or 1)
    except (InvalidOperation, ZeroDivisionError):
        return None


VERIFIER = Verifier("numeric", NumericOptions, _judge, _check_reference)
