"""HTTP of the sandbox: `POST /v1/run`, `/v1/judge` and their batches, and what a cluster wants to know of the service.

A client that goes away is no longer served: what it asked for is taken out of the queue, or ended if it runs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rljob.sandbox.judge import CheckerFault
from rljob.sandbox.openapi import document
from rljob.sandbox.queue import Place
from rljob.sandbox.scheduler import Draining, TooLate
from rljob.sandbox.service import Busy, CannotFit, Service
from rljob.wire.sandbox import JudgeBatch, JudgeLine, JudgeRequest, RunBatch, RunLine, RunRequest

LARGEST_BODY = 64 << 20
"""Bytes."""
_RETRY_ELSEWHERE = 1
"""Seconds after which a client of a stopping service asks again: its connection then leads to another one."""

_NOBODY = 499
"""Status of an answer that nobody waits for any more."""


def create_app(service: Service) -> Starlette:
    """The routes. The service's pool is started and stopped by the caller."""
    described = document()

    async def run(request: Request) -> Response:
        return await _one(service, request, RunRequest, service.run)

    async def judge(request: Request) -> Response:
        return await _one(service, request, JudgeRequest, service.judge)

    async def run_batch(request: Request) -> Response:
        return await _many(service, request, RunBatch, RunLine, service.run)

    async def judge_batch(request: Request) -> Response:
        return await _many(service, request, JudgeBatch, JudgeLine, service.judge)

    async def languages(request: Request) -> Response:
        return _json(service.languages())

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        status = "draining" if service.draining else "ok" if service.pool.works else "no slot can be made anew, the log says why"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def show_metrics(request: Request) -> Response:
        slots, pool = service.slots, service.pool
        page = service.metrics.text(
            slots.waiting, service.admission.requests_in, slots.count, slots.free, pool.slots_rebuilt, pool.protections()
        )
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    posts = {"/v1/run": run, "/v1/judge": judge, "/v1/run:batch": run_batch, "/v1/judge:batch": judge_batch}
    gets = {"/v1/languages": languages, "/healthz": health, "/readyz": ready, "/metrics": show_metrics, "/openapi.json": openapi}
    routes = [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
    return Starlette(routes=[*routes, *(Route(path, handler) for path, handler in gets.items())])


class _TooLarge(Exception):
    pass


class _Invalid(Exception):
    pass


_REFUSED = (_Invalid, _TooLarge, Busy, CannotFit, Draining, TooLate, CheckerFault)


async def _one[Q: (RunRequest, JudgeRequest)](
    service: Service, request: Request, message: type[Q], work: Callable[[Q, Place], Coroutine[Any, Any, BaseModel]]
) -> Response:
    try:
        body = await _body(request)
        asked = _parse(message, body)
        _check(service, asked)
        with service.admit([asked], len(body)) as (place,):
            result = await _while_connected(request.receive, work(asked, place))
            return Response(status_code=_NOBODY) if result is None else _json(result)
    except ClientDisconnect:
        return Response(status_code=_NOBODY)
    except _REFUSED as error:
        return _refusal(service, error)


async def _many[L: (RunLine, JudgeLine)](
    service: Service, request: Request, batch: type[RunBatch] | type[JudgeBatch], line: type[L], work: Any
) -> Response:
    try:
        body = await _body(request)
        asked = _parse(batch, body)
        items: Sequence[RunRequest | JudgeRequest] = asked.items
        for index, item in enumerate(items):
            _check(service, item, f"items.{index}.")
    except ClientDisconnect:
        return Response(status_code=_NOBODY)
    except _REFUSED as error:
        return _refusal(service, error)
    return _Batch(service, items, len(body), line, work)


class _Batch(Response):
    """The answer to a batch: admits its items and sends a line for each, for as long as the client listens."""

    def __init__(
        self,
        service: Service,
        items: Sequence[Any],
        size: int,
        line: type[RunLine] | type[JudgeLine],
        work: Callable[[Any, Place], Awaitable[Any]],
    ) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self.service, self.items, self.size, self.line, self.work = service, items, size, line, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self.service.admit(self.items, self.size) as places:
                await _while_connected(receive, self._send_lines(places, send))
        except _REFUSED as error:
            await _refusal(self.service, error)(scope, receive, send)

    async def _send_lines(self, places: Sequence[Place], send: Send) -> bool:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        tasks = [asyncio.create_task(self._line(index, place)) for index, place in enumerate(places)]
        try:
            for ended in asyncio.as_completed(tasks):
                line = (await ended).model_dump_json().encode() + b"\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    async def _line(self, index: int, place: Place) -> RunLine | JudgeLine:
        try:
            return self.line(index=index, status=200, result=await self.work(self.items[index], place))
        except (CheckerFault, Draining, TooLate) as error:
            return self.line(index=index, status=_refusal(self.service, error).status_code, error=_text(error))


async def _body(request: Request) -> bytes:
    """The body, as long as it is not too large."""
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise _TooLarge(f"the body has more than {LARGEST_BODY} bytes; split it")
        parts.append(part)
    return b"".join(parts)


def _parse[M: BaseModel](message: type[M], body: bytes) -> M:
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise _Invalid(f"{where}: {first['msg']} (not a {message.__name__}, see /openapi.json)") from None


def _check(service: Service, request: RunRequest | JudgeRequest, where: str = "") -> None:
    try:
        service.check(request)
    except ValueError as error:
        raise _Invalid(f"{where}{error}") from None


async def _while_connected[R](receive: Receive, work: Coroutine[Any, Any, R]) -> R | None:
    """The result; None if the client went away first, and then the work is cancelled."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(message: BaseModel) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _refusal(service: Service, error: Exception) -> Response:
    match error:
        case Busy():
            status, reason, headers = 429, "busy", {"Retry-After": str(error.retry_after)}
        case Draining():
            status, reason, headers = 503, "draining", {"Retry-After": str(_RETRY_ELSEWHERE), "Connection": "close"}
        case TooLate():
            status, reason, headers = 503, "late", {}
        case _TooLarge():
            status, reason, headers = 413, "invalid", {"Connection": "close"}
        case _:
            status, reason, headers = 422, "invalid", {}
    service.metrics.refused(reason)
    return JSONResponse({"error": _text(error)}, status, headers)


def _text(error: Exception) -> str:
    match error:
        case TooLate():
            return "the deadline passed before there was a slot; give more time, or more replicas"
        case Draining():
            return "the service is being stopped; ask again"
        case _:
            return str(error)
