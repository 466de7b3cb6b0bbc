"""How commands print."""

from enum import StrEnum


class Output(StrEnum):
    """How something is printed."""

    table = "table"
    yaml = "yaml"
    json = "json"
