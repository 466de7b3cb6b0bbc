"""What the installed CustomResourceDefinition fills into a spec.

An upgrade brings the definition first. From then on the API server hands out every job with the defaults of the new fields, those that
nobody has touched included, and their generation stays. A field at its default asks for what this operator does anyway, so it passes it
over. Any other value somebody has asked for, and only a newer operator can give it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rljob.api import GROUP, KIND, VERSION

DOCUMENT = f"/openapi/v3/apis/{GROUP}/{VERSION}"
"""Where the API server publishes it: as `/version`, for every account."""
_NAME = ".".join([*reversed(GROUP.split(".")), VERSION, KIND])

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]


def schema_of(document: Mapping[str, Any]) -> Schema:
    """The schema of an RLJob in what an API server publishes; empty if it is not there."""
    found: Schema = document.get("components", {}).get("schemas", {}).get(_NAME, {})
    return found


def pass_over(job: dict[str, Any], fields: Iterable[Path], schema: Schema) -> bool:
    """Remove those of the fields that stand as the definition fills them in. Was there one?"""
    passed = False
    for *above, name in fields:
        value: Any = job
        at = schema
        for part in above:
            value, at = value[part], _below(at, part)
        default = at.get("properties", {}).get(name, {}).get("default")
        if default is not None and value[name] == default:
            del value[name]
            passed = True
    return passed


def _below(schema: Schema, part: str | int) -> Schema:
    found: Schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return found or schema.get("additionalProperties", {})
