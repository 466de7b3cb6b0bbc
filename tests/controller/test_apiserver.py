"""The HTTP client against a server that misbehaves."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import kopf
import pytest
from aiohttp import web

from rljob.api import InfrastructureError
from rljob.controller.apiserver import ApiServer
from rljob.controller.client import ApiError
from rljob.controller.connection import Connection
from rljob.controller.kinds import KINDS, Key, Ref
from rljob.controller.metrics import Metrics
from rljob.controller.progress import Target, by_api_server
from rljob.manifests.types import FIELD_MANAGER

POD = Ref("Pod", "default", "p")


@asynccontextmanager
async def client(handle: Callable[[web.Request], Awaitable[web.StreamResponse]], seconds: float = 20.0) -> AsyncIterator[ApiServer]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    connection = Connection(kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        async with ApiServer(connection, Metrics(), random.Random(0), seconds) as api:
            yield api
    finally:
        await runner.cleanup()


def failure(code: int, reason: str, message: str, **headers: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=code, headers=headers)


@pytest.mark.parametrize("first", [401, 429, 503, None])
def test_what_passes_is_tried_again(first: int | None) -> None:
    calls: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        calls.append(request.method)
        if len(calls) > 1:
            return web.json_response({"metadata": {"name": "p"}})
        if first is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return failure(first, "x", "y", **{"Retry-After": "0"})

    async def story() -> None:
        async with client(handle) as api:
            assert (await api.get(POD))["metadata"]["name"] == "p"
        assert calls == ["GET", "GET"]

    asyncio.run(story())


def test_an_answer_that_is_no_json_is_a_failure_like_others() -> None:
    """What a proxy on the way, or a master behind the API server, says must not end the operator."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>Sign in</html>\n")

    async def story() -> None:
        async with client(handle) as api:
            with pytest.raises(ApiError, match="GET /x: answered 200 with what is no JSON") as caught:
                await api.raw("/x", once=True)
            assert caught.value.temporary
            with pytest.raises(InfrastructureError):
                await by_api_server(api)(Target(Key("default", "a"), "uid", "10.0.0.1", "a-master"))
            with pytest.raises(ApiError, match="no JSON"):
                async with api.watch(KINDS["Pod"], "default", "1", "") as changes:
                    await anext(changes)

    asyncio.run(story())


class Slow:
    """Answers only after the client's patience, the first few times; what was asked for is done nevertheless."""

    def __init__(self, times: int) -> None:
        self.times, self.calls = times, 0
        self.made: list[str] = []
        self.free = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        answer = web.json_response({"metadata": {"name": "p"}})
        if request.method == "POST":
            name = (await request.json())["metadata"]["name"]
            if name in self.made:
                answer = failure(409, "AlreadyExists", f"{name} already exists")
            else:
                self.made.append(name)
        if self.calls <= self.times:
            await self.free.wait()
        return answer


def test_an_answer_that_does_not_come_in_time_is_asked_for_again() -> None:
    async def story() -> None:
        slow = Slow(2)
        async with client(slow.answer, 0.2) as api:
            assert (await api.get(POD))["metadata"]["name"] == "p"
            assert slow.calls == 3
            slow.free.set()

    asyncio.run(story())


def test_a_server_that_never_answers_in_time_is_left_to_the_callers_back_off() -> None:
    async def story() -> None:
        slow = Slow(100)
        async with client(slow.answer, 0.1) as api:
            with pytest.raises(ApiError, match="did not answer") as caught:
                await api.get(POD)
            slow.free.set()
        assert caught.value.temporary

    asyncio.run(story())


def test_what_was_made_and_never_answered_for_is_not_made_twice() -> None:
    """The second try tells that it is there: the caller looks at it then (`reconcile._take_in`)."""

    async def story() -> None:
        slow = Slow(1)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}}
        async with client(slow.answer, 0.2) as api:
            with pytest.raises(ApiError) as caught:
                await api.create(pod)
            slow.free.set()
        assert caught.value.conflict
        assert slow.made == ["p"]

    asyncio.run(story())


@pytest.mark.parametrize("code", [400, 403, 404, 409, 410, 422])
def test_a_refusal_is_told_at_once_with_the_servers_words(code: int) -> None:
    calls: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        calls.append(request.method)
        return failure(code, "Reason", "what is wrong")

    async def story() -> None:
        async with client(handle) as api:
            with pytest.raises(ApiError, match="what is wrong") as caught:
                await api.get(POD)
        assert (caught.value.code, caught.value.reason) == (code, "Reason")
        assert len(calls) == 1

    asyncio.run(story())


def test_a_long_wait_is_left_to_the_caller() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return failure(429, "TooManyRequests", "slow", **{"Retry-After": "120"})

    async def story() -> None:
        async with client(handle) as api:
            with pytest.raises(ApiError) as caught:
                await api.get(POD)
        assert caught.value.retry_after == 120

    asyncio.run(story())


def test_requests_that_were_refused_together_do_not_come_back_together() -> None:
    """A server tells all of them the same `Retry-After`."""
    tries: list[float] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        tries.append(asyncio.get_running_loop().time())
        return web.json_response({}) if len(tries) > 8 else failure(429, "TooManyRequests", "slow", **{"Retry-After": "1"})

    async def story() -> None:
        async with client(handle) as api:
            await asyncio.gather(*(api.get(POD) for _ in range(8)))
        assert len(tries) == 16
        assert tries[8] - tries[7] >= 0.9
        assert tries[15] - tries[8] > 0.1

    asyncio.run(story())


