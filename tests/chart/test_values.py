"""values.yaml, values.schema.json and the operator's settings are one thing."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from charts.generate import chart_files
from charts.values import FILLED_IN, Values
from tests.chart.rendering import FOLDER, ROOT

from rljob.manifests import Settings

TEXT = (FOLDER / "values.yaml").read_text()
DEFAULTS = yaml.safe_load(TEXT)
SCHEMA = json.loads((FOLDER / "values.schema.json").read_text())


def test_made_files_are_up_to_date() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in chart_files().items() if path.read_text() != text]
    assert stale == [], "run `make chart`"


def test_the_charts_definition_is_the_projects() -> None:
    name = "rljobs.rljob.dev.yaml"
    assert (FOLDER / "files" / name).read_bytes() == (ROOT / "crds" / name).read_bytes()


def test_defaults_are_those_of_the_models() -> None:
    plain = Values().model_dump(mode="json", by_alias=True, exclude_none=True)
    for name in FILLED_IN:
        plain["settings"].pop(name, None)
    del plain["settings"]["leaderElection"]["lease"]
    del plain["global"]
    assert DEFAULTS == plain


def test_every_field_of_the_settings_file_can_be_set_or_is_filled_in() -> None:
    fields = {field.alias for field in Settings.model_fields.values()}
    assert fields == SCHEMA["$defs"]["Settings"]["properties"].keys() | set(FILLED_IN)


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"imagePullSecrets": ["regcred.example.com"]}, True),
        ({"imagePullSecrets": ["RegCred"]}, False),
        ({"settings": {"imagePullSecrets": ["regcred.example.com"]}}, True),
        ({"settings": {"imagePullSecrets": ["a b"]}}, False),
        ({"settings": {"metricsPort": 65535}}, True),
        ({"settings": {"metricsPort": 65536}}, False),
        ({"settings": {"storageSize": "10Gi"}}, True),
        ({"settings": {"storageSize": "0Gi"}}, False),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, True),
        ({"podDisruptionBudget": {"maxUnavailable": -1}}, False),
        ({"podDisruptionBudget": {"maxUnavailable": "100%"}}, True),
        ({"podDisruptionBudget": {"maxUnavailable": "101%"}}, False),
        ({"images": {"registry": "registry.example:5000/some_team/rljob/"}}, True),
        ({"images": {"registry": "[fd00::1]:5000"}}, True),
        ({"images": {"registry": "https://registry.example/rljob"}}, False),
        ({"images": {"registry": ""}}, False),
        ({"images": {"registry": "registry.example//rljob"}}, False),
    ],
    ids=str,
)
def test_what_no_cluster_takes_is_refused_and_what_one_takes_is_not(values: dict[str, Any], right: bool) -> None:
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(values) == right


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield path, schema
        for name, part in schema.items():
            yield from _objects(part, f"{path}/{name}")


def test_the_schema_is_closed_and_describes_every_value() -> None:
    for path, schema in _objects(SCHEMA):
        assert schema["additionalProperties"] is False, path
        for name, value in schema["properties"].items():
            assert "$ref" in value or value.get("description"), f"{path}.{name}"
