"""What `rljob data curate` is told; the command writes it, `rljob.curate` reads it."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rljob.api.base import Part, Positive
from rljob.api.verifiers import VerifierName, fitting

Share = Annotated[float, Field(ge=0, le=1)]


class Curation(Part):
    """Which prompts of a set are worth training on, measured by a policy (Kimi k1.5 §2.1)."""

    source: str
    """A `.jsonl` or `.parquet` file of records (docs/data.md)."""
    out: Annotated[str, Field(pattern=r"\.jsonl$")]
    """The `.jsonl` file to write. Beside it stand the report and what was measured, so that the same command goes on after a stop."""
    endpoint: Annotated[str, Field(pattern=r"^https?://")]
    """Base address of an OpenAI-compatible service, such as `http://localhost:8000/v1`."""
    model: str
    """Name of the policy there."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of a record to column of the file."""
    verifier: VerifierName = "exact"
    """Who judges the answers to records that name no verifier."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that verifier."""
    samples: Annotated[int, Field(ge=1, le=1024)] = 10
    """Answers to each prompt; the share of right ones is its pass rate."""
    guesses: Annotated[int, Field(ge=0, le=1024)] = 8
    """Answers without reasoning. One right one means that the prompt can be passed by guessing: it is dropped. 0: nobody guesses."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature."""
    max_tokens: Positive = 2048
    """Longest answer; one that is cut off is wrong."""
    guess_tokens: Positive = 64
    """Longest guess."""
    min_pass: Share = 0.0
    """Prompts with a lower pass rate are dropped."""
    max_pass: Share = 0.9
    """Prompts with a higher pass rate are dropped: they teach nothing any more."""
    balance: Annotated[float, Field(ge=0)] = 2.0
    """No family keeps more than so many times the median family (of two in the middle, the smaller one). 0: as many as there are."""
    concurrency: Positive = 32
    """Prompts in progress at a time."""

    @field_validator("options")
    @classmethod
    def _options_fit(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return fitting(info.data.get("verifier"), options)

    @model_validator(mode="after")
    def _something_is_left(self) -> "Curation":
        if self.min_pass > self.max_pass:
            raise ValueError(f"--min-pass ({self.min_pass:g}) is more than --max-pass ({self.max_pass:g}); no prompt could be kept")
        return self
