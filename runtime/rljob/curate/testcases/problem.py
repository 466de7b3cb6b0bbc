"""One code problem as its file has it, checked; and the record that it becomes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rljob.api import ConfigurationError
from rljob.api.yaml_file import read
from rljob.prepare.records import Record, parse


class Submission(BaseModel):
    """A program that is said to solve the problem. Some are wrong: that is what the majority is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    language: str = "python"


class Problem(BaseModel):
    """A problem without tests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: dict[str, Any]
    """Fields of the record it becomes (docs/data.md): `prompt` or `messages`, `id`, `family`, `difficulty`, `demonstration`."""
    generator: str
    """Python that defines `generate(case, cases)`: the text of input `case`, from 0 to `cases` - 1."""
    submissions: Annotated[tuple[Submission, ...], Field(min_length=1)]
    checker: Literal["tokens", "exact"] = "tokens"
    """When two outputs are the same, here and later for the verifier: by words, or by all but trailing white space."""

    @field_validator("submissions", mode="before")
    @classmethod
    def _text_is_python(cls, given: Any) -> Any:
        return [{"code": one} if isinstance(one, str) else one for one in given] if isinstance(given, list | tuple) else given


_RECORD = ("id", "prompt", "messages", "family", "difficulty", "demonstration")


@dataclass(frozen=True)
class Located:
    """A problem and where it came from, such as `problems.jsonl line 7`."""

    where: str
    problem: Problem

    @property
    def name(self) -> str:
        """For people."""
        return str(self.problem.record.get("id") or self.where)


def load(file: Path) -> list[Located]:
    """All problems of a file.

    Raises:
        ConfigurationError: the file or a problem cannot be read; names place, field and remedy.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"IN: {file} cannot be read ({error}); name a .jsonl or .yaml file of problems") from None
    found = [Located(where, _problem(row, where)) for where, row in _rows(file, text)]
    if not found:
        raise ConfigurationError(f"IN: {file} has no problems")
    names = [one.problem.record["id"] for one in found if "id" in one.problem.record]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"IN: {file} has the id {name!r} {names.count(name)} times; ids are unique")
    return found


def _rows(file: Path, text: str) -> list[tuple[str, Any]]:
    if file.suffix == ".yaml":
        rows, _ = read(text, f"IN: {file}")
        if not isinstance(rows, list):
            raise ConfigurationError(f"IN: {file} must hold a list of problems, this is {type(rows).__name__}")
        return [(f"{file.name} problem {number}", row) for number, row in enumerate(rows, 1)]
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append((f"{file.name} line {number}", json.loads(line)))
            except ValueError as error:
                raise ConfigurationError(f"{file.name} line {number}: is not JSON ({error})") from None
    return found


def _problem(row: Any, where: str) -> Problem:
    if not isinstance(row, dict):
        raise ConfigurationError(f"{where}: a problem is an object, this is {type(row).__name__}")
    record = {name: row[name] for name in _RECORD if row.get(name) is not None}
    parse(record, where, {})
    try:
        return Problem.model_validate({"record": record} | {name: value for name, value in row.items() if name not in _RECORD})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{where}: `{name}`: {first['msg']}; a problem has prompt, generator, submissions, checker") from None


def record(problem: Problem, tests: Sequence[tuple[str, str]], options: dict[str, Any]) -> Record:
    """What is trained on. `tests`: inputs with what is expected; `options`: of the verifier."""
    reference = {
        "tests": [{"stdin": stdin, "expected": expected} for stdin, expected in tests],
        "checker": {"kind": problem.checker},
    }
    return Record.model_validate(problem.record | {"verifier": "code", "options": options, "reference": reference})
