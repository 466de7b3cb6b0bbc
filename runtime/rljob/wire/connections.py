"""HTTP connections between the processes of a job: when an idle one ends, and how hundreds of requests are in flight.

**A client closes no idle connection by its clock.** httpcore's pool (1.0) picks the idle ones that have expired and closes them one after
another; one of them may have been given to a request meanwhile, which then ends with a ReadError (anyio's ClosedResourceError). A process
that is short of processor time, and gets its answers in bursts, loses dozens of requests in this way. So the server decides: it keeps idle
connections for `IDLE_SECONDS`, and a client drops those that were closed when it next looks.

**Many small pools.** A pool looks at every pair of its connections for every request
(`AsyncConnectionPool._assign_requests_to_connections`): 320 requests in flight cost ten seconds of CPU per thousand requests. Sixty-four
pools do not.
"""

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

IDLE_SECONDS = 600
"""For how long our servers keep a connection on which nothing is asked (uvicorn: 5 s)."""
POOLS = 64
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A machine that has gone without a word has closed its connections after 90 s: nobody else would ever end them."""


def pool(most: int | None = None, uds: Path | None = None, verify: ssl.SSLContext | bool = True) -> httpx.AsyncHTTPTransport:
    """One pool of connections. A proxy of the environment is not for it.

    Args:
        most: connections at a time.
        uds: socket of the server, if it is on this machine.
    """
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=None, keepalive_expiry=None)
    if uds is not None:
        return httpx.AsyncHTTPTransport(limits=limits, uds=str(uds))
    return httpx.AsyncHTTPTransport(limits=limits, verify=verify, socket_options=_KEEPALIVE)


class SpreadTransport(httpx.AsyncBaseTransport):
    """Sends each request through the pool that waits for the fewest answers."""

    def __init__(self, pools: Sequence[httpx.AsyncBaseTransport] | None = None, most: int | None = None) -> None:
        """
        Args:
            pools: by default 64 of one kind.
            most: connections that these have at a time, all together, shared out evenly.
        """
        self._pools = list(pools) if pools is not None else _pools(POOLS, most)
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


def _pools(count: int, most: int | None) -> list[httpx.AsyncBaseTransport]:
    # One context for all: making one reads every certificate of the machine.
    context = ssl.create_default_context()
    each = None if most is None else max(1, most // count)
    return [pool(each, verify=context) for _ in range(count)]
