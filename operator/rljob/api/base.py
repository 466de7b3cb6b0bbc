"""What every part of the RLJob has in common: camelCase in YAML, closed, frozen."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """One topic of the spec. Unknown fields are errors; values never change after validation."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )


def exactly_one(where: str, members: Mapping[str, Any]) -> str:
    """Name of the single member that is set.

    Raises:
        ValueError: none or several are set; the message lists the choices.
    """
    chosen = [name for name, value in members.items() if value is not None]
    if len(chosen) != 1:
        said = "none is set" if not chosen else f"{' and '.join(chosen)} are set"
        raise ValueError(f"{where} needs exactly one of {', '.join(members)}; {said}")
    return chosen[0]
