"""Quotients of polynomials over the rational numbers, for `algebra`: exact, and within a budget of work."""

import math
from dataclasses import dataclass
from fractions import Fraction

Monomial = tuple[tuple[str, int], ...]
"""Sorted (generator, exponent); a generator is a letter, `pi`, `e`, or `#7` for the root of 7."""
Polynomial = dict[Monomial, Fraction]

ONE: Polynomial = {(): Fraction(1)}
_WORK = 2000
"""Products of small coefficients that one result may cost."""
_BITS = 33_000
"""A number of more, some ten thousand digits, is no result unless the reference is such a number too."""
_LARGEST_POWER = 64
"""Of a sum."""
CONSTANTS = {"pi": math.pi, "e": math.e}


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
        return frozenset(g for p in (self.above, self.below) for m in p for g, _ in m if g not in CONSTANTS and g[0] != "#")

    def number(self) -> float | None:
        """About how much; None with variables in it, or beyond floating point."""
        try:
            return None if self.letters else _about(self.above) / _about(self.below)
        except (OverflowError, ZeroDivisionError):
            return None


class Arithmetic:
    """Operations on values, within a budget of work: UnreadableError when that is spent."""

    def __init__(self) -> None:
        self._left = _WORK

    def added(self, a: Value, b: Value) -> Value:
        """a + b"""
        if a.below == b.below:
            return Value(_sum(a.above, b.above), a.below)
        above = _sum(self._product(a.above, b.below), self._product(b.above, a.below))
        return Value(above, self._product(a.below, b.below))

    def times(self, a: Value, b: Value) -> Value:
        """a · b"""
        return Value(self._product(a.above, b.above), self._product(a.below, b.below))

    def divided(self, a: Value, b: Value) -> Value:
        """a / b, or ZeroDivisionError."""
        return self.times(a, _quotient(b.below, b.above))

    def power(self, base: Value, exponent: Value) -> Value:
        """Whole exponents only."""
        power = rational(exponent)
        if power is None or power.denominator != 1:
            raise UnreadableError
        turned = _quotient(base.below, base.above) if power < 0 else base
        return Value(self._raised(turned.above, abs(power.numerator)), self._raised(turned.below, abs(power.numerator)))

    def equal(self, a: Value, b: Value) -> bool:
        """Whether cross-multiplication cancels."""
        return not _sum(self._product(a.above, b.below), _negative(self._product(b.above, a.below)))

    def _raised(self, base: Polynomial, times: int) -> Polynomial:
        if len(base) == 1:
            ((monomial, factor),) = base.items()
            if abs(factor) != 1 and _bits(base) * times > _BITS:
                raise ExcessiveError
            if any(name[0] == "#" for name, _ in monomial) and times > 1:
                squared = self._raised(self._product(base, base), times // 2)  # without roots
                return self._product(squared, base) if times % 2 else squared
            power = factor ** (times if abs(factor) != 1 else times % 2)
            return {tuple((g, e * times) for g, e in monomial if times): power}
        if times > _LARGEST_POWER:
            raise UnreadableError
        total = ONE
        for _ in range(times):
            total = self._product(total, base)
        return total

    def _product(self, a: Polynomial, b: Polynomial) -> Polynomial:
        if a == ONE:
            return b
        if b == ONE:
            return a
        self._left -= len(a) * len(b) * (1 + (_bits(a) + _bits(b)) // 256)
        if self._left < 0:
            raise UnreadableError
        total: Polynomial = {}
        for m, f in a.items():
            for n, g in b.items():
                monomial, factor = _joined(m, n)
                total[monomial] = total.get(monomial, Fraction(0)) + f * g * factor
        return {monomial: factor for monomial, factor in total.items() if factor}


def constant(number: Fraction) -> Value:
    """A number."""
    return Value({(): number} if number else {}, ONE)


def generator(name: str) -> Value:
    """A letter or a constant."""
    return Value({((name, 1),): Fraction(1)}, ONE)


def negated(value: Value) -> Value:
    """-value"""
    return Value(_negative(value.above), value.below)


def rational(value: Value) -> Fraction | None:
    """The number, if it is a plain one."""
    if set(value.above) <= {()} and set(value.below) == {()}:
        return value.above.get((), Fraction(0)) / value.below[()]
    return None


def factorial(value: Value) -> Value:
    """Of a whole number."""
    number = rational(value)
    if number is None or number.denominator != 1 or number < 0:
        raise UnreadableError
    if number > 3000:
        raise ExcessiveError
    return constant(Fraction(math.factorial(number.numerator)))


def root(value: Value) -> Value:
    """Square root of a rational number: primes that occur oddly stay below it."""
    number = rational(value)
    if number is None or number < 0 or number.numerator * number.denominator > 10**8:
        raise UnreadableError
    rest, outside, inside = number.numerator * number.denominator, 1, []
    if not rest:
        return constant(Fraction(0))
    prime = 2
    while prime * prime <= rest:
        while rest % (prime * prime) == 0:
            rest, outside = rest // (prime * prime), outside * prime
        if rest % prime == 0:
            rest //= prime
            inside.append(prime)
        prime += 1
    monomial = tuple(sorted((f"#{p}", 1) for p in (*inside, rest) if p > 1))
    return Value({monomial: Fraction(outside, number.denominator)}, ONE)


def _quotient(above: Polynomial, below: Polynomial) -> Value:
    if not below:
        raise ZeroDivisionError
    return Value(above, below)


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    total = dict(a)
    for monomial, factor in b.items():
        total[monomial] = total.get(monomial, Fraction(0)) + factor
        if not total[monomial]:
            del total[monomial]
    return total


def _negative(polynomial: Polynomial) -> Polynomial:
    return {monomial: -factor for monomial, factor in polynomial.items()}


def _bits(polynomial: Polynomial) -> int:
    """Of the largest coefficient."""
    return max((f.numerator.bit_length() + f.denominator.bit_length() for f in polynomial.values()), default=0)


def _joined(m: Monomial, n: Monomial) -> tuple[Monomial, int]:
    """Product of two monomials: the square of the root of 7 is 7."""
    if not m or not n:
        return m or n, 1
    exponents, factor = dict(m), 1
    for name, exponent in n:
        exponents[name] = exponents.get(name, 0) + exponent
        if name[0] == "#" and exponents[name] == 2:
            factor *= int(name[1:])
            del exponents[name]
    return tuple(sorted(exponents.items())), factor


def _about(polynomial: Polynomial) -> float:
    return math.fsum(float(factor) * math.prod(_known(g) ** e for g, e in monomial) for monomial, factor in polynomial.items())


def _known(name: str) -> float:
    return math.sqrt(int(name[1:])) if name[0] == "#" else CONSTANTS[name]
