"""Which prompts come next (Kimi k1.5 §2.3.4). Deterministic from the seed and the committed state, so a restart draws the same ones."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from rljob.api.algorithm import Sampling

FLOOR = 1e-3
"""Least weight of a prompt in prioritized sampling: what is always answered right is still seen now and then."""


@dataclass(frozen=True)
class Statistics:
    """What is known of one prompt."""

    draws: int = 0
    """How often it was drawn."""
    samples: int = 0
    """Answers to it that were trained on."""
    successes: int = 0
    """Right ones among them."""

    @property
    def priority(self) -> float:
        """1 - success rate; 1 before the first visit."""
        return max(FLOOR, 1.0 - self.successes / self.samples) if self.samples else 1.0


@dataclass(frozen=True)
class Draw:
    """One request to the sampler."""

    seed: int
    iteration: int
    """From 1."""
    position: int
    """Prompts drawn before, in the whole job."""
    count: int
    """Prompts wanted."""


def draw(
    request: Draw,
    sampling: Sampling,
    shuffled: bool,
    difficulties: Sequence[float],
    statistics: Sequence[Statistics],
    open_prompts: Collection[int],
) -> tuple[int, ...]:
    """Indices of the prompts to generate for next; `request.count` of them.

    `difficulties` and `statistics` have one entry per prompt of the set, in file order; `open_prompts` are those whose answers are still in
    the replay buffer: curriculum and prioritized sampling do not draw them again while others are left.
    """
    size = len(difficulties)
    if sampling.strategy == "uniform":
        return tuple(
            _walk(request.seed, position, size, shuffled) for position in range(request.position, request.position + request.count)
        )
    rng = Random(f"{request.seed}/{sampling.strategy}/{request.iteration}")
    if sampling.strategy == "curriculum":
        opened = _opened(difficulties, request.iteration / sampling.curriculum_iterations, request.count)
        keys = {i: (statistics[i].draws, rng.random()) for i in opened}
        ranked = sorted(opened, key=lambda i: keys[i])
    else:
        ranked = _weighted_order([s.priority for s in statistics], rng)
    return _take([i for i in ranked if i not in open_prompts] + [i for i in ranked if i in open_prompts], request.count)


def _walk(seed: int, position: int, size: int, shuffled: bool) -> int:
    epoch, index = divmod(position, size)
    return _permutation(seed, epoch, size)[index] if shuffled else index


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """Order of one epoch; remembered because a walk asks for it once per prompt."""
    order = list(range(size))
    Random(f"{seed}/epoch/{epoch}").shuffle(order)
    return tuple(order)


def _opened(difficulties: Sequence[float], share: float, count: int) -> list[int]:
    """The easiest prompts: a share of the set that grows with the iterations, at least one iteration's worth."""
    ranked = sorted(range(len(difficulties)), key=lambda i: (difficulties[i], i))
    return ranked[: max(math.ceil(min(1.0, share) * len(ranked)), min(count, len(ranked)))]


def _weighted_order(weights: Sequence[float], rng: Random) -> list[int]:
    """A random order in which prompts come in proportion to their weights (Efraimidis and Spirakis 2006: sort by log(u) / w)."""
    keys = [math.log(1.0 - rng.random()) / w for w in weights]
    return sorted(range(len(weights)), key=lambda i: keys[i], reverse=True)


def _take(ranked: Sequence[int], count: int) -> tuple[int, ...]:
    """The first `count`, round again if the set is smaller."""
    return tuple(ranked[i % len(ranked)] for i in range(count))
