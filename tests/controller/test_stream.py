"""kopf's stream of RLJobs against a server that forgets, fails and breaks off."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import kopf
import pytest
from aiohttp import web
from tests.controller.world import rljob
from tests.master.virtual import until

from rljob.api import GROUP, VERSION
from rljob.controller.apiserver import ApiServer
from rljob.controller.connection import Connection
from rljob.controller.kinds import Key
from rljob.controller.main import Operator, run_kopf
from rljob.controller.metrics import Metrics
from rljob.controller.progress import Poller, Target
from rljob.manifests import Settings

GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}}
_RESOURCES = [{"name": "rljobs", "kind": "RLJob", "singularName": "rljob", "namespaced": True, "verbs": ["list", "watch", "get"]}]
_NAMESPACES = [{"name": "namespaces", "kind": "Namespace", "singularName": "namespace", "namespaced": False, "verbs": ["list"]}]
_GROUP = {"name": GROUP, "versions": [{"version": VERSION}], "preferredVersion": {"version": VERSION}}


class Jobs:
    """An API server of RLJobs alone. Each watch ends as `ends` says; after the last one they stay open."""

    def __init__(self, *ends: str) -> None:
        self.ends = [*ends]
        self.items: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.stays = asyncio.Event()

    def add(self, name: str) -> None:
        job = rljob(name)
        job["metadata"] |= {"uid": name, "resourceVersion": str(10 + len(self.items)), "generation": 1}
        self.items.append(job)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/apis":
            return web.json_response({"groups": [_GROUP]})
        if path == f"/apis/{GROUP}/{VERSION}":
            return web.json_response({"resources": _RESOURCES})
        if path in ("/api", "/api/v1"):
            return web.json_response({"versions": ["v1"], "resources": _NAMESPACES})
        if "watch" in request.query:
            return await self._watch(request)
        self.asked.append("list")
        return web.json_response({"items": self.items, "metadata": {"resourceVersion": str(10 + len(self.items))}})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        end = self.ends.pop(0) if self.ends else "stays"
        self.asked.append(f"watch from {request.query['resourceVersion']}: {end}")
        if end.isdigit():
            return web.json_response({"kind": "Status", "code": int(end), "message": "no"}, status=int(end))
        response = web.StreamResponse()
        await response.prepare(request)
        if end == "410 in the stream":
            # What comes while nobody listens.
            self.add(f"late-{len(self.items)}")
            await response.write(json.dumps(GONE).encode() + b"\n")
        elif end == "broken off":
            assert request.transport is not None
            request.transport.abort()
        else:
            self.stays.set()
            await asyncio.sleep(3600)
        return response


@asynccontextmanager
async def streaming(jobs: Jobs) -> AsyncIterator[tuple[Operator, asyncio.Task[None]]]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", jobs.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    connection = Connection(kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}"))

    async def nobody(target: Target) -> dict[str, Any]:
        raise AssertionError("no master is asked here")

    try:
        async with ApiServer(connection, Metrics()) as api:
            operator = Operator(Settings(), connection, api, Metrics(), Poller(nobody, lambda key: None, Metrics()))
            task = asyncio.create_task(run_kopf(operator))
            yield operator, task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("end", "asked"),
    [
        # A list has what came while nobody listened.
        ("410 in the stream", ["list", "watch from 11", "list", "watch from 12", "list", "watch from 13"]),
        ("broken off", ["list", "watch from 11", "watch from 11", "watch from 11"]),
        ("503", ["list", "watch from 11", "watch from 11", "watch from 11"]),
    ],
)
def test_a_stream_that_ends_goes_on_and_misses_nothing(end: str, asked: list[str]) -> None:
    async def story() -> None:
        jobs = Jobs(end, end)
        jobs.add("a")
        async with streaming(jobs) as (operator, _), asyncio.timeout(60):
            await jobs.stays.wait()
            wanted = {Key("default", job["metadata"]["name"]) for job in jobs.items}
            await until(lambda: operator.cache.jobs.keys() == wanted)
        assert [what.partition(":")[0] for what in jobs.asked] == asked

    asyncio.run(story())


def test_a_stream_that_is_refused_for_good_ends_the_process_which_is_started_anew() -> None:
    """It would be worse to go on without hearing of anything. (API servers say 410 in the stream, not in its head.)"""

    async def story() -> None:
        jobs = Jobs("410")
        async with streaming(jobs) as (_, stream), asyncio.timeout(60):
            (ended,) = await asyncio.gather(stream, return_exceptions=True)
        assert getattr(ended, "status", None) == 410

    asyncio.run(story())
