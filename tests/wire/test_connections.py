"""Requests are spread over pools, and end when the server says so."""

import asyncio

import httpx
import pytest
from tests.master.virtual import run

from rljob.wire.connections import SpreadTransport


class Pool(httpx.AsyncBaseTransport):
    """Answers after a second; remembers how many waited at a time."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(1)
        self.waiting -= 1
        if request.url.path == "/broken":
            raise httpx.ReadError("gone")
        return httpx.Response(200)


def test_no_pool_waits_for_many_while_another_is_free() -> None:
    pools = [Pool() for _ in range(4)]

    async def ask() -> None:
        async with httpx.AsyncClient(transport=SpreadTransport(pools), base_url="http://engine") as http:
            broken = await asyncio.gather(*(http.get("/broken") for _ in range(4)), return_exceptions=True)
            assert all(isinstance(error, httpx.ReadError) for error in broken)
            await asyncio.gather(*(http.get("/") for _ in range(12)))

    run(ask())
    assert [pool.most for pool in pools] == [3, 3, 3, 3]


class Server:
    """Answers `ok` to everything, and counts its connections."""

    def __init__(self, closes: bool = False) -> None:
        """If it `closes`, each connection after its answer."""
        self.closes = closes
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                if self.closes:
                    break
        except asyncio.IncompleteReadError:
            pass  # the client has gone
        finally:
            writer.close()


async def ask(server: Server, times: int, pause: float) -> list[int]:
    """What it answers to one request after another, with pauses of so many seconds between them."""
    async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
        address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(transport=SpreadTransport(), base_url=address) as http:
            answers = []
            for _ in range(times):
                answers.append((await http.get("/")).status_code)
                await asyncio.sleep(pause)
            return answers


def test_a_client_closes_no_idle_connection_by_its_own_clock() -> None:
    """Else it may be one that a request has just been given (httpx closes after 5 s)."""
    server = Server()
    assert asyncio.run(ask(server, times=2, pause=6)) == [200, 200]
    assert server.connections == 1


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    server = Server(closes=True)
    assert asyncio.run(ask(server, times=20, pause=0.02)) == [200] * 20
    assert server.connections == 20


def test_a_proxy_of_the_environment_is_not_for_the_processes_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    assert asyncio.run(ask(Server(), times=1, pause=0)) == [200]
