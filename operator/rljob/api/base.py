"""What every part of the RLJob has in common: camelCase in YAML, closed, frozen."""

from collections.abc import Mapping
from typing import Annotated, Any, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

INT32 = 2**31 - 1
"""Every whole number of a job has an upper bound: Kubernetes has 64 bits, and its rules multiply some of these numbers."""
Natural = Annotated[int, Field(ge=0, le=INT32)]
Positive = Annotated[int, Field(ge=1, le=INT32)]
Small = Annotated[int, Field(ge=1, le=4096)]
"""A factor of the parallel sizes."""
MEMORY = r"^[0-9]{1,9}(Mi|Gi)$"
"""Pattern of a number of bytes."""
PRESERVE = "x-kubernetes-preserve-unknown-fields"
"""Marks a map that the cluster keeps as it is written, entries without a value included."""


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
        """A field without a value (`iterations:`) is a field that is not there, as in Kubernetes; so is an entry of a map."""
        if not isinstance(data, Mapping):
            return data
        fields = {name: field for key, field in cls.model_fields.items() for name in (key, field.alias)}
        present = {name: value for name, value in data.items() if value is not None or name not in fields}
        return {name: _filled(value) if name in fields and _is_map(fields[name]) else value for name, value in present.items()}


def _is_map(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return get_origin(field.annotation) is dict and not (isinstance(extra, dict) and PRESERVE in extra)


def _filled(value: Any) -> Any:
    return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, Mapping) else value


def digits(value: float) -> str:
    """All digits of a whole number, however large."""
    return str(int(value)) if value == int(value) else f"{value:g}"


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
