"""What `rljob reward compare` is told: a YAML file, read by the command and given to `rljob.compare`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from rljob.api.base import PRESERVE, Part, Positive
from rljob.api.errors import ConfigurationError, explained
from rljob.api.load import validated
from rljob.api.verifiers import VerifierName, fitting
from rljob.api.yaml_file import read

NonNegative = Annotated[float, Field(ge=0)]


class Price(Part):
    """What a language model costs, in any currency, per million tokens."""

    prompt: NonNegative
    """Tokens that it reads."""
    completion: NonNegative
    """Tokens that it writes."""


class Contestant(Part):
    """One way to judge answers."""

    verifier: VerifierName
    """Who judges."""
    options: dict[str, Any] = Field(default_factory=dict, json_schema_extra={PRESERVE: True})
    """Options of that verifier (docs/reward.md)."""
    price: Price | None = None
    """For `judge`: what its tokens cost."""

    @field_validator("options")
    @classmethod
    def _options_fit(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return fitting(info.data.get("verifier"), options)


class Comparison(Part):
    """Verifiers, and the labelled answers that they are compared on (the spot checks of Kimi k1.5 §2.3.5)."""

    data: str
    """A `.jsonl` file of answers with a person's label; relative paths start at the folder of this file."""
    verifiers: Annotated[dict[str, Contestant], Field(min_length=1)]
    """Name in the table to verifier."""
    concurrency: Positive = 16
    """Answers in progress at a time. Seconds are measured with so many in progress."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """`spec.reward.timeoutSeconds`: hard limit of one judgement of a verifier that can hang."""


def load_comparison(file: Path) -> Comparison:
    """Read such a file; its `data` then names a file from anywhere.

    Raises:
        ConfigurationError: it cannot be read, or fields are wrong; all problems at once.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"{file} does not exist; name a YAML file as docs/compare.md shows it") from None
    except OSError as error:
        raise ConfigurationError(explained(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} cannot be read: {error}; write it in UTF-8") from None
    data, lines = read(text, str(file))
    spec = validated(Comparison, data, str(file), lines)
    return spec.model_copy(update={"data": str(file.parent / spec.data)})
