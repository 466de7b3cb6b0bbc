"""The description is valid, complete, and describes the messages that are really sent."""

import json
from typing import Any

import httpx
import jsonschema
import pytest
from tests.sandbox.twins import TwinPool

from rljob.sandbox.app import create_app
from rljob.sandbox.openapi import document
from rljob.sandbox.service import Service
from rljob.wire.sandbox import JudgeRequest, Limits, RunRequest


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in _references(value)]
    return [reference for value in node for reference in _references(value)] if isinstance(node, list) else []


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}


def test_every_schema_is_a_json_schema_and_every_reference_leads_somewhere() -> None:
    described = document()
    schemas = described["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert {reference.removeprefix("#/components/schemas/") for reference in _references(described)} <= schemas.keys()


def test_it_has_the_form_of_an_openapi_document() -> None:
    described = document()
    assert described["openapi"] == "3.1.0"
    assert {"title", "version"} <= described["info"].keys()
    for path, item in described["paths"].items():
        assert path.startswith("/")
        for method, operation in item.items():
            assert method in ("get", "post")
            assert operation["summary"].endswith(".")
            assert "200" in operation["responses"]
            assert all(response["description"] for response in operation["responses"].values())


def test_every_route_is_described() -> None:
    routes = {(route.path, method.lower()) for route in create_app(Service(TwinPool(), 1)).routes for method in route.methods}  # type: ignore[attr-defined]
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    assert {(path, method) for path, method in routes if method != "head"} - described == {("/openapi.json", "get")}


def test_requests_and_answers_are_what_it_describes() -> None:
    run = RunRequest(language="python", code="", limits=Limits(cpu_seconds=1))
    judge = JudgeRequest.model_validate({"language": "python", "code": "", "tests": [{"expected": "1"}]})
    jsonschema.validate(json.loads(run.model_dump_json()), _schema("RunRequest"), jsonschema.Draft202012Validator)
    jsonschema.validate(json.loads(judge.model_dump_json()), _schema("JudgeRequest"), jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"language": "python"}, _schema("RunRequest"), jsonschema.Draft202012Validator)


@pytest.mark.asyncio
async def test_it_is_served() -> None:
    transport = httpx.ASGITransport(create_app(Service(TwinPool(), 1)))
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as http:
        assert (await http.get("/openapi.json")).json() == document()
