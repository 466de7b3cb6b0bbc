"""What in this folder is made, not written: `make chart` (`python -m charts.generate`).

`rljob/values.schema.json` and the table in `rljob/README.md` come from `values.py`, `rljob/files/rljobs.rljob.dev.yaml` from `crds/`, and
`kustomize/` from the chart itself, as `helm template` renders it by default. Tests fail where a file is not what this would write.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from charts.values import Values, values_schema
from tests.cluster.build import binary

HERE = Path(__file__).parent
CHART = HERE / "rljob"
DEFINITION = HERE.parent / "crds" / "rljobs.rljob.dev.yaml"
NAMESPACE = "rljob-system"
MADE = "# Made by `make chart`; do not edit.\n"

Json = dict[str, Any]


def helm_template(helm: str) -> str:
    """The chart's default rendering, as release `rljob` in `rljob-system`."""
    command = [helm, "template", "rljob", str(CHART), "--namespace", NAMESPACE]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def chart_files() -> dict[Path, str]:
    """Files of the chart that are made without Helm."""
    schema = json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"
    readme = CHART / "README.md"
    table = "\n".join(
        ["| value | type | default | |", "|---|---|---|---|", *_rows(values_schema(), "", Values().model_dump(mode="json", by_alias=True))]
    )
    return {
        CHART / "values.schema.json": schema,
        CHART / "files" / DEFINITION.name: DEFINITION.read_text(),
        readme: _MARKED.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", readme.read_text()),
    }


_MARKED = re.compile(r"(<!-- values[^\n]*-->).*(<!-- end -->)", re.DOTALL)


def _rows(schema: Json, prefix: str, defaults: Json) -> Iterator[str]:
    """One row per value that has no values below it."""
    parts = values_schema()["$defs"]
    for name, value in schema["properties"].items():
        part = parts[value["$ref"].removeprefix("#/$defs/")] if "$ref" in value else value
        if "properties" in part:
            yield from _rows(part, f"{prefix}{name}.", defaults[name])
            continue
        default = defaults.get(name)
        shown = "" if default is None else f"`{json.dumps(default)}`"
        yield f"| `{prefix}{name}` | {_kind(value)} | {shown} | {value['description']} |"


def _kind(schema: Json) -> str:
    """Type of a value in a word."""
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    choices = [part["type"] for part in schema.get("anyOf", [schema]) if part["type"] != "null"]
    return " or ".join(choices) + (f" of {schema['items']['type']}" if "items" in schema else "")


def kustomize_files(rendered: str) -> dict[Path, str]:
    """The base for `kubectl apply -k`: the chart's objects without what only Helm reads, and their namespace."""
    objects = [without_helm(item) for item in yaml.safe_load_all(rendered) if item]
    # The settings stand alone, because an overlay starts from a copy of them (docs/install.md).
    files = {"CustomResourceDefinition": "crd.yaml", "ConfigMap": "settings.yaml"}
    # Restricted: the operator needs nothing more, and no job runs here.
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace: Json = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": level}}
    resources = ["namespace.yaml", *files.values(), "operator.yaml"]
    head: Json = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    texts: dict[str, list[Json]] = {"kustomization.yaml": [head], "namespace.yaml": [namespace]}
    for item in objects:
        texts.setdefault(files.get(item["kind"], "operator.yaml"), []).append(item)
    return {HERE / "kustomize" / name: MADE + _dump(items) for name, items in texts.items()}


def without_helm(item: Json) -> Json:
    """An object without Helm's labels and annotations."""
    metadata = dict(item["metadata"])
    for kind in ("labels", "annotations"):
        kept = {k: v for k, v in metadata.pop(kind, {}).items() if not k.startswith("helm.sh/") and v != "Helm"}
        if kept:
            metadata[kind] = kept
    return {**item, "metadata": metadata}


class _Dumper(yaml.SafeDumper):
    """No anchors, and text with line ends as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dump(items: list[Json]) -> str:
    return yaml.dump_all(items, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140)


def main() -> None:
    """Write every made file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--helm", help="the helm to render with; without it, the one of tests/cluster, built if it is not there")
    helm = parser.parse_args().helm or str(binary("helm"))
    for path, text in chart_files().items():
        path.write_text(text)
    for path, text in kustomize_files(helm_template(helm)).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
