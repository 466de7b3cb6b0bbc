"""`rljob explain spec.rollout`: what a field is for, from the same schema that the cluster gets, which is silent on metadata alone."""

import difflib
from typing import Any

from rljob.api.base import INT32, digits
from rljob.api.crd import job_schema, structural
from rljob.api.errors import ConfigurationError
from rljob.api.job import RLJob
from rljob.api.load import all_fields
from rljob.api.metadata import Metadata
from rljob.api.verifiers import OPTIONS

_OPTIONS = "spec.reward.options"


def field_schema(path: str) -> dict[str, Any]:
    """Schema of a field such as `spec.rollout.maxTokens`.

    Raises:
        ConfigurationError: there is no such field; names the near one.
    """
    here: dict[str, Any] = job_schema()
    raw = Metadata.model_json_schema()
    here["properties"]["metadata"] = structural(raw, raw["$defs"])
    walked: list[str] = []
    for name in path.removeprefix("rljob.").split("."):
        fields = here.get("properties") or here.get("items", {}).get("properties", {})
        if name not in fields:
            near = [".".join([*walked, known]) for known in difflib.get_close_matches(name, fields, 1)]
            near = near or [where for known, where in all_fields(RLJob) if known == name]
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(fields)}" if fields else ""
            raise ConfigurationError(f"{'.'.join(walked) or 'RLJob'} has no field {name!r}{hint}")
        here = fields[name]
        walked.append(name)
    return here


def kind_of(schema: dict[str, Any]) -> str:
    """`integer >= 1 = 16`: type, bounds and default in a few signs."""
    kind = schema.get("type", "any")
    if kind == "array":
        kind = f"[]{kind_of({k: v for k, v in schema['items'].items() if k != 'default'})}"
    elif "additionalProperties" in schema:
        kind = f"map[string]{schema['additionalProperties'].get('type', 'any')}"
    text = "|".join(str(v) for v in schema["enum"]) if "enum" in schema else str(kind)
    if "minimum" in schema:
        text += f" {'>' if schema.get('exclusiveMinimum') else '>='} {digits(schema['minimum'])}"
    if schema.get("maximum", INT32) != INT32:
        text += f" {'<' if schema.get('exclusiveMaximum') else '<='} {digits(schema['maximum'])}"
    default = schema.get("default")
    if default not in (None, {}, [], "") and not isinstance(default, dict):
        text += f", default {str(default).lower() if isinstance(default, bool) else default}"
    return text


def explain(path: str) -> list[tuple[int, str, str, str]]:
    """(indentation, name, kind, description) of a field and of the fields directly below it.

    Raises:
        ConfigurationError: there is no such field.
    """
    if path.removeprefix("rljob.").startswith(f"{_OPTIONS}."):
        return _verifier(path.removeprefix("rljob.").removeprefix(f"{_OPTIONS}."))
    schema = field_schema(path)
    rows = [(0, path, kind_of(schema), str(schema.get("description", "")))]
    below = schema.get("properties") or schema.get("items", {}).get("properties", {})
    required = schema.get("required", [])
    for name, field in below.items():
        kind = kind_of(field) + (", required" if name in required else "")
        rows.append((1, name, kind, str(field.get("description", ""))))
    if path.removeprefix("rljob.") == _OPTIONS:
        rows += [(1, name, "options", f"{model.__doc__} See {_OPTIONS}.{name}") for name, model in OPTIONS.items()]
    return rows


def _verifier(name: str) -> list[tuple[int, str, str, str]]:
    """The options of one verifier, which no schema of the cluster holds."""
    if name not in OPTIONS:
        near = difflib.get_close_matches(name, OPTIONS, 1)
        hint = f"did you mean {_OPTIONS}.{near[0]}?" if near else f"there are {', '.join(OPTIONS)}"
        raise ConfigurationError(f"there is no verifier {name!r}; {hint}")
    raw = OPTIONS[name].model_json_schema()
    fields = structural(raw, raw.get("$defs", {}))["properties"]
    rows = [(0, f"{_OPTIONS}.{name}", "object", str(OPTIONS[name].__doc__))]
    for option, field in fields.items():
        rows.append((1, option, kind_of(field), str(field.get("description", ""))))
        below = field.get("items", {}).get("properties", {})
        rows += [(2, inner, kind_of(schema), str(schema.get("description", ""))) for inner, schema in below.items()]
    return rows
