"""The service behind real sockets: clients that go away, and the end."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.sandbox.twins import Gate, TwinPool, until

from rljob.sandbox.server import serve

pytestmark = pytest.mark.asyncio


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def served(pool: TwinPool) -> AsyncIterator[tuple[httpx.AsyncClient, asyncio.Task[int]]]:
    """A client of a running service, and the task that serves."""
    port = _free_port()
    serving = asyncio.create_task(serve(pool, "127.0.0.1", port, 10))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
        async with asyncio.timeout(20):
            while not await _ready(http):
                assert not serving.done()
        yield http, serving
        if not serving.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await serving


async def _ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


def run_of(stdin: str) -> dict[str, str]:
    return {"language": "python", "code": "", "stdin": stdin}


@pytest.mark.parametrize(("path", "body"), [("/v1/run", run_of("a")), ("/v1/run:batch", {"items": [run_of("a"), run_of("b")]})])
async def test_what_a_client_asked_for_ends_when_it_goes_away(path: str, body: object) -> None:
    gate = Gate()
    pool = TwinPool(gate, slots=1)
    async with served(pool) as (http, _):
        asking = asyncio.create_task(http.post(path, json=body))
        await gate.begun.get()
        asking.cancel()
        await until(lambda: pool.cancelled == 1 and pool.running == 0)
        gate.let("c")
        assert (await http.post("/v1/run", json=run_of("c"))).json()["status"] == "ok"
        assert "b" not in [request.stdin for request in pool.seen]
        assert 'rljob_sandbox_kills_total{reason="gone"} ' in (await http.get("/metrics")).text


async def test_sigterm_lets_what_runs_end_and_stops_the_pool() -> None:
    gate = Gate()
    pool = TwinPool(gate, slots=1)
    async with served(pool) as (http, serving):
        running = asyncio.create_task(http.post("/v1/run", json=run_of("a")))
        await gate.begun.get()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        assert not serving.done()
        gate.let("a")
        assert (await running).json()["status"] == "ok"
        assert await serving == 128 + signal.SIGTERM
        assert not pool.started


async def test_a_batch_comes_over_the_wire_line_by_line() -> None:
    gate = Gate()
    async with (
        served(TwinPool(gate, slots=2)) as (http, _),
        http.stream("POST", "/v1/run:batch", json={"items": [run_of("a"), run_of("b")]}) as answer,
    ):
        lines = answer.aiter_lines()
        gate.let("b")
        assert '"index":1' in await anext(lines)
        gate.let("a")
        assert '"index":0' in await anext(lines)
