"""httpx for hundreds of requests in flight: its requests go through aiohttp.

httpx's own transport (httpcore 1.0) spends two milliseconds of processor time on a request, most of it in Python's HTTP parser and in
looks at every pair of its connections, the more the more of them there are. aiohttp, whose parser is compiled and whose pool is a table,
spends a quarter of that. A master gets thousands of answers in an iteration, on cores that generate them.
"""

import socket
import ssl
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx
from yarl import URL

from rljob.wire.connections import IDLE_SECONDS, KEEPALIVE

_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (TimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
    (aiohttp.ClientError, httpx.ReadError),
)
"""What aiohttp raises -> what httpx does; the first that fits."""


class CrowdTransport(httpx.AsyncBaseTransport):
    """Whole requests and whole answers, over as many connections as there are requests. A proxy of the environment is not for it.

    Of httpx's time limits, connecting and every wait for bytes are kept; `pool` is the limit of the wait for a free connection.
    """

    def __init__(self, most: int | None = None) -> None:
        """`most`: connections at a time; other requests wait."""
        self._most = most or 0
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._session is None:
            self._session = self._open()
        limits = request.extensions.get("timeout", {})
        timeout = aiohttp.ClientTimeout(
            total=None, connect=limits.get("pool"), sock_connect=limits.get("connect"), sock_read=limits.get("read")
        )
        url, headers, body = URL(str(request.url), encoded=True), request.headers.multi_items(), await request.aread()
        try:
            asked = self._session.request(request.method, url, headers=headers, data=body or None, timeout=timeout, allow_redirects=False)
            async with asked as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _translated(error, request) from error
        return httpx.Response(response.status, headers=response.raw_headers, content=content, request=request)

    async def aclose(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        await self.aclose()

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._most, keepalive_timeout=IDLE_SECONDS, ssl=ssl.create_default_context(), socket_factory=_kept
        )
        # Bytes as they came: httpx decompresses them.
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


def _translated(error: Exception, request: httpx.Request) -> httpx.TransportError:
    kind = next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))
    return kind(str(error) or type(error).__name__, request=request)


def _kept(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for option in KEEPALIVE:
        made.setsockopt(*option)
    return made
