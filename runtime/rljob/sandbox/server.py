"""The service's life: start the pool, serve, drain when told to stop, end the pool."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import uvicorn

from rljob.sandbox.app import create_app
from rljob.sandbox.isolation import Isolation
from rljob.sandbox.service import Service
from rljob.wire.connections import IDLE_SECONDS

DRAIN_SECONDS = 30
"""What runs when the service is told to stop has so long to end."""


class _Server(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn would end the process by the same signal before the pool is stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(pool: Isolation, host: str, port: int, capacity: int) -> int:
    """Serve until SIGTERM or SIGINT; a second one cuts off what still runs. Returns the exit status.

    Raises:
        ConfigurationError: the pool cannot protect here as well as is asked for.
        OSError: the port is taken.
    """
    service = Service(pool, capacity)
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config)
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        server.force_exit = bool(received)
        server.should_exit = True
        received.append(number)
        service.drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await pool.start()
        await server.serve()
    finally:
        await pool.stop()
    return 128 + received[0] if received else 1
