"""What verdicts come to. Pure; counts in, figures out."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959964
"""Of the normal distribution: 95 % lie within."""


@dataclass(frozen=True)
class Judged:
    """One verdict."""

    right: bool | None
    """None: there is none, something of ours failed."""
    reason: str
    seconds: float


@dataclass(frozen=True)
class Share:
    """`hits` of `of`."""

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        """None of nothing."""
        return self.hits / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies with 95 % confidence, if the answers are a random sample (Wilson 1927)."""
        if not self.of:
            return 0.0, 1.0
        p, n, z = self.hits / self.of, self.of, _Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Rounding must not put the share itself outside.
        return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


@dataclass(frozen=True)
class Standing:
    """One verifier against the labels."""

    accuracy: Share
    """Verdicts that say what the person says."""
    rewarded_wrongly: Share
    """Of the answers that a person finds wrong, those it finds right: what a policy learns to exploit."""
    refused_wrongly: Share
    """Of the answers that a person finds right, those it finds wrong."""
    failed: int
    """Answers without a verdict; they count nowhere else."""
    median_seconds: float
    slow_seconds: float
    """95 % of the judgements took no longer."""


def standing(labels: Sequence[bool], judged: Sequence[Judged]) -> Standing:
    """Of one verifier; `judged` in the order of `labels`."""
    pairs = [(label, one.right) for label, one in zip(labels, judged, strict=True) if one.right is not None]
    wrong, right = [said for label, said in pairs if not label], [said for label, said in pairs if label]
    seconds = sorted(one.seconds for one in judged)
    return Standing(
        accuracy=Share(sum(label == said for label, said in pairs), len(pairs)),
        rewarded_wrongly=Share(sum(wrong), len(wrong)),
        refused_wrongly=Share(len(right) - sum(right), len(right)),
        failed=len(judged) - len(pairs),
        median_seconds=statistics.median(seconds),
        slow_seconds=seconds[math.ceil(0.95 * len(seconds)) - 1],
    )


@dataclass(frozen=True)
class Pair:
    """Two verifiers on the answers that both judged."""

    agreement: Share
    kappa: float | None
    """Agreement beyond what chance gives (Cohen 1960): 1 is full, 0 is chance. None where one says the same of all and so do both."""
    only_first: int
    only_second: int
    """Answers that only one of them judges as the person does."""
    p: float
    """How likely so uneven numbers are if both are equally good (McNemar's exact test, two-sided)."""


def pair(labels: Sequence[bool], first: Sequence[Judged], second: Sequence[Judged]) -> Pair:
    """How two verifiers compare."""
    both = [
        (label, a.right, b.right)
        for label, a, b in zip(labels, first, second, strict=True)
        if a.right is not None and b.right is not None
    ]  # fmt: skip
    same = sum(a == b for _, a, b in both)
    only_first = sum(a == label != b for label, a, b in both)
    only_second = sum(b == label != a for label, a, b in both)
    kappa = _kappa(same, sum(a for _, a, _ in both), sum(b for _, _, b in both), len(both))
    return Pair(Share(same, len(both)), kappa, only_first, only_second, _mcnemar(only_first, only_second))


def _kappa(same: int, first: int, second: int, of: int) -> float | None:
    by_chance = first * second + (of - first) * (of - second)
    return (same * of - by_chance) / (of * of - by_chance) if of * of != by_chance else None


def _mcnemar(one: int, other: int) -> float:
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1))
    return float(min(1.0, 2 * tail / 2**n))
