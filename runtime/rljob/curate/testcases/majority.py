"""Which inputs become tests, and which problems are kept. Pure: outputs of submissions -> tests, and what becomes of a problem."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rljob.api.testcases import TestCaseGeneration
from rljob.wire.sandbox import BLANK

Fate = Literal["kept", "too few submissions", "generator failed", "too few tests", "one answer", "too few pass"]
FATES: tuple[Fate, ...] = ("kept", "too few submissions", "generator failed", "too few tests", "one answer", "too few pass")
Outputs = Sequence[Sequence[str | None]]
"""Of each submission: its output for each input, None where it did not end well."""


@dataclass(frozen=True)
class Outcome:
    """What becomes of a problem."""

    fate: Fate
    inputs: int = 0
    """Different inputs that were generated."""
    tests: tuple[tuple[str, str], ...] = ()
    """Inputs with what is expected."""
    passing: int = 0
    """Submissions that pass all tests."""
    reason: str = ""


def same(output: str, checker: str) -> str:
    """What two outputs have in common that the checker finds equal; it is also an output that the checker takes for both."""
    if checker == "tokens":
        return " ".join(re.findall(f"[^{BLANK}]+", output))
    return "\n".join(line.rstrip(BLANK) for line in output.rstrip(BLANK).split("\n"))


def decide(inputs: Sequence[str], outputs: Outputs, checker: str, spec: TestCaseGeneration) -> Outcome:
    """The tests, and whether they and the submissions are good enough."""
    said = [[None if output is None else same(output, checker) for output in one] for one in outputs]
    expected: dict[int, str] = {}
    for index in range(len(inputs)):
        votes = Counter(one[index] for one in said if one[index] is not None)
        for output, count in votes.most_common(1):
            if output is not None and count >= spec.agree:
                expected[index] = output
    passing = sum(all(one[index] == output for index, output in expected.items()) for one in said) if expected else 0
    tests = tuple((inputs[index], output) for index, output in expected.items())
    fate, reason = _fate(tests, passing, len(inputs), spec)
    return Outcome(fate, len(inputs), tests, passing, reason)


def _fate(tests: Sequence[tuple[str, str]], passing: int, inputs: int, spec: TestCaseGeneration) -> tuple[Fate, str]:
    if len(tests) < spec.min_cases:
        return "too few tests", f"{spec.agree} of {spec.submissions} submissions agree on {len(tests)} of {inputs} different inputs"
    if len({expected for _, expected in tests}) == 1 and len(tests) > 1:
        return "one answer", f"all tests expect {tests[0][1]!r:.40}, so that a program which only prints it would pass"
    if passing < spec.passing:
        return "too few pass", f"{passing} of {spec.submissions} submissions pass all tests"
    return "kept", ""


def report(names: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Counts, and one entry per problem, for machines."""
    counts = Counter(outcome.fate for outcome in outcomes)
    return {
        "problems": len(outcomes),
        "fates": {fate: counts[fate] for fate in FATES},
        "tests": sum(len(outcome.tests) for outcome in outcomes if outcome.fate == "kept"),
        "each": [_entry(name, outcome) for name, outcome in zip(names, outcomes, strict=True)],
    }


def _entry(name: str, outcome: Outcome) -> Mapping[str, object]:
    return {
        "problem": name,
        "fate": outcome.fate,
        "inputs": outcome.inputs,
        "tests": len(outcome.tests),
        "passing": outcome.passing,
        "reason": outcome.reason,
    }
