"""Equality of short mathematical results, decided exactly and in bounded time, without any library.

Covers numbers, fractions, roots of rational numbers, pi, e, polynomials and their quotients, and tuples, intervals and sets of these. A
value is a quotient of polynomials over the rational numbers in letters, constants and roots of primes; those roots are independent over
the rational numbers, so two values are equal exactly if cross-multiplication cancels. (That pi and e are independent is not proven.)
What it cannot read, or finds ambiguous (`1/2x`, `2\\frac12`, `f(x)`, `x^10`), it leaves undecided: then math-verify judges.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Monomial = tuple[tuple[str, int], ...]
"""Sorted (generator, exponent); a generator is a letter, `pi`, `e`, or `#7` for the root of 7."""
Polynomial = dict[Monomial, Fraction]

_LONGEST = 300
"""Characters of a result that is read here."""
_DEEPEST = 40
_WORK = 4000
"""Products of small coefficients that one result may cost."""
_DIGITS = 10_000
"""A number with more digits is no result unless the reference is such a number too."""
_CLOSE, _RELATIVELY = 1e-5, 1e-9
"""math-verify rounds to six places: numbers as near to each other as this are left undecided."""
_CONSTANTS = {"pi": math.pi, "e": math.e}
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


class UnreadableError(Exception):
    """Not in the grammar, or ambiguous: somebody else has to judge."""


class ExcessiveError(Exception):
    """A number or a nesting beyond every result that anybody asks for."""


@dataclass(frozen=True)
class Value:
    """A quotient of polynomials; the denominator is not zero."""

    above: Polynomial
    below: Polynomial

    @property
    def letters(self) -> frozenset[str]:
        """Variables in it."""
        return frozenset(g for p in (self.above, self.below) for m in p for g, _ in m if g not in _CONSTANTS and g[0] != "#")

    def number(self) -> float | None:
        """About how much; None with variables in it, or beyond floating point."""
        try:
            return None if self.letters else _about(self.above) / _about(self.below)
        except (OverflowError, ZeroDivisionError):
            return None


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
    budget = _Budget()
    try:
        if not _sum(_product(wanted.above, found.below, budget), _scaled(_product(found.above, wanted.below, budget), Fraction(-1))):
            return True
    except UnreadableError:
        return None
    if wanted.letters or found.letters:
        return False if wanted.letters == found.letters else None
    a, b = wanted.number(), found.number()
    return None if a is None or b is None or abs(a - b) <= max(_CLOSE, _RELATIVELY * max(abs(a), abs(b))) else False


class _Budget:
    """Work that is left."""

    def __init__(self) -> None:
        self.left = _WORK

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise UnreadableError


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
        self._budget = _Budget()
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
            return Value({(("infinity", 1),): Fraction(1 if sign == "+" else -1)}, _ONE)
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
        total = _negated(total) if sign == "-" else total
        while self._next in ("+", "-"):
            sign = self._take()
            more = self._term()
            total = self._added(total, _negated(more) if sign == "-" else more)
        self._depth -= 1
        return total

    def _term(self) -> Value:
        total, divided = self._factor(), False
        while True:
            before = self._last
            if self._next == "*":
                self._take()
                total, divided = self._times(total, self._factor()), False
            elif self._next == "/":
                self._take()
                by = self._factor()
                total, divided = self._times(total, _quotient(by.below, by.above)), True
            elif self._starts_factor():
                if divided or self._is_no_product(before):
                    raise UnreadableError
                total = self._times(total, self._factor())
            else:
                return total

    def _is_no_product(self, before: str) -> bool:
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
            base = _factorial(base)
        if self._next != "^":
            return base
        self._take()
        self._last = "^"
        if self._next and self._next[0].isdigit() and len(self._next) > 1:
            if len(self._next) > 5:
                raise ExcessiveError
            raise UnreadableError  # in LaTeX x^10 is x^1 followed by 0
        raised = self._power(base, self._argument())
        if self._next in ("^", "!"):
            raise UnreadableError
        return raised

    def _atom(self) -> Value:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return _constant(Fraction(token))
        if token in ("(", "{"):
            inside = self._sum()
            self._take(")" if token == "(" else "}")
            return inside
        if token == "\\frac":
            above, below = self._argument(), self._argument()
            return self._times(above, _quotient(below.below, below.above))
        if token == "\\sqrt" and self._next != "[":
            return _root(self._argument())
        if token == "\\pi" or (token.isalpha() and token not in "iI"):
            return Value({((token.removeprefix("\\"), 1),): Fraction(1)}, _ONE)
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
            return _constant(Fraction(token[0]))
        if token == "\\pi" or (token.isalpha() and token not in "iI"):
            return Value({((token.removeprefix("\\"), 1),): Fraction(1)}, _ONE)
        raise UnreadableError

    def _added(self, a: Value, b: Value) -> Value:
        if a.below == b.below:
            return Value(_sum(a.above, b.above), a.below)
        above = _sum(_product(a.above, b.below, self._budget), _product(b.above, a.below, self._budget))
        return Value(above, _product(a.below, b.below, self._budget))

    def _times(self, a: Value, b: Value) -> Value:
        return Value(_product(a.above, b.above, self._budget), _product(a.below, b.below, self._budget))

    def _power(self, base: Value, exponent: Value) -> Value:
        power = _rational(exponent)
        if power is None or power.denominator != 1:
            raise UnreadableError
        times = abs(power.numerator)
        turned = _quotient(base.below, base.above) if power < 0 else base
        return Value(self._raised(turned.above, times), self._raised(turned.below, times))

    def _raised(self, base: Polynomial, times: int) -> Polynomial:
        if len(base) > 1:
            if times > 64:
                raise UnreadableError
            total = _ONE
            for _ in range(times):
                total = _product(total, base, self._budget)
            return total
        ((monomial, factor),) = base.items() if base else (((), Fraction(0)),)
        digits = max(len(str(factor.numerator)), len(str(factor.denominator)))
        if abs(factor) != 1 and digits * times > _DIGITS and factor:
            raise ExcessiveError
        if any(generator[0] == "#" for generator, _ in monomial) and times > 64:
            raise UnreadableError
        power = factor ** (times if abs(factor) != 1 else times % 2) if factor else Fraction(0 if times else 1)
        if any(generator[0] == "#" for generator, _ in monomial):
            total = {(): power}
            for _ in range(times):
                total = _product(total, {monomial: Fraction(1)}, self._budget)
            return total
        return {tuple((g, e * times) for g, e in monomial if times): power} if power else {}


_ONE: Polynomial = {(): Fraction(1)}


def _constant(number: Fraction) -> Value:
    return Value({(): number} if number else {}, _ONE)


def _quotient(above: Polynomial, below: Polynomial) -> Value:
    if not below:
        raise ZeroDivisionError
    return Value(above, below)


def _negated(value: Value) -> Value:
    return Value(_scaled(value.above, Fraction(-1)), value.below)


def _rational(value: Value) -> Fraction | None:
    """The number, if it is a plain one."""
    if set(value.above) <= {()} and set(value.below) == {()}:
        return value.above.get((), Fraction(0)) / value.below[()]
    return None


def _factorial(value: Value) -> Value:
    number = _rational(value)
    if number is None or number.denominator != 1 or number < 0:
        raise UnreadableError
    if number > 3000:
        raise ExcessiveError
    return _constant(Fraction(math.factorial(number.numerator)))


def _root(value: Value) -> Value:
    number = _rational(value)
    if number is None or number < 0 or number.numerator * number.denominator > 10**8:
        raise UnreadableError
    rest, outside, inside = number.numerator * number.denominator, 1, []
    if not rest:
        return _constant(Fraction(0))
    prime = 2
    while prime * prime <= rest:
        while rest % (prime * prime) == 0:
            rest, outside = rest // (prime * prime), outside * prime
        if rest % prime == 0:
            rest //= prime
            inside.append(prime)
        prime += 1
    monomial = tuple(sorted((f"#{p}", 1) for p in (*inside, rest) if p > 1))
    return Value({monomial: Fraction(outside, number.denominator)}, _ONE)


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    total = dict(a)
    for monomial, factor in b.items():
        total[monomial] = total.get(monomial, Fraction(0)) + factor
        if not total[monomial]:
            del total[monomial]
    return total


def _scaled(polynomial: Polynomial, factor: Fraction) -> Polynomial:
    return {monomial: f * factor for monomial, f in polynomial.items()}


def _product(a: Polynomial, b: Polynomial, budget: _Budget) -> Polynomial:
    if a == _ONE:
        return b
    if b == _ONE:
        return a
    budget.spend(len(a) * len(b) * (1 + (_bits(a) + _bits(b)) // 256))
    total: Polynomial = {}
    for m, f in a.items():
        for n, g in b.items():
            monomial, factor = _joined(m, n)
            total[monomial] = total.get(monomial, Fraction(0)) + f * g * factor
    return {monomial: factor for monomial, factor in total.items() if factor}


def _bits(polynomial: Polynomial) -> int:
    """Of the largest coefficient."""
    return max((f.numerator.bit_length() + f.denominator.bit_length() for f in polynomial.values()), default=0)


def _joined(m: Monomial, n: Monomial) -> tuple[Monomial, int]:
    """Product of two monomials: the square of the root of 7 is 7."""
    if not m or not n:
        return m or n, 1
    exponents, factor = dict(m), 1
    for generator, exponent in n:
        exponents[generator] = exponents.get(generator, 0) + exponent
        if generator[0] == "#" and exponents[generator] == 2:
            factor *= int(generator[1:])
            del exponents[generator]
    return tuple(sorted(exponents.items())), factor


def _about(polynomial: Polynomial) -> float:
    return math.fsum(float(factor) * math.prod(_known(g) ** e for g, e in monomial) for monomial, factor in polynomial.items())


def _known(generator: str) -> float:
    return math.sqrt(int(generator[1:])) if generator[0] == "#" else _CONSTANTS[generator]
