"""The CRD reference as a page: every field, from the schema that the cluster gets. `python -m rljob.api.reference` prints it."""

from collections.abc import Iterator
from typing import Any

from rljob.api.crd import job_schema
from rljob.api.explain import kind_of
from rljob.api.job import GROUP, KIND, VERSION

Schema = dict[str, Any]

_HEAD = f"""# {KIND} reference

`{GROUP}/{VERSION}`, `kind: {KIND}`, namespaced, `kubectl get rlj`. Made by `make docs` from the models;
`rljob explain FIELD` and `kubectl explain rljob.FIELD` say the same on a terminal.
A field without a default and without "required" can be left out.
"""


def reference() -> str:
    """`docs/crd-reference.md`: one table per object, in the order of the spec."""
    schema = job_schema()["properties"]
    parts = [_HEAD]
    for top in ("spec", "status"):
        parts += (_section(path, part) for path, part in _objects(top, schema[top]))
    return "\n".join(parts)


def _objects(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every object with fields, parents first."""
    yield path, schema
    for name, field in schema["properties"].items():
        inner = _inner(field)
        if inner.get("properties"):
            yield from _objects(f"{path}.{name}" + ("[]" if field.get("type") == "array" else ""), inner)


def _inner(schema: Schema) -> Schema:
    items: Schema = schema.get("items", schema)
    return items


def _section(path: str, schema: Schema) -> str:
    lines = [f"## {path}", "", _cell(schema.get("description", "")), ""]
    lines += [f"- {rule['message']}" for rule in schema.get("x-kubernetes-validations", [])]
    lines += [""] if "x-kubernetes-validations" in schema else []
    lines += ["| field | type | |", "|---|---|---|"]
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        kind = kind_of(field) + (", required" if name in required else "")
        lines.append(f"| {_name(path, name, field)} | {_cell(kind)} | {_cell(field.get('description', ''))} |")
    return "\n".join([*lines, ""])


def _name(path: str, name: str, field: Schema) -> str:
    """The field's name, linked to its own table if it has one."""
    if not _inner(field).get("properties"):
        return f"`{name}`"
    anchor = f"{path}.{name}".replace(".", "").replace("[]", "").lower()
    return f"[`{name}`](#{anchor})"


def _cell(text: str) -> str:
    """One line that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
