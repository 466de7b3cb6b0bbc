"""HTTP on the unix socket `trainer`: a thread that queues commands for the main thread and shows its status at any time."""

import asyncio
import queue
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rljob.api import ConfigurationError
from rljob.trainer.commands import KINDS, Command, WrongState, parse
from rljob.wire.base import Message
from rljob.wire.connections import IDLE_SECONDS
from rljob.wire.trainer import TASK_HEADER, TrainerError, TrainerStatus


@dataclass(frozen=True)
class Asked:
    """A command of this node's agent."""

    command: Command
    answer: "Future[Message | Exception]"


@dataclass
class HttpBoard:
    """The loop's Board, fed by HTTP; with several nodes also `nodes.NodeBoard`."""

    status: TrainerStatus
    _waiting: "queue.SimpleQueue[Asked | Command]" = field(default_factory=queue.SimpleQueue)
    _answering: "Future[Message | Exception] | None" = None

    def next(self) -> Command:
        asked = self._waiting.get()
        if not isinstance(asked, Asked):
            raise TypeError("rank 0 hears only its agent")
        self._answering = asked.answer
        return asked.command

    def event(self) -> Asked | Command:
        return self._waiting.get()

    def announce(self, command: Command) -> None:
        self._waiting.put(command)

    def show(self, status: TrainerStatus) -> None:
        self.status = status

    def answer(self, outcome: Message | Exception) -> None:
        if self._answering is not None:
            self._answering.set_result(outcome)
            self._answering = None

    def ask(self, command: Command) -> "Future[Message | Exception]":
        """Queue a command. It is done even if nobody waits for the answer any more."""
        future: Future[Message | Exception] = Future()
        self._waiting.put(Asked(command, future))
        return future


def application(board: HttpBoard) -> Starlette:
    """The API of `rljob.wire.trainer`."""

    async def status(_: Request) -> Response:
        return _json(board.status)

    async def command(request: Request) -> Response:
        try:
            wanted = parse(request.path_params["kind"], await request.body(), request.headers.get(TASK_HEADER))
        except ValidationError as error:
            return _json(TrainerError(error=f"request is not what {request.path_params['kind']} needs: {error}"), 422)
        outcome = await asyncio.shield(asyncio.wrap_future(board.ask(wanted)))
        return _failure(outcome) if isinstance(outcome, Exception) else _json(outcome)

    async def unknown(request: Request) -> Response:
        if request.path_params["kind"] not in KINDS:
            return _json(TrainerError(error=f"unknown command; choose one of {', '.join(KINDS)}"), 404)
        return await command(request)

    return Starlette(routes=[Route("/v1/status", status), Route("/v1/{kind}", unknown, methods=["POST"])])


def serve(board: HttpBoard, path: Path) -> None:
    """Listen, in a thread that ends with the process."""
    path.unlink(missing_ok=True)  # left by an earlier process
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    config = uvicorn.Config(application(board), log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=IDLE_SECONDS)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True).start()


def _json(message: Message, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")


def _failure(error: Exception) -> Response:
    code = 409 if isinstance(error, WrongState) else 422 if isinstance(error, ConfigurationError) else 500
    return _json(TrainerError(error=str(error) or type(error).__name__), code)