def test_a_field_that_the_server_does_not_know_is_a_refusal_and_not_left_out() -> None:
    calls: list[tuple[str, str]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        calls.append((request.method, request.query.get("fieldValidation", "")))
        if request.method == "GET":
            return web.json_response({"metadata": {"name": "p"}})
        if request.method == "POST":
            return failure(400, "BadRequest", 'strict decoding error: unknown field "spec.nodeselector"')
        # A server says so in its own way, as if the fault were its own.
        return failure(
            500, "", "failed to create typed patch object (default/p; /v1, Kind=Pod): .spec.nodeselector: field not declared in schema"
        )

    async def story() -> None:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {"nodeselector": {}}}
        async with client(handle) as api:
            for request in (api.create(pod), api.apply(pod, "u")):
                with pytest.raises(ApiError, match="nodeselector") as caught:
                    await request
                assert (caught.value.code, caught.value.temporary) == (400, False)
        assert calls == [("POST", "Strict"), ("GET", ""), ("PATCH", "")]

    asyncio.run(story())


@pytest.mark.parametrize("asked", ["5", "4"])
def test_what_is_written_only_over_a_known_version_is_so_also_the_first_time(asked: str) -> None:
    """The first apply to what we have created makes it applied, which is a version of its own."""
    there: dict[str, Any] = {"metadata": {"name": "p", "resourceVersion": "5", "managedFields": [MADE]}}

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method == "PATCH" and request.content_type == "application/json-patch+json":
            for test in (step for step in await request.json() if step["op"] == "test" and step["path"] == "/metadata/resourceVersion"):
                if test["value"] != there["metadata"]["resourceVersion"]:
                    return failure(422, "Invalid", "the server rejected our request due to an error in our request")
            there["metadata"] |= {"resourceVersion": "6", "managedFields": [MADE | {"operation": "Apply"}]}
        elif request.method == "PATCH" and (await request.json())["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            return failure(409, "Conflict", "the object has been modified")
        return web.json_response(there)

    async def story() -> None:
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "resourceVersion": asked}}
        async with client(handle) as api:
            if asked == "5":
                assert (await api.apply(manifest, "u")).object["metadata"]["resourceVersion"] == "6"
            else:
                with pytest.raises(ApiError) as caught:
                    await api.apply(manifest, "u")
                assert caught.value.conflict

    asyncio.run(story())


MADE = {"manager": FIELD_MANAGER, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {}}


def test_deleting_what_is_gone_or_somebody_elses_is_no_error() -> None:
    bodies: list[Any] = []
    answers = [failure(404, "NotFound", "gone"), failure(409, "Conflict", "uid")]

    async def handle(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return answers.pop(0)

    async def story() -> None:
        async with client(handle) as api:
            await api.delete(POD, "u1")
            await api.delete(POD, "u1")
        assert bodies[0]["preconditions"] == {"uid": "u1"}

    asyncio.run(story())


def test_a_finalizer_is_taken_off_the_object_of_that_uid_alone() -> None:
    bodies: list[Any] = []
    answers = [failure(404, "NotFound", "gone"), failure(422, "Invalid", "uid"), failure(403, "Forbidden", "no right")]

    async def handle(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return answers.pop(0)

    async def story() -> None:
        async with client(handle) as api:
            await api.release(POD, "u1", "example.com/held")
            await api.release(POD, "u1", "example.com/held")
            with pytest.raises(ApiError, match="no right"):
                await api.release(POD, "u1", "example.com/held")
        assert bodies[0] == {"metadata": {"uid": "u1", "$deleteFromPrimitiveList/finalizers": ["example.com/held"]}}

    asyncio.run(story())


def test_a_webhook_that_does_not_answer_is_told_of_before_it_is_asked_again() -> None:
    """Each try may take half a minute."""
    calls: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        calls.append(request.method)
        return failure(500, "InternalError", 'Internal error occurred: failed calling webhook "a.b": context deadline exceeded')

    async def story() -> None:
        async with client(handle) as api:
            with pytest.raises(ApiError, match="failed calling webhook") as caught:
                await api.get(POD)
        assert (caught.value.webhook, caught.value.temporary, len(calls)) == (True, True, 1)

    asyncio.run(story())


def test_a_watch_takes_lines_of_any_length_and_tells_of_410() -> None:
    big = {"type": "ADDED", "object": {"metadata": {"name": "p", "annotations": {"a": "x" * 300_000}}}}
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.query["allowWatchBookmarks"] == "true"
        response = web.StreamResponse()
        await response.prepare(request)
        text = "".join(json.dumps(line) + "\n" for line in (big, gone)).encode()
        for start in range(0, len(text), 70_000):
            await response.write(text[start : start + 70_000])
        return response

    async def story() -> None:
        seen: list[str] = []
        async with client(handle) as api:
            with pytest.raises(ApiError) as caught:
                await follow(api, seen)
        assert seen == ["p"]
        assert caught.value.expired

    asyncio.run(story())


async def follow(api: ApiServer, seen: list[str]) -> None:
    async with api.watch(KINDS["Pod"], None, "1", "") as changes:
        async for change in changes:
            seen.append(change.object["metadata"]["name"])


def test_metadata_alone_is_asked_for_where_that_is_enough() -> None:
    accepted: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        accepted.append(request.headers.get("Accept", ""))
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": ""}, "items": []})

    async def story() -> None:
        async with client(handle) as api:
            assert (await api.list_objects(KINDS["Service"], "default")).version == "7"
            await api.list_objects(KINDS["Pod"], None)
        assert "as=PartialObjectMetadataList" in accepted[0]
        assert "Partial" not in accepted[1]

    asyncio.run(story())
