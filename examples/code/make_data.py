"""Makes train.jsonl, heldout.jsonl and warmstart.jsonl of this folder: one-line functions of a list. The same files come out every time.

A task is made of three parts (what is combined, of what, of which numbers), each with its Python and with a function that says what is
right. Three of four demonstrations show common parts only, so that imitating them leaves the model unsure of the others; reinforcement
learning, which is told by tests whether a program works, has to teach those. Whole combinations of parts are held out: none of them is
demonstrated or trained on, with whatever number.

    python examples/code/make_data.py
"""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

SEED = 20260714
TRAIN, HELD_OUT, WARM_START = 1000, 256, 400
HELD_OUT_SHARE = 0.25
"""Of the combinations."""
COMMON_SHARE = 0.75
"""Of the demonstrations: those with common parts only."""
TESTS, LONGEST, CHOSEN_FROM = 5, 6, 12
"""Lists that a program is tried with, how long they are at most, and of how many each is the best."""


@dataclass(frozen=True)
class Part:
    """One part of a task. `{n}` in its words and its Python is a number."""

    words: str
    python: str
    does: Callable[..., Any]
    common: bool
    """Whether most demonstrations have it."""


WHOLES = (
    Part("the sum of", "sum", sum, True),
    Part("the largest of", "max", max, True),
    Part("the smallest of", "min", min, False),
    Part("the count of", "len", len, False),
)
TERMS = (
    Part("", "x", lambda x: x, True),
    Part("the squares of", "x * x", lambda x: x * x, True),
    Part("twice", "2 * x", lambda x: 2 * x, True),
    Part("the absolute values of", "abs(x)", abs, False),
    Part("the cubes of", "x ** 3", lambda x: x**3, False),
)
CHOICES = (
    Part("", "", lambda x, n: True, True),
    Part("that are even", "x % 2 == 0", lambda x, n: x % 2 == 0, True),
    Part("greater than {n}", "x > {n}", lambda x, n: x > n, True),
    Part("less than {n}", "x < {n}", lambda x, n: x < n, True),
    Part("that are odd", "x % 2 == 1", lambda x, n: x % 2 == 1, False),
    Part("that are positive", "x > 0", lambda x, n: x > 0, False),
    Part("that are negative", "x < 0", lambda x, n: x < 0, False),
    Part("that are at least {n}", "x >= {n}", lambda x, n: x >= n, False),
    Part("that are at most {n}", "x <= {n}", lambda x, n: x <= n, False),
    Part("divisible by {n}", "x % {n} == 0", lambda x, n: x % n == 0, False),
    Part("other than {n}", "x != {n}", lambda x, n: x != n, False),
)


@dataclass(frozen=True)
class Task:
    """What to write."""

    whole: Part
    term: Part
    choice: Part
    n: int

    @property
    def prompt(self) -> str:
        """The question."""
        words = (self.whole.words, self.term.words, "the numbers in xs", self.choice.words.format(n=self.n))
        return " ".join(filter(None, words)) + "."

    @property
    def program(self) -> str:
        """One right answer, in a fenced block."""
        chosen = f" if {self.choice.python.format(n=self.n)}" if self.choice.python else ""
        numbers = f"{self.term.python} for x in xs{chosen}"
        if self.term.python == "x" and not chosen:
            numbers = "xs"
        elif self.whole.python == "len":
            numbers = f"[{numbers}]"
        return f"```\nf = lambda xs: {self.whole.python}({numbers})\n```"

    def value(self, xs: list[int]) -> int | None:
        """What the function returns; None where it is not defined."""
        chosen = [self.term.does(x) for x in xs if self.choice.does(x, self.n)]
        value: int | None = self.whole.does(chosen) if chosen or self.whole.python in ("sum", "len") else None
        return value

    @property
    def rivals(self) -> list["Task"]:
        """Tasks of which one part is another: wrong programs that come to mind."""
        return [
            *(replace(self, whole=part) for part in WHOLES if part != self.whole),
            *(replace(self, term=part) for part in TERMS if part != self.term),
            *(replace(self, choice=part) for part in CHOICES if part != self.choice),
        ]

    @property
    def common(self) -> bool:
        """Whether all of its parts are common."""
        return self.whole.common and self.term.common and self.choice.common

    def record(self, demonstrate: bool) -> dict[str, Any]:
        """One line of a file."""
        tests = [{"call": {"function": "f", "arguments": [xs], "expected": self.value(xs)}} for xs in lists(self)]
        made = {"prompt": self.prompt, "reference": {"tests": tests}, "family": "common parts" if self.common else "rare parts"}
        return made | ({"demonstration": self.program} if demonstrate else {})


@cache
def lists(task: Task) -> list[list[int]]:
    """Lists that tell a task from its rivals as far as lists can: each one is the best of a few. Numbers are near n, of both signs."""
    draw, found, rivals = random.Random(f"{SEED} {task.prompt}"), list[list[int]](), task.rivals
    near = [task.n, task.n + 1, task.n - 1, 2 * task.n, 0, -task.n]
    while len(found) < TESTS:
        lengths = [draw.randint(1, LONGEST) for _ in range(CHOSEN_FROM)]
        some = [[draw.choice([draw.choice(near), draw.randint(-60, 60)]) for _ in range(length)] for length in lengths]
        told = {index: [r for r in rivals if r.value(xs) != task.value(xs)] for index, xs in enumerate(some) if task.value(xs) is not None}
        if told:
            best = max(told, key=lambda index: len(told[index]))
            found.append(some[best])
            rivals = [rival for rival in rivals if rival not in told[best]] or task.rivals
    return found


def combinations() -> list[tuple[Part, Part, Part]]:
    """All that make sense: nobody counts squares. In an order that only depends on SEED."""
    found = [(whole, term, choice) for whole, term, choice in product(WHOLES, TERMS, CHOICES) if whole.python != "len" or not term.words]
    random.Random(SEED).shuffle(found)
    return found


def tasks(parts: Iterable[tuple[Part, Part, Part]], count: int, seed: int) -> list[Task]:
    """So many tasks, combinations equally often; a question can come up again where there are few."""
    draw, some = random.Random(seed), list(parts)
    found = []
    for index in range(count):
        whole, term, choice = some[index % len(some)]
        n = draw.randint(2, 9 if "divisible" in choice.words else 40) if "{n}" in choice.words else 7
        found.append(Task(whole, term, choice, n))
    draw.shuffle(found)
    return found


def main() -> None:
    """Write the files next to this script."""
    here, found = Path(__file__).parent, combinations()
    held_out = found[: round(HELD_OUT_SHARE * len(found))]
    trained = [parts for parts in found if parts not in held_out]
    common = [parts for parts in trained if all(part.common for part in parts)]
    unique = {task.prompt: task for task in tasks(held_out, 20 * HELD_OUT, SEED + 1)}
    often = round(COMMON_SHARE * WARM_START)
    mixed = tasks(common, often, SEED + 3) + tasks(trained, WARM_START - often, SEED + 4)
    random.Random(SEED).shuffle(mixed)
    splits = {
        "heldout": [task.record(False) for task in list(unique.values())[:HELD_OUT]],
        "train": [task.record(False) for task in tasks(trained, TRAIN, SEED + 2)],
        "warmstart": [task.record(True) for task in mixed],
    }
    for name, records in splits.items():
        (here / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        print(f"{name}.jsonl: {len(records)} records")


if __name__ == "__main__":
    main()
