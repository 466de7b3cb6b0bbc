"""Answers with a person's label."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rljob.api import ConfigurationError
from rljob.api.errors import explained


class Labelled(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    answer: str
    reference: Any = None
    label: bool
    """What a person says: is the answer right? `true`, `false`, 1 or 0."""


def read(file: Path) -> list[Labelled]:
    """The answers of a `.jsonl` file, in its order.

    Raises:
        ConfigurationError: it cannot be read, a line is no such record, or it has none; the message names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold what Unicode takes for an end of a line
    except FileNotFoundError:
        raise ConfigurationError(f"data: {file} does not exist; name a .jsonl file of labelled answers") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"data: {file} is no UTF-8: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"data: {explained(error)}") from None
    found = [_record(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f"data: {file} holds no answers; write one JSON object with prompt, answer, label per line")
    return found


def _record(line: str, where: str) -> Labelled:
    try:
        return Labelled.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise ConfigurationError(f"{where}: {field}: {first['msg']}; fields are prompt, answer, label, and if need be reference") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where}: is no JSON: {error}") from None
