"""One record of a data source, checked; and where it stands, so that a message can name it."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json, to_json

from rljob.api import ConfigurationError


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class Record(BaseModel):
    """A record as the user wrote it (docs/data.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = None
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    reference: Any = None
    verifier: str | None = None
    options: dict[str, Any] | None = None
    family: str = ""
    difficulty: float = Field(default=0.0, allow_inf_nan=False)
    demonstration: str | None = None
    chosen: str | tuple[ChatMessage, ...] | None = None
    rejected: str | tuple[ChatMessage, ...] | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> "Record":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needs `prompt` (a question) or `messages` (a chat)" + (", not both" if self.prompt is not None else ""))
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("`prompt` is empty")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("`messages` must end with a message of role `user`")
        if self.messages is not None and not self.messages[-1].content.strip():
            raise ValueError("`messages`: the last message is empty")
        if self.demonstration is not None and not self.demonstration.strip():
            raise ValueError("`demonstration` is empty; leave it out")
        return self

    @field_validator("chosen", "rejected")
    @classmethod
    def _ends_with_an_answer(cls, given: str | tuple[ChatMessage, ...] | None) -> str | tuple[ChatMessage, ...] | None:
        if isinstance(given, tuple) and (not given or given[-1].role != "assistant"):
            raise ValueError("a list of messages must end with one of role `assistant`")
        return given

    def text(self, field: Literal["chosen", "rejected"]) -> str:
        """An answer of the pair; of a list of messages, as many data sets have it, the last one."""
        given: str | tuple[ChatMessage, ...] | None = getattr(self, field)
        return given[-1].content if isinstance(given, tuple) else given or ""

    @property
    def chat(self) -> tuple[ChatMessage, ...]:
        """The record's own messages."""
        return self.messages if self.messages is not None else (ChatMessage(role="user", content=self.prompt or ""),)

    @property
    def question(self) -> str:
        """The last user message."""
        return self.chat[-1].content

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Equal for two records that ask the same: every message but system's, letters and spaces evened out."""
        return tuple(" ".join(m.content.casefold().split()) for m in self.chat if m.role != "system")


@dataclass(frozen=True)
class Located:
    """A record and where it came from, such as `train.jsonl line 7`."""

    where: str
    record: Record


FIELDS = tuple(Record.model_fields)


def parse(row: Any, where: str, columns: Mapping[str, str]) -> Record:
    """Check one row.

    Args:
        columns: field of a record to column of the row; if there are any, other columns are ignored.

    Raises:
        ConfigurationError: the row is malformed; the message names `where`, the field and what is expected.
    """
    if not isinstance(row, dict):
        raise ConfigurationError(f"{where}: a record is a JSON object, this is {type(row).__name__}")
    if columns:
        missing = [column for column in columns.values() if column not in row]
        if missing:
            raise ConfigurationError(f"{where}: no column {missing[0]!r} (named in `columns`); it has {', '.join(map(str, row))}")
        row = {field: row[column] for field, column in columns.items()}
    for unknown in (name for name in row if name not in FIELDS):
        near = get_close_matches(str(unknown), FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(FIELDS)}; map other columns with `columns`"
        raise ConfigurationError(f"{where}: unknown field {unknown!r}; {hint}")
    row = {name: value for name, value in row.items() if value is not None}
    if isinstance(row.get("id"), int):
        row["id"] = str(row["id"])
    for name in ("reference", "options"):
        try:
            from_json(to_json(row.get(name), inf_nan_mode="constants"), allow_inf_nan=False)
        except ValueError as error:
            raise ConfigurationError(
                f"{where}: `{name}` is {repr(row[name])[:200]}, which JSON cannot hold ({error}); leave it out or write text"
            ) from None
    try:
        return Record.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{where}: {f'`{field}`: ' if field else ''}{message}") from None


def check_columns(columns: Mapping[str, str], where: str) -> None:
    """Raises ConfigurationError if `columns` names a field that records do not have."""
    for field in columns:
        if field not in FIELDS:
            near = get_close_matches(field, FIELDS, n=1)
            raise ConfigurationError(
                f"{where}.columns: unknown field {field!r}; {f'did you mean {near[0]!r}?' if near else ''}".strip("; ")
            )
