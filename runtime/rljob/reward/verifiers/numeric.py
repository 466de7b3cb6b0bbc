"""The answer's number equals the reference's."""

import re
from collections import deque
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rljob.api.verifiers import NumericOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.extraction import extract, last_boxed
from rljob.wire.reward import ScoreItem

_DIGITS = 64
"""Numbers with more characters are not compared: no reference has as many, and huge exponents take for ever."""
_EXPONENT = 400
_NUMBER = re.compile(
    r"[-+]?(?:\d++ (?=\d+/\d))?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?(?:\^(?:\{[^{}]{0,30}\}|[-+]?\w*))?"
)
"""`2 1/2` is one number, and so is `10^6`, though not one that is read here."""
_SPELLINGS = (
    (re.compile("[\N{MINUS SIGN}\N{EN DASH}]"), "-"),
    (re.compile(r"(?<=\d)(?:\{,\}|,?\\[,! ])(?=\d{3})"), ""),
    (re.compile(r"-\\?\$(?=[\d.])"), "-"),
    (re.compile(r"(?<=[=(])[ \t]?-[ \t](?=[\d.])|\A-\s(?=[\d.,/]++\W*+\Z)"), "-"),
    (re.compile(r"(?<=\d)(?=\\[dtc]?frac)"), " "),
    (re.compile(r"\\[dtc]?frac(?:\{([-+]?\d{1,30})\}\{(\d{1,30})\}|(\d)(\d))"), r"\1\3/\2\4"),
    (re.compile(r"(?<=\d)\s?(?:\\times|\\cdot|×|\*)\s?10\^\{?([-+]?\d{1,4})\}?"), r"e\1"),
    (re.compile(r"\^\{?\\circ\}?"), "°"),
    (re.compile(r"(?<=[A-Za-z})])\^(?:\{[^{}]{0,30}\}|-?\d+)"), ""),
)
"""What one number looks like in LaTeX and print, and what is read; at the end the powers of units, as in m^2."""
_WITHIN = re.compile(r"[\w^{\\]$|\d[:/. ]$|\d ?[-+,] ?$")
"""Before what is the end of a longer number, a date, a time, a sum, a list or a name."""


def _check_reference(reference: Any, options: NumericOptions) -> None:
    if isinstance(reference, bool) or not isinstance(reference, int | float | str) or _wanted(str(reference)) is None:
        raise ValueError(
            f"`reference` must be a number or end with one, not {reference!r:.60}; write the number alone, such as 1000, 0.75 or 3/4"
        )


def _wanted(reference: str) -> Fraction | None:
    """The number that a reference is or ends with, such as GSM8K's `… #### 42`."""
    text = _even(last_boxed(reference) or reference).rstrip(".$%°\\ \t\r\n")
    found = deque(_NUMBER.finditer(text), maxlen=1)
    if not found or found[0].end() != len(text) or _WITHIN.search(text[: found[0].start()]):
        return None
    return _value(found[0][0])


def _judge(item: ScoreItem, options: NumericOptions) -> Judgement:
    wanted = _wanted(str(item.reference))
    if wanted is None:
        raise ValueError(f"reference {item.reference!r:.60} is no number and ends with none")
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
    """Numbers as Python writes them, where the text has them as LaTeX and print do."""
    text = text.strip()
    for spelling, read in _SPELLINGS:
        text = spelling.sub(read, text)
    return text


def _value(text: str) -> Fraction | None:
    if len(text) > _DIGITS:
        return None
    whole, _, text = text.replace(",", "").rpartition(" ")
    numerator, _, denominator = text.partition("/")
    try:
        decimal = Decimal(numerator)
        if abs(decimal.adjusted()) > _EXPONENT:
            return None
        part = Fraction(decimal) / int(denominator or 1)
        return int(whole) + (-part if whole.startswith("-") else part) if whole else part
    except (InvalidOperation, ZeroDivisionError):
        return None


VERIFIER = Verifier("numeric", NumericOptions, _judge, _check_reference)
