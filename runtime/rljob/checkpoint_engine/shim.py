"""`python -m rljob.checkpoint_engine.shim --payload trainer|vllm`: the first process of a sidecar container.

Starts, watches, stops and reaps the real process, again and again, as the node agent says over a unix socket (rljob.wire.shim). Imports
nothing heavy: what the payload needs is the payload's business.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rljob.api import ConfigurationError, InfrastructureError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.checkpoint_engine.container import complete
from rljob.checkpoint_engine.payloads import Payload, Tail, payload_of
from rljob.checkpoint_engine.processes import adopt_orphans, anonymous_memory, end_all, payload_processes, reap_orphans
from rljob.wire.base import Message
from rljob.wire.clock import steady_time
from rljob.wire.connections import IDLE_SECONDS
from rljob.wire.environment import Environment
from rljob.wire.shim import INCARNATION, ShimError, ShimStatus, StartRequest, StopRequest

SOCKETS = {"trainer": "megatron-shim", "vllm": "vllm-shim"}
EXIT_GRACE = 5.0
"""Seconds that the payload gets when the container ends."""


class AnotherRuns(Exception):
    """A start was asked for while another incarnation runs."""


class _Run:
    """One start of the payload."""

    def __init__(self, request: StartRequest, now: float) -> None:
        self.request = request
        self.started_at = now
        self.launched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid: int | None = None
        self.exit_status: int | None = None
        self.task: asyncio.Task[None] | None = None


class Sidecar:
    """At most one incarnation of the payload at a time."""

    def __init__(self, payload: Payload, clock: Callable[[], float] = steady_time) -> None:
        self._payload = payload
        self._clock = clock
        self._run: _Run | None = None
        self._stopping = asyncio.Lock()

    def status(self, memory: bool = False) -> ShimStatus:
        """What is, at once; `memory` is measured if asked for."""
        run, payload = self._run, self._payload
        if run is None:
            return ShimStatus(ready=payload.ready, last_log_lines=payload.tail.lines)
        state = "exited" if run.exit_status is not None else "starting" if run.pid is None else "running"
        return ShimStatus.model_validate({
            "incarnation": run.request.incarnation,
            "state": state,
            "exit_status": run.exit_status,
            "pid": run.pid if state == "running" else None,
            "started_at": run.started_at,
            "ready": payload.ready,
            "memory": anonymous_memory([p.pid for p in payload_processes(payload.spare)]) if memory and state == "running" else 0,
            "last_log_lines": payload.tail.lines,
        })  # fmt: skip

    async def start(self, request: StartRequest) -> ShimStatus:
        """Run this incarnation unless it does already.

        Raises:
            AnotherRuns: another incarnation runs.
        """
        async with self._stopping:
            run = self._run
            if run is None or run.request.incarnation != request.incarnation:
                if run is not None and run.exit_status is None:
                    raise AnotherRuns(f"{run.request.incarnation} is {self.status().state}: stop it before {request.incarnation} can start")
                run = self._run = _Run(request, self._clock())
                run.task = asyncio.create_task(self._live(run))
        await asyncio.wait([run.launched])
        return self.status()

    async def stop(self, grace: float) -> ShimStatus:
        """End the payload whole.

        Raises:
            InfrastructureError: processes survive SIGKILL.
        """
        async with self._stopping:
            run = self._run
            if run is not None and run.task is not None:
                run.task.cancel()
                await asyncio.wait([run.task])
            await self._end(grace)
            if run is not None and not run.launched.done():
                run.launched.set_result(None)
            self._run = None
        return self.status()

    async def close(self) -> None:
        """End everything below this process."""
        await self.stop(EXIT_GRACE)
        await end_all(payload_processes, EXIT_GRACE)

    async def _live(self, run: _Run) -> None:
        payload = self._payload
        try:
            run.pid = await payload.launch(run.request.argv, {**run.request.env, INCARNATION: run.request.incarnation})
            run.launched.set_result(None)
            status = await payload.ended()
        except (InfrastructureError, OSError) as error:
            payload.tail.note(f"the payload could not be started: {error}")
            status = 1
        # What it leaves behind would hold memory and sockets.
        await self._end(0)
        await payload.tail.settle()
        run.exit_status = status
        payload.tail.note(f"the payload ended with status {status}")
        if not run.launched.done():
            run.launched.set_result(None)

    async def _end(self, grace: float) -> None:
        await end_all(lambda: payload_processes(self._payload.spare), grace)


def application(sidecar: Sidecar) -> Starlette:
    """The HTTP face of a sidecar."""

    async def status(request: Request) -> Response:
        return _answer(sidecar.status(memory="memory" in request.query_params))

    async def start(request: Request) -> Response:
        try:
            return _answer(await sidecar.start(StartRequest.model_validate_json(await request.body())))
        except AnotherRuns as error:
            return _answer(ShimError(error=str(error)), 409)

    async def stop(request: Request) -> Response:
        return _answer(await sidecar.stop(StopRequest.model_validate_json(await request.body()).grace_seconds))

    async def invalid(_: Request, error: Exception) -> Response:
        return _answer(ShimError(error=str(error)), 422)

    async def failed(_: Request, error: Exception) -> Response:
        return _answer(ShimError(error=str(error)), 500)

    return Starlette(
        routes=[
            Route("/v1/status", status, methods=["GET"]),
            Route("/v1/start", start, methods=["POST"]),
            Route("/v1/stop", stop, methods=["POST"]),
        ],
        exception_handlers={ValidationError: invalid, InfrastructureError: failed},
    )


def _answer(message: Message, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")


async def serve(kind: str, path: Path, payload_factory: Callable[[str, Tail], Payload] = payload_of) -> None:
    """Serve the shim's socket until SIGTERM or SIGINT, then end the payload.

    Raises:
        ConfigurationError: the socket cannot be made.
    """
    adopt_orphans()
    payload = payload_factory(kind, Tail(sys.stdout.buffer))
    sidecar = Sidecar(payload)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, lambda: reap_orphans(payload.managed))
    # uvicorn raises the signal that ended it once more when it is done: this process ends in order instead.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(str(path)) > 100:
        raise ConfigurationError(
            f"socket path {path} has {len(str(path))} characters, 100 are allowed: choose a shorter folder for sockets"
        )
    config = uvicorn.Config(
        application(sidecar),
        uds=str(path),
        log_level="warning",
        access_log=False,
        loop="asyncio",
        lifespan="off",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    care = asyncio.create_task(payload.care())
    try:
        await uvicorn.Server(config).serve()
    finally:
        care.cancel()
        await sidecar.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rljob.checkpoint_engine.shim", description=__doc__)
    parser.add_argument("--payload", choices=sorted(SOCKETS), required=True)
    chosen = parser.parse_args(arguments)
    try:
        complete(os.environ)
        asyncio.run(serve(chosen.payload, Environment.current().socket(SOCKETS[chosen.payload])))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except InfrastructureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
