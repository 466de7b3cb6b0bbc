"""/metrics, /healthz and /readyz."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import generate_latest

from rljob.controller.metrics import Metrics

Check = Callable[[], str]
"""Why not; empty if all is well."""


@asynccontextmanager
async def serve(port: int, metrics: Metrics, health: Check, ready: Check) -> AsyncIterator[int]:
    """Serve until the block ends; gives the port (0 takes a free one)."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def probe(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            why = check()
            return web.Response(text=(why or "ok") + "\n", status=503 if why else 200)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", show)
    app.router.add_get("/healthz", probe(health))
    app.router.add_get("/readyz", probe(ready))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, _listener(port)).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _listener(port: int) -> socket.socket:
    """All addresses, of both families where the machine has both: a kubelet asks at the pod's first address."""
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
