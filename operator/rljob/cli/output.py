"""How commands print."""

from enum import StrEnum
from typing import IO

from rich.console import Console


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Where a command prints (default: standard output): every word as it is. Brackets, colons and numbers in paths and messages mean
    nothing; what has a style says so itself."""
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


class Output(StrEnum):
    """How something is printed."""

    table = "table"
    yaml = "yaml"
    json = "json"
