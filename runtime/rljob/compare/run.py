"""Has every verifier judge every answer, and says how they did."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx

from rljob.api import ConfigurationError
from rljob.api.comparison import Comparison, Contestant
from rljob.api.verifiers import JudgeOptions, RewardModelOptions, judges, named, reward_models, uses
from rljob.compare.figures import Judged, Pair, Share, Standing, pair, standing
from rljob.compare.records import Labelled
from rljob.prepare.files import write_atomically
from rljob.reward.judge import Workers, standard_judge
from rljob.reward.outside import NoAnswerError, Outside
from rljob.reward.registry import check
from rljob.reward.scorers import Scorers
from rljob.reward.verifiers.language_model import api_key
from rljob.wire.reward import ScoreItem

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What one verifier did."""

    name: str
    contestant: Contestant
    judged: tuple[Judged, ...]
    standing: Standing
    wall_seconds: float
    tokens: Mapping[str, int]
    """`calls`, `prompt`, `completion` of language models; a verdict that was known is not paid for twice."""

    @property
    def cost(self) -> float | None:
        """In the currency of the price; None without one."""
        price = self.contestant.price
        if price is None:
            return None
        return (self.tokens["prompt"] * price.prompt + self.tokens["completion"] * price.completion) / 1e6


@dataclass(frozen=True)
class World:
    """By what verifiers judge."""

    workers: Workers
    http: httpx.AsyncClient
    sandbox: str | None
    environment: Mapping[str, str]
    scorers: Scorers
    """Reward models in folders."""


async def compare(spec: Comparison, answers: Sequence[Labelled], world: World, say: Say) -> list[Result]:
    """One verifier after the other, so that none waits for another's work.

    Raises:
        ConfigurationError: an answer cannot be judged by one of them, or a key is missing; before anything is asked.
    """
    for name, contestant in spec.verifiers.items():
        _check(spec.data, name, contestant, answers, world)
    for name, contestant in spec.verifiers.items():
        try:
            await world.scorers.start(list(reward_models(contestant.verifier, contestant.options)))
        except ConfigurationError as error:
            raise ConfigurationError(f"verifiers.{name}: {error}") from None
    found = []
    for name, contestant in spec.verifiers.items():
        say(f"{name}: judges {len(answers)} answers")
        found.append(await _result(name, contestant, spec, answers, world))
    return found


def _check(file: str, name: str, contestant: Contestant, answers: Sequence[Labelled], world: World) -> None:
    verifier, options = contestant.verifier, contestant.options
    if "code" in uses(verifier, options) and world.sandbox is None:
        raise ConfigurationError(f"verifiers.{name}: programs run in the sandbox; set RLJOB_URL_SANDBOX to the address of one")
    try:
        asked: list[JudgeOptions | RewardModelOptions] = [*judges(verifier, options), *reward_models(verifier, options)]
        for judge in asked:
            api_key(judge, world.environment)
    except NoAnswerError as error:
        raise ConfigurationError(f"verifiers.{name}: {error}") from None
    for number, answer in enumerate(answers, 1):
        try:
            check(verifier, options, answer.reference, frozenset(named(verifier, options)))
        except ValueError as error:
            raise ConfigurationError(f"verifiers.{name}: cannot judge answer {number} of {file}: {error}") from None


async def _result(name: str, contestant: Contestant, spec: Comparison, answers: Sequence[Labelled], world: World) -> Result:
    verifier, options = contestant.verifier, contestant.options
    tokens: Counter[str] = Counter()
    outside = Outside(world.http, world.sandbox, environment=world.environment, tokens=tokens, scorers=world.scorers)
    judge = standard_judge(world.workers, spec.timeout_seconds, outside, frozenset(named(verifier, options)))
    gate = asyncio.Semaphore(spec.concurrency)

    async def judged(number: int, one: Labelled) -> Judged:
        item = ScoreItem(
            id=str(number), verifier=verifier, options=options, prompt=one.prompt, answer=one.answer, reference=one.reference, finished=True
        )
        async with gate:
            said = await judge.score(item)
        return Judged(None if said.verdict == "failed" else said.verdict == "right", said.reason, said.seconds)

    began = time.perf_counter()
    found = tuple(await asyncio.gather(*(judged(number, one) for number, one in enumerate(answers))))
    wall = time.perf_counter() - began
    return Result(name, contestant, found, standing([one.label for one in answers], found), wall, tokens)


def pairs(answers: Sequence[Labelled], results: Sequence[Result]) -> list[tuple[str, str, Pair]]:
    """Every two verifiers."""
    labels = [one.label for one in answers]
    return [(a.name, b.name, pair(labels, a.judged, b.judged)) for a, b in combinations(results, 2)]


HEADS = ("verifier", "accuracy (95 %)", "rewarded wrongly", "refused wrongly", "failed", "ms (95 % within)", "tokens", "cost")
PAIR_HEADS = ("verifiers", "agree", "kappa", "only the first is right", "only the second", "p")


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table, without its head."""
    return [
        (
            one.name,
            f"{percent(one.standing.accuracy)} ({'-'.join(f'{100 * edge:.1f}' for edge in one.standing.accuracy.interval)})",
            _counted(one.standing.rewarded_wrongly),
            _counted(one.standing.refused_wrongly),
            str(one.standing.failed),
            f"{_milliseconds(one.standing.median_seconds)} ({_milliseconds(one.standing.slow_seconds)})",
            str(one.tokens["prompt"] + one.tokens["completion"]),
            "" if one.cost is None else f"{one.cost:.4g}",
        )
        for one in results
    ]


def pair_rows(found: Sequence[tuple[str, str, Pair]]) -> list[tuple[str, ...]]:
    """The table of pairs, without its head."""
    return [
        (
            f"{first}, {second}",
            percent(both.agreement),
            "" if both.kappa is None else f"{both.kappa:.2f}",
            str(both.only_first),
            str(both.only_second),
            f"{both.p:.2g}",
        )
        for first, second, both in found
    ]


def percent(share: Share) -> str:
    """With one digit; `-` of nothing."""
    return "-" if share.value is None else f"{100 * share.value:.1f} %"


def _milliseconds(seconds: float) -> str:
    """Three digits, and all of those before the point."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _counted(share: Share) -> str:
    return f"{percent(share)} ({share.hits} of {share.of})"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """For a terminal: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (heads, *lines)) for column in range(len(heads))]
    return ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
            for line in (heads, *lines)]  # fmt: skip


def record(spec: Comparison, results: Sequence[Result], found: Sequence[tuple[str, str, Pair]]) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "spec": spec.model_dump(mode="json", by_alias=True),
        "verifiers": {
            one.name: asdict(one.standing)
            | {"wall_seconds": one.wall_seconds, "tokens": dict(one.tokens), "cost": one.cost}
            | {"verdicts": [asdict(verdict) for verdict in one.judged]}
            for one in results
        },
        "pairs": [{"verifiers": [first, second]} | asdict(both) for first, second, both in found],
    }


def write(out: Path, page: str, made: Mapping[str, Any]) -> None:
    """The page, and the record beside it."""
    write_atomically(out, page)
    write_atomically(out.with_suffix(".json"), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
