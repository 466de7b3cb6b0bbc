"""HTTP for hundreds of requests in flight.

httpcore's connection pool looks at every pair of its connections for every request (`AsyncConnectionPool._assign_requests_to_connections`,
httpcore 1.0): 320 requests in flight cost ten seconds of CPU per thousand requests. Many small pools do not.
"""

import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx

POOLS = 64


class SpreadTransport(httpx.AsyncBaseTransport):
    """Sends each request through the pool that waits for the fewest answers."""

    def __init__(self, pools: Sequence[httpx.AsyncBaseTransport] | None = None) -> None:
        self._pools = list(pools) if pools is not None else _pools(POOLS)
        self._waiting = [0] * len(self._pools)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        chosen = min(range(len(self._pools)), key=self._waiting.__getitem__)
        self._waiting[chosen] += 1
        try:
            return await self._pools[chosen].handle_async_request(request)
        finally:
            self._waiting[chosen] -= 1

    async def __aenter__(self) -> Self:
        for pool in self._pools:
            await pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        for pool in self._pools:
            await pool.__aexit__(kind, error, trace)


def _pools(count: int) -> list[httpx.AsyncBaseTransport]:
    # One context for all: making one reads every certificate of the machine.
    context = ssl.create_default_context()
    # Our servers (uvicorn) close a connection that was idle for 5 s, engines for longer (`rljob.rollout.engine.KEEP_ALIVE`); one that is
    # reused just then answers with a ReadError.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    return [httpx.AsyncHTTPTransport(verify=context, limits=limits) for _ in range(count)]
