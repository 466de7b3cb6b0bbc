"""What `rljob data testcases` is told; the command writes it, `rljob.curate.testcases` reads it."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from rljob.api.base import Part, Positive

TOTAL_SECONDS = 200.0
"""The most that the verifier `code` gives all tests of an answer."""


def wall_seconds(cpu_seconds: float) -> float:
    """Time of a program that may take so much processor time."""
    return max(6.0, 2 * cpu_seconds)


class TestCaseGeneration(Part):
    """Tests for code problems from generated inputs and reference submissions (Kimi k1.5 §2.3.5)."""

    __test__ = False
    """Not a test of pytest's, in spite of its name."""

    source: Annotated[str, Field(pattern=r"\.(jsonl|yaml)$")]
    """A `.jsonl` or `.yaml` file of problems (docs/testcases.md)."""
    out: Annotated[str, Field(pattern=r"\.jsonl$")]
    """The `.jsonl` file of records to write. The report stands beside it."""
    sandbox: Annotated[str, Field(pattern=r"^https?://")]
    """Address of a code sandbox. Generators and submissions run nowhere else."""
    cases: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Inputs generated for each problem."""
    submissions: Annotated[int, Field(ge=1, le=1024)] = 10
    """Reference submissions drawn for each problem; one that has fewer is dropped."""
    agree: Positive = 7
    """Submissions of which the same output makes an input a test, with this output expected."""
    passing: Positive = 9
    """Submissions that have to pass all of a problem's tests."""
    min_cases: Positive = 40
    """Tests that a problem must have."""
    seed: int = 0
    """Of the inputs, and of the choice of submissions."""
    cpu_seconds: Annotated[float, Field(gt=0, le=12)] = 2.0
    """Processor time of a submission, and of an answer in training, with one input; ten times as much is given to a problem's generator."""
    memory_mb: Annotated[int, Field(ge=16)] = 256
    """Memory of a submission and of a generator, MiB."""
    concurrency: Positive = 32
    """Programs in progress at a time."""

    @property
    def options(self) -> dict[str, Any]:
        """Of the records' verifier: answers are judged within the limits that the submissions had."""
        return {
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": wall_seconds(self.cpu_seconds),
            "total_seconds": TOTAL_SECONDS,
            "memory_mb": self.memory_mb,
        }

    @model_validator(mode="after")
    def _possible(self) -> "TestCaseGeneration":
        for name, count in (("agree", self.agree), ("passing", self.passing)):
            if count > self.submissions:
                raise ValueError(f"--{name} ({count}) is more than --submissions ({self.submissions}); no problem could be kept")
        if 2 * self.agree <= self.submissions:
            raise ValueError(f"--agree ({self.agree}) is no majority of --submissions ({self.submissions}); two outputs could be expected")
        if self.min_cases > self.cases:
            raise ValueError(f"--min-cases ({self.min_cases}) is more than --cases ({self.cases}); no problem could be kept")
        if (total := self.cases * self.cpu_seconds) > TOTAL_SECONDS:
            raise ValueError(
                f"--cases ({self.cases}) × --cpu-seconds ({self.cpu_seconds:g}) is {total:g} s, but the verifier `code` gives an answer "
                f"{TOTAL_SECONDS:g} s for all tests, and a right one may need them all; lower one of the two"
            )
        return self
