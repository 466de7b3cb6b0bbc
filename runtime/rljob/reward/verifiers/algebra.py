"""Equality of short mathematical results, decided exactly and in bounded time, without any library.

Covers numbers, fractions, roots of rational numbers, pi, e, polynomials and their quotients, and tuples, intervals and sets of these. A
value is a quotient of polynomials over the rational numbers in letters, constants and roots of primes; those roots are independent over
the rational numbers, so two values are equal exactly if cross-multiplication cancels. (That pi and e are independent is not proven.)
What it cannot read, or finds ambiguous (`1/2x`, `2\\frac12`, `f(x)`, `x^10`), it leaves undecided: then math-verify judges.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rljob.reward.verifiers.polynomial import (
    Arithmetic,
    ExcessiveError,
    UnreadableError,
    Value,
    constant,
    factorial,
    generator,
    negated,
    root,
)

_LONGEST = 300
"""Characters of a result that is read here."""
_DEEPEST = 40
_CLOSE, _RELATIVELY = 1e-5, 1e-9
"""math-verify rounds to six places: numbers as near to each other as this are left undecided."""
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\[{}]|[A-Za-z]|[-+*/^(){}\[\],!]")
_SKIPPED = re.compile(r"[\s$~]|\\[ ,;:!]|\\(?:left|right|displaystyle)(?![A-Za-z])")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SCIENTIFIC = re.compile(r"\d[eE][-+]?\d")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_EVEN = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "π": "\\pi "})
_SPELLINGS = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    "\\cdot": "*",
    "\\times": "*",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
}
_BRACKETS = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",)}


@dataclass(frozen=True)
class Result:
    """One value, or several in brackets."""

    values: tuple[Value, ...]
    brackets: tuple[str, str] | None = None


def same(reference: str, answer: str) -> bool | None:
    """Whether two results are equal; None: undecided. Never raises, never takes long."""
    wanted = read(reference)
    if wanted is None:
        return None
    found = read(answer)
    if found is None or isinstance(wanted, ExcessiveError):
        return None
    return False if isinstance(found, ExcessiveError) else _equal(wanted, found)


@lru_cache(maxsize=8192)
def read(text: str) -> Result | ExcessiveError | None:
    """A result; None if it is not in the grammar."""
    try:
        return _Reader(_tokens(text)).result()
    except (UnreadableError, ZeroDivisionError):
        return None
    except ExcessiveError as error:
        return error


def _equal(wanted: Result, found: Result) -> bool | None:
    if wanted.brackets != found.brackets or len(wanted.values) != len(found.values):
        return None
    if wanted.brackets == ("\\{", "\\}"):
        return _equal_sets(wanted.values, found.values)
    each = [_equal_values(w, f) for w, f in zip(wanted.values, found.values, strict=True)]
    return False if False in each else None if None in each else True


def _equal_sets(wanted: tuple[Value, ...], found: tuple[Value, ...]) -> bool | None:
    table = [[_equal_values(w, f) for f in found] for w in wanted]
    rows = [*table, *map(list, zip(*table, strict=True))]
    if all(row.count(True) == 1 for row in rows):
        return True
    return False if any(all(one is False for one in row) for row in rows) else None


def _equal_values(wanted: Value, found: Value) -> bool | None:
    try:
        if Arithmetic().equal(wanted, found):
            return True
    except UnreadableError:
        return None
    if wanted.letters or found.letters:
        return False if wanted.letters == found.letters else None
    a, b = wanted.number(), found.number()
    return None if a is None or b is None or abs(a - b) <= max(_CLOSE, _RELATIVELY * max(abs(a), abs(b))) else False


def _tokens(text: str) -> list[str]:
    text = text.translate(_EVEN).strip().strip("$").strip().removesuffix(".")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if len(text) > _LONGEST:
        if max(text.count(sign) for sign in "{([") > _DEEPEST and _depth(text) > _DEEPEST:
            raise ExcessiveError
        raise UnreadableError
    if _SCIENTIFIC.search(text) or _WORD.search(text):
        raise UnreadableError
    found, at = [], 0
    while at < len(text):
        if skipped := _SKIPPED.match(text, at):
            at = skipped.end()
        elif token := _TOKEN.match(text, at):
            found.append(_SPELLINGS.get(token[0], token[0]))
            at = token.end()
        else:
            raise UnreadableError
    return found


def _depth(text: str) -> int:
    depth = deepest = 0
    for sign in text:
        depth += (sign in "{([") - (sign in "})]")
        deepest = max(deepest, depth)
    return deepest


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]
        self._on = Arithmetic()
        self._depth = 0
        self._last = ""
        """First token of the last factor."""

    def result(self) -> Result:
        several = "," in self._tokens or self._next == "\\{"
        closing = _BRACKETS.get(self._next, ()) if several else ()
        if not closing:
            found = Result((self._sum(),))
        else:
            opened, values = self._take(), [self._component()]
            while self._next == ",":
                self._take()
                values.append(self._component())
            if self._next not in closing or len(values) > 8:
                raise UnreadableError
            found = Result(tuple(values), (opened, self._take()))
        if self._tokens:
            raise UnreadableError
        return found

    def _component(self) -> Value:
        """One value between commas; only here infinity is one."""
        sign = self._take() if self._next in ("+", "-") and self._after == "\\infty" else "+"
        if self._next == "\\infty":
            self._take()
            return negated(generator("infinity")) if sign == "-" else generator("infinity")
        return self._sum()

    @property
    def _next(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    @property
    def _after(self) -> str:
        return self._tokens[-2] if len(self._tokens) > 1 else ""

    def _take(self, wanted: str = "") -> str:
        if not self._tokens or (wanted and self._next != wanted):
            raise UnreadableError
        return self._tokens.pop()

    def _sum(self) -> Value:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ExcessiveError
        sign = self._take() if self._next in ("+", "-") else "+"
        total = self._term()
        total = negated(total) if sign == "-" else total
        while self._next in ("+", "-"):
            sign = self._take()
            more = self._term()
            total = self._on.added(total, negated(more) if sign == "-" else more)
        self._depth -= 1
        return total

    def _term(self) -> Value:
        total, divided = self._factor(), False
        while True:
            before = self._last
            if self._next == "*":
                self._take()
                total, divided = self._on.times(total, self._factor()), False
            elif self._next == "/":
                self._take()
                total, divided = self._on.divided(total, self._factor()), True
            elif self._starts_factor():
                if divided or self._is_noproduct(before):
                    raise UnreadableError
                total = self._on.times(total, self._factor())
            else:
                return total

    def _is_noproduct(self, before: str) -> bool:
        """`12 34` and `2 1/2` are no products of neighbours, `f(x)` may be none."""
        number = self._next[0].isdigit() or self._next[0] == "."
        return number or (before[0].isdigit() and self._next == "\\frac") or (before.isalpha() and self._next == "(")

    def _starts_factor(self) -> bool:
        token = self._next
        return bool(token) and (token[0].isalnum() or token[0] == "." or token in ("(", "{", "\\frac", "\\sqrt", "\\pi"))

    def _factor(self) -> Value:
        self._last = self._next
        base = self._atom()
        while self._next == "!":
            self._take()
            base = factorial(base)
        if self._next != "^":
            return base
        self._take()
        self._last = "^"
        if self._next and self._next[0].isdigit() and len(self._next) > 1:
            if len(self._next) > 5:
                raise ExcessiveError
            raise UnreadableError  # in LaTeX x^10 is x^1 followed by 0
        raised = self._on.power(base, self._argument())
        if self._next in ("^", "!"):
            raise UnreadableError
        return raised

    def _atom(self) -> Value:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return constant(Fraction(token))
        if token in ("(", "{"):
            inside = self._sum()
            self._take(")" if token == "(" else "}")
            return inside
        if token == "\\frac":
            return self._on.divided(self._argument(), self._argument())
        if token == "\\sqrt" and self._next != "[":
            return root(self._argument())
        if token == "\\pi" or (token.isalpha() and token not in "iI"):
            return generator(token.removeprefix("\\"))
        raise UnreadableError

    def _argument(self) -> Value:
        r"""Of \frac, \sqrt and ^: a group, a letter, or one digit (`\frac12` is a half)."""
        token = self._take()
        if token == "{":
            inside = self._sum()
            self._take("}")
            return inside
        if token.isdigit():
            if len(token) > 1:
                self._tokens.append(token[1:])
            return constant(Fraction(token[0]))
        if token == "\\pi" or (token.isalpha() and token not in "iI"):
            return generator(token.removeprefix("\\"))
        raise UnreadableError
