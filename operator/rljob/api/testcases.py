"""What `rljob data testcases` is told; the command writes it, `rljob.curate.testcases` reads it."""

from typing import Annotated

from pydantic import Field, model_validator

from rljob.api.base import Part, Positive


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
    """Processor time of a submission with one input; ten times as much is given to a problem's generator."""
    memory_mb: Annotated[int, Field(ge=16)] = 256
    """Memory of a submission and of a generator, MiB."""
    concurrency: Positive = 32
    """Programs in progress at a time."""

    @model_validator(mode="after")
    def _possible(self) -> "TestCaseGeneration":
        for name, count in (("agree", self.agree), ("passing", self.passing)):
            if count > self.submissions:
                raise ValueError(f"{name} ({count}) is more than submissions ({self.submissions}); no problem could be kept")
        if 2 * self.agree <= self.submissions:
            raise ValueError(f"agree ({self.agree}) is no majority of submissions ({self.submissions}); two outputs could be expected")
        if self.min_cases > self.cases:
            raise ValueError(f"minCases ({self.min_cases}) is more than cases ({self.cases}); no problem could be kept")
        return self
