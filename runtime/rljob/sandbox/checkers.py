"""Is an output what was expected? Pure, and outside the sandbox: a submission sees neither this code nor the expected output.

Whatever an output holds, nothing here raises or evaluates it. Numbers are read by a pattern of their own, because Python's `float` also
takes `1_0` and turns `1e999` into an infinity that is within any tolerance of another.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from rljob.wire.sandbox import BLANK, Checker

_WORDS = re.compile(f"[^{BLANK}]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
"""Gives back no digit that it has taken: a program may print a million of them and a letter, and the whole service waits for the search."""
_SHOWN = 60
"""Characters of an output that a reason quotes."""


def compare_text(checker: Checker, output: str, expected: str) -> str:
    """Why a standard output is not the expected one; empty if it is. `program` is not decided here."""
    if checker.kind == "exact":
        return _first_difference(_lines(output), _lines(expected), "line", str.__eq__)
    same = _same_number(checker) if checker.kind == "float" else str.__eq__
    return _first_difference(_WORDS.findall(output), _WORDS.findall(expected), "word", same)


def compare_value(checker: Checker, value: Any, expected: Any) -> str:
    """Why a returned JSON value is not the expected one; empty if it is.

    `exact` tells 1 from 1.0, `tokens` does not, `float` takes numbers within the tolerance. A truth value is never a number.
    """
    return "" if _same_value(checker, value, expected) else f"returned {_short(repr(value))}"


def _lines(text: str) -> list[str]:
    return [line.rstrip(BLANK) for line in text.rstrip(BLANK).split("\n")]


def _first_difference(found: list[str], wanted: list[str], unit: str, same: Callable[[str, str], bool]) -> str:
    for index, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if not same(one, other):
            return f"{unit} {index + 1} is {_short(one)!r}"
    if len(found) != len(wanted):
        return f"has {len(found)} {unit}s instead of {len(wanted)}"
    return ""


def _same_number(checker: Checker) -> Callable[[str, str], bool]:
    def same(found: str, wanted: str) -> bool:
        if found == wanted:
            return True
        if _NUMBER.fullmatch(found) is None or _NUMBER.fullmatch(wanted) is None:
            return False
        return _close(checker, float(found), float(wanted))

    return same


def _close(checker: Checker, found: float, wanted: float) -> bool:
    """Whole numbers have the tolerance too, as with testlib's `rcmp` and Kattis: a program may print 3 for 3.0000001."""
    if not (math.isfinite(found) and math.isfinite(wanted)):
        return False
    return abs(found - wanted) <= max(checker.absolute, checker.relative * abs(wanted))


def _same_value(checker: Checker, found: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(found, bool) or wanted is None or found is None:
        return found is wanted
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        return _same_numeric_value(checker, found, wanted)
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(_same_value(checker, a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same_value(checker, found[key], wanted[key]) for key in wanted)
    return bool(found == wanted)


def _same_numeric_value(checker: Checker, found: float, wanted: float) -> bool:
    if checker.kind == "exact" and type(found) is not type(wanted):
        return False
    if found == wanted:
        return True
    if checker.kind != "float":
        return False
    try:
        return _close(checker, float(found), float(wanted))
    except OverflowError:  # an integer beyond every float
        return False


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
