"""`/openapi.json`: the API described by the very messages that it reads and writes."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rljob.wire.sandbox import (
    JudgeBatch,
    JudgeLine,
    JudgeRequest,
    JudgeResult,
    Languages,
    Refusal,
    RunBatch,
    RunLine,
    RunRequest,
    RunResult,
)

_CALLS: tuple[tuple[str, str, type[BaseModel], type[BaseModel], str], ...] = (
    ("/v1/run", "Run one program.", RunRequest, RunResult, "application/json"),
    ("/v1/judge", "Judge a submission against tests.", JudgeRequest, JudgeResult, "application/json"),
    ("/v1/run:batch", "Run many programs; one line per item, as they end.", RunBatch, RunLine, "application/x-ndjson"),
    ("/v1/judge:batch", "Judge many submissions; one line per item, as they end.", JudgeBatch, JudgeLine, "application/x-ndjson"),
)
_REFUSALS = {
    "413": "The body is too large.",
    "422": "The request can never be answered; the error says what to change.",
    "429": "No room now; `Retry-After` says when to try again.",
    "503": "The deadline passed before there was a slot, or the service is being stopped.",
}
_PLAIN = {"/healthz": "The process is alive.", "/readyz": "The service takes requests.", "/metrics": "Prometheus metrics."}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    messages: list[type[BaseModel]] = [Languages, Refusal]
    for _, _, asked, answered, _ in _CALLS:
        messages += [asked, answered]
    _, schemas = models_json_schema([(message, "validation") for message in messages], ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {path: {"post": _call(text, asked, answered, kind)} for path, text, asked, answered, kind in _CALLS}
    paths["/v1/languages"] = {"get": {"summary": "What may be asked for.", "responses": {"200": _body(Languages, "Languages and limits.")}}}
    for path, text in _PLAIN.items():
        paths[path] = {"get": {"summary": text, "responses": {"200": {"description": text}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "RLJob sandbox", "version": "1", "description": "Runs and judges programs that nobody trusts."},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _call(text: str, asked: type[BaseModel], answered: type[BaseModel], kind: str) -> dict[str, Any]:
    answers = {"200": _body(answered, "The result.", kind)}
    for status, meaning in _REFUSALS.items():
        answers[status] = _body(Refusal, meaning)
    answers["429"]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{asked.__name__}"}}}
    return {"summary": text, "requestBody": {"required": True, "content": content}, "responses": answers}


def _body(message: type[BaseModel], meaning: str, kind: str = "application/json") -> dict[str, Any]:
    return {"description": meaning, "content": {kind: {"schema": {"$ref": f"#/components/schemas/{message.__name__}"}}}}
