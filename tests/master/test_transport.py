"""Requests are spread over pools."""

import asyncio

import httpx
from tests.master.virtual import run

from rljob.master.transport import SpreadTransport


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
