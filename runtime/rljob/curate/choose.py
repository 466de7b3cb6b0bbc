"""Which prompts are kept. Pure: what was measured -> what becomes of each prompt, and why."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rljob.api.curation import Curation

Fate = Literal["kept", "unjudged", "guessable", "too hard", "too easy", "balanced out"]
FATES: tuple[Fate, ...] = ("kept", "unjudged", "guessable", "too hard", "too easy", "balanced out")
BINS = 10
"""Of the histogram: pass rates of 0, up to 0.1, ..., up to 1."""


@dataclass(frozen=True)
class Measured:
    """What a policy made of one prompt."""

    family: str
    right: int
    judged: int
    """Answers that were right, and that could be judged at all; none where a guess could not be judged and no other was right."""
    guessed: int
    """Right guesses without reasoning."""

    @property
    def pass_rate(self) -> float:
        """Share of right answers; 0 if none could be judged."""
        return self.right / self.judged if self.judged else 0.0

    @property
    def difficulty(self) -> float:
        """As records and the curriculum have it: more is harder."""
        return round(1.0 - self.pass_rate, 6)


def fates(prompts: Sequence[Measured], spec: Curation) -> list[Fate]:
    """What becomes of each prompt."""
    found = [_fate(prompt, spec) for prompt in prompts]
    families: dict[str, list[int]] = defaultdict(list)
    for index, fate in enumerate(found):
        if fate == "kept":
            families[prompts[index].family].append(index)
    if spec.balance and len(families) > 1:
        most = math.ceil(spec.balance * statistics.median_low(len(members) for members in families.values()))
        for members in families.values():
            for index in set(members) - set(_spread(members, prompts, most)):
                found[index] = "balanced out"
    return found


def _fate(prompt: Measured, spec: Curation) -> Fate:
    if not prompt.judged:
        return "unjudged"
    if prompt.guessed:
        return "guessable"
    if prompt.pass_rate < spec.min_pass:
        return "too hard"
    return "too easy" if prompt.pass_rate > spec.max_pass else "kept"


def _spread(members: Sequence[int], prompts: Sequence[Measured], most: int) -> list[int]:
    """At most so many of a family, spread evenly over its difficulties."""
    if len(members) <= most:
        return list(members)
    ordered = sorted(members, key=lambda index: (prompts[index].difficulty, index))
    return [ordered[int((place + 0.5) * len(ordered) / most)] for place in range(most)]


def report(prompts: Sequence[Measured], found: Sequence[Fate]) -> dict[str, object]:
    """Counts and histograms, for machines."""
    kept = [prompt for prompt, fate in zip(prompts, found, strict=True) if fate == "kept"]
    counts = Counter(found)
    return {
        "prompts": len(prompts),
        "fates": {fate: counts[fate] for fate in FATES},
        "pass_rates": {"all": histogram(prompts), "kept": histogram(kept)},
        "families": _families(prompts, kept),
    }


def histogram(prompts: Sequence[Measured]) -> list[int]:
    """Number of prompts by pass rate: none, then a tenth each, upper ends included. Those that nobody could judge are not in it."""
    bins = [0] * (BINS + 1)
    for prompt in prompts:
        if prompt.judged:
            bins[math.ceil(prompt.right * BINS / prompt.judged)] += 1
    return bins


def _families(prompts: Sequence[Measured], kept: Sequence[Measured]) -> Mapping[str, Mapping[str, float | None]]:
    left = Counter(prompt.family for prompt in kept)
    by_name: dict[str, list[Measured]] = defaultdict(list)
    for prompt in prompts:
        by_name[prompt.family].append(prompt)
    return {
        name: {"prompts": len(some), "kept": left[name], "pass_rate": _pass_rate([p.pass_rate for p in some if p.judged])}
        for name, some in sorted(by_name.items())
    }


def _pass_rate(judged: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return round(statistics.fmean(judged), 4) if judged else None
