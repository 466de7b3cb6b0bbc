"""What every part of the RLJob has in common: camelCase in YAML, closed, frozen."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

INT32 = 2**31 - 1
"""Every whole number of a job has an upper bound: Kubernetes has 64 bits, and its rules multiply some of these numbers."""
Natural = Annotated[int, Field(ge=0, le=INT32)]
Positive = Annotated[int, Field(ge=1, le=INT32)]
Small = Annotated[int, Field(ge=1, le=4096)]
"""A factor of the parallel sizes."""


class Part(BaseModel):
    """One topic of the spec. Unknown fields are errors; values never change after validation."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:
        """A field without a value (`iterations:`) is a field that is not there, as in Kubernetes."""
        if not isinstance(data, Mapping) or None not in data.values():
            return data
        known = cls.model_fields.keys() | {field.alias for field in cls.model_fields.values()}
        return {name: value for name, value in data.items() if value is not None or name not in known}


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
