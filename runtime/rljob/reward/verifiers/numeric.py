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
    r"""
    (?=[-+.\d])(?P<sign>[-+])?
    (?:(?P<whole>(?<!\d)(?<!\d[,.])[1-9]\d{0,2}(?:[ ,]\d{3}){1,15}|\d++)(?P<plus>[ \N{INVISIBLE PLUS}])(?=\d+/\d))?
    (?:
        (?<!\d)(?<!\d[,.])
        (?:
            (?P<commas>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)
            |(?P<dots>[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,}))
            |(?P<spaces>[1-9]\d{0,2}(?P<space>[ '’])\d{3}(?:(?P=space)\d{3})*(?:[.,]\d+)?)
            |(?P<comma>\d++,\d++)
        )
        (?![,.]?\d)
        |(?P<none>\d++(?:\.\d++){2,})
        |(?P<point>\d+(?:\.\d+)?|\.\d+)
    )
    (?P<exponent>[eE][-+]?\d+)?
    (?:/(?P<denominator>[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)|\d+))?
    (?P<power>\^(?:\{[^{}]{0,30}\}|[-+]?\w*))?
    """,
    re.VERBOSE,
)
"""One number, as long as it may be: what is read of part of it would be another one. Three digits behind each comma, or behind each of
several dots or dots before a comma, or each space, are groups; any other comma between two numbers alone is a decimal one. So `1.234` has a
decimal point, and `1,234` has none. `1.2.3` and `10^6` are one, too, though not one that is read here."""
_SPELLINGS = (
    (re.compile("[\N{MINUS SIGN}\N{EN DASH}]"), "-"),
    (re.compile(r"(?<=\d)(?:\{,\}(?=\d)|,\\[,! ](?=\d{3}))"), ","),
    (re.compile("(?<=\\d)(?:\\\\[,! ]|[\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}\N{FIGURE SPACE}])(?=\\d{3})"), ""),
    (re.compile("(?<=\\d)[\N{NO-BREAK SPACE}~](?=\\d)"), " "),
    (re.compile(r"-\\?\$(?=[\d.])"), "-"),
    (re.compile(r"(?<=[=(])[ \t]?-[ \t](?=[\d.])|\A-\s(?=[\d.,/]++\W*+\Z)"), "-"),
    (re.compile(r"(?<=\d)(?=\\[dtc]?frac)"), "\N{INVISIBLE PLUS}"),
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
    # `2,5` may be two numbers; whoever writes a reference can say which.
    return None if found[0]["comma"] else _value(found[0])


def _judge(item: ScoreItem, options: NumericOptions) -> Judgement:
    wanted = _wanted(str(item.reference))
    if wanted is None:
        raise ValueError(f"reference {item.reference!r:.60} is no number and ends with none")
    place = extract(item.answer, options.place)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    found = _only(place) if options.pick == "only" else _last(place)
    if found is None:
        return Judgement(False, "no number that can be read in the answer")
    allowed = max(Fraction(options.tolerance), abs(wanted) * Fraction(options.relative_tolerance))
    return Judgement(True) if abs(found - wanted) <= allowed else Judgement(False, "another number")


def _only(text: str) -> Fraction | None:
    text = _even(text).strip().strip("$").strip()
    found = _NUMBER.fullmatch(text) if len(text) <= _DIGITS else None
    return _value(found) if found else None


def _last(text: str) -> Fraction | None:
    text = _even(text)
    found = deque(_NUMBER.finditer(text), maxlen=1)
    value = _value(found[0]) if found else None
    if value is None:
        return None
    # In "3-2" the minus is an operator, not a sign.
    joined = found[0]["sign"] and found[0].start() > 0 and text[found[0].start() - 1].isalnum()
    return -value if joined and found[0]["sign"] == "-" else value


def _even(text: str) -> str:
    """Numbers as Python writes them, where the text has them as LaTeX and print do."""
    text = text.strip()
    for spelling, read in _SPELLINGS:
        text = spelling.sub(read, text)
    return text


def _value(found: re.Match[str]) -> Fraction | None:
    digits, whole = _digits(found), found["whole"]
    if digits is None or len(found[0]) > _DIGITS or found["power"]:
        return None
    if found["plus"] == " " and len(digits) == 3:
        return None  # `1 234/5`: 1234/5, or 1 and 234/5?
    try:
        decimal = Decimal(digits + (found["exponent"] or ""))
        if abs(decimal.adjusted()) > _EXPONENT:
            return None
        part = Fraction(decimal) / int((found["denominator"] or "1").replace(",", ""))
    except (InvalidOperation, ZeroDivisionError):
        return None
    value = part + int(whole.replace(",", "").replace(" ", "")) if whole else part
    return -value if found["sign"] == "-" else value


def _digits(found: re.Match[str]) -> str | None:
    """The number before exponent and denominator as Python writes it; None if it is none."""
    if spaced := found["spaces"]:
        return spaced.replace(found["space"], "").replace(",", ".")
    if dotted := found["dots"]:
        return dotted.replace(".", "").replace(",", ".")
    if commas := found["commas"]:
        return commas.replace(",", "")
    return found["comma"].replace(",", ".") if found["comma"] else found["point"]


VERIFIER = Verifier("numeric", NumericOptions, _judge, _check_reference)
