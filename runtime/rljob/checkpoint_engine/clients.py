"""Whom the agent talks to: interfaces, and their implementations over HTTP. Every failure is an RLJobError."""

import asyncio
import json
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx
from pydantic import ValidationError

from rljob.api import ConfigurationError, InfrastructureError, RLJobError
from rljob.checkpoint_engine.draft import aside_path, draft_path
from rljob.checkpoint_engine.outcome import ChecksumMismatch, IdentityTaken, MasterAway, WrongState
from rljob.checkpoint_engine.state import EngineState
from rljob.rollout.client import EngineClient
from rljob.wire.base import Message
from rljob.wire.connections import pool
from rljob.wire.node import NodeAddresses, NodeDesired, NodeReport, Progress, TrainMetrics, TrainTask
from rljob.wire.pieces import PullPlan, PullReport
from rljob.wire.shim import ShimStatus, StartRequest, StopRequest
from rljob.wire.trainer import TASK_HEADER, CheckpointCommand, ExportCommand, LoadCommand, OffloadCommand, TrainerStatus
from rljob.wire.weights import Manifest

log = logging.getLogger(__name__)

STATUS_TIMEOUT = 5.0
"""Seconds for a call that only asks."""
_ASK_AGAIN = 0.02
"""Seconds until an engine is asked again whether it has answered everybody."""
PROBE_TIMEOUT = 10.0


class Shim(Protocol):
    """The shim around a sidecar (rljob.wire.shim)."""

    async def status(self, memory: bool = False) -> ShimStatus | None:
        """None: it does not answer."""

    async def start(self, request: StartRequest) -> ShimStatus: ...

    async def stop(self, grace: float) -> ShimStatus: ...


class Trainer(Protocol):
    """The trainer of this node (rljob.wire.trainer)."""

    async def status(self) -> TrainerStatus | None:
        """None: it does not answer."""

    async def load(self, command: LoadCommand) -> None: ...

    async def train(self, task: TrainTask, batch: bytes) -> TrainMetrics: ...

    async def export(self, command: ExportCommand) -> Manifest: ...

    async def checkpoint(self, command: CheckpointCommand) -> None: ...

    async def offload(self, command: OffloadCommand) -> None: ...

    async def onload(self) -> None: ...


class Engine(Protocol):
    """The vLLM server of this node."""

    async def state(self) -> EngineState | None:
        """None: it does not answer, or its core is dead."""

    async def load(self, manifest: Manifest, arena: Path, share: bool, beside: bool) -> None:
        """Take these weights, and serve; `beside`: while the trainer computes (`EngineClient.load_weights`)."""

    async def logprobs(self, tokens: tuple[int, ...]) -> list[float]: ...

    async def sleep(self) -> None:
        """Leave the accelerator; the weights may be lost."""

    async def wake(self) -> None:
        """Take the accelerator again; nothing is served before the next load."""

    async def hand_back(self) -> None:
        """Answer every running request with the tokens that there are, and take no more; done when none runs."""


class Master(Protocol):
    """The master (rljob.wire.node)."""

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired: ...

    async def batch(self, version: int) -> bytes: ...

    async def register(self, manifest: Manifest) -> None: ...

    async def manifest(self, version: int) -> Manifest | None:
        """None: it knows no such version."""

    async def addresses(self) -> NodeAddresses:
        """Where other nodes give their weights."""


class WeightSource(Protocol):
    """The arena, written by the local trainer or from other nodes."""

    def version(self) -> int | None:
        """Version that lies complete in the local arena."""

    def remove(self) -> None:
        """Leave no shared memory behind."""


class Peers(Protocol):
    """The other nodes (rljob.checkpoint_engine.pull)."""

    async def pull(self, version: int, checksum: str | None, publish: Callable[[Progress | None], None]) -> Manifest | None:
        """Bring a version into the arena; None if it is not wanted any more."""


class Filler(Protocol):
    """What makes an arena whole that the ranks of several nodes have written (rljob.checkpoint_engine.fill)."""

    async def fill(
        self, manifest: Manifest, sources: Callable[[], Awaitable[Mapping[str, str]]], publish: Callable[[Progress | None], None]
    ) -> None:
        """`sources` tells the address of each node's weight server, as it is by then."""


def socket_client(path: Path) -> httpx.AsyncClient:
    """A client of a server on a unix socket."""
    return httpx.AsyncClient(transport=pool(uds=path), base_url="http://socket", timeout=None)


class _Status[M: Message]:
    """What somebody says of itself, asked again and again."""

    def __init__(self, http: httpx.AsyncClient, kind: type[M], whose: str) -> None:
        self._http, self._kind, self._whose = http, kind, whose
        self._told = False

    async def ask(self, params: Mapping[str, int] | None = None) -> M | None:
        """None: no answer, or none that can be read, which the log says once."""
        try:
            answer = await self._http.get("/v1/status", params=params, timeout=STATUS_TIMEOUT)
            if answer.status_code != 200:
                return None
            status = _read(self._kind, answer, f"what the {self._whose} answers /v1/status")
        except httpx.HTTPError:
            return None
        except InfrastructureError as error:
            if not self._told:
                log.error("%s", error)
            self._told = True
            return None
        self._told = False
        return status


class HttpShim:
    """A shim on its unix socket."""

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        self._http, self._name = http, name
        self._status = _Status(http, ShimStatus, name)

    async def status(self, memory: bool = False) -> ShimStatus | None:
        return await self._status.ask({"memory": 1} if memory else None)

    async def start(self, request: StartRequest) -> ShimStatus:
        return await self._post("/v1/start", request)

    async def stop(self, grace: float) -> ShimStatus:
        return await self._post("/v1/stop", StopRequest(grace_seconds=grace))

    async def _post(self, path: str, message: Message) -> ShimStatus:
        try:
            answer = await self._http.post(path, content=message.model_dump_json())
        except httpx.HTTPError as error:
            raise InfrastructureError(f"the {self._name} does not answer {path}: {_said(error)}") from error
        if answer.status_code != 200:
            raise InfrastructureError(f"the {self._name} refused {path}: {_reason(answer)}")
        return _read(ShimStatus, answer, f"what the {self._name} answers {path}")


class HttpTrainer:
    """The trainer on its unix socket."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._status = _Status(http, TrainerStatus, "trainer")

    async def status(self) -> TrainerStatus | None:
        return await self._status.ask()

    async def load(self, command: LoadCommand) -> None:
        await self._post("/v1/load", command.model_dump_json())

    async def train(self, task: TrainTask, batch: bytes) -> TrainMetrics:
        answer = await self._post("/v1/train", batch, {TASK_HEADER: task.model_dump_json()})
        return _read(TrainMetrics, answer, "what the trainer answers /v1/train")

    async def export(self, command: ExportCommand) -> Manifest:
        return _read(Manifest, await self._post("/v1/export", command.model_dump_json()), "what the trainer answers /v1/export")

    async def checkpoint(self, command: CheckpointCommand) -> None:
        await self._post("/v1/checkpoint", command.model_dump_json())

    async def offload(self, command: OffloadCommand) -> None:
        await self._post("/v1/offload", command.model_dump_json())

    async def onload(self) -> None:
        await self._post("/v1/onload", b"")

    async def _post(self, path: str, content: str | bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        try:
            answer = await self._http.post(path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise InfrastructureError(f"the trainer went away during {path}: {_said(error)}") from error
        if answer.status_code == 200:
            return answer
        kind = {409: WrongState, 422: ConfigurationError}.get(answer.status_code, InfrastructureError)
        raise kind(f"the trainer failed {path}: {_reason(answer)}" if kind is not ConfigurationError else _reason(answer))


class HttpEngine:
    """The vLLM server of this node, by its own HTTP interface."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def state(self) -> EngineState | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                if not await self._client.healthy():
                    return None
                version, checksum = parse_label(await self._client.weight_version())
                return EngineState(version, checksum, await self._client.is_paused())
        except (TimeoutError, InfrastructureError):
            return None

    async def load(self, manifest: Manifest, arena: Path, share: bool, beside: bool) -> None:
        await self._client.load_weights(manifest, arena, share, beside)
        if await self._client.is_paused():  # it was asleep
            await self._client.resume()

    async def logprobs(self, tokens: tuple[int, ...]) -> list[float]:
        return await self._client.logprobs(tokens)

    async def sleep(self) -> None:
        await self._client.pause("abort")
        await self._client.sleep(level=2)

    async def wake(self) -> None:
        await self._client.wake()

    async def hand_back(self) -> None:
        await self._client.pause("abort")  # nothing runs any more, but those who asked have not been answered yet
        while True:
            if await self._client.unanswered() <= 0:
                return
            await asyncio.sleep(_ASK_AGAIN)


class HttpMaster:
    """The master. What only means that it is not there, or that something else answers in its place, raises MasterAway."""

    def __init__(self, http: httpx.AsyncClient, node: str) -> None:
        """`http` has the master's address as its base URL."""
        self._http, self._node = http, node

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired:
        body, path = report.model_dump_json(), f"/v1/nodes/{self._node}/sync?wait={wait}"
        answer = await self._request("POST", path, body, patience=wait + 10, accept=(409,))
        if answer.status_code == 409:
            raise IdentityTaken(_reason(answer))
        return _of_master(NodeDesired, answer)

    async def batch(self, version: int) -> bytes:
        return (await self._request("GET", f"/v1/batches/{version}")).content

    async def register(self, manifest: Manifest) -> None:
        answer = await self._request("PUT", f"/v1/weights/{manifest.version}", manifest.model_dump_json(), accept=(409,))
        if answer.status_code == 409:
            raise ChecksumMismatch(_reason(answer))

    async def manifest(self, version: int) -> Manifest | None:
        answer = await self._request("GET", f"/v1/weights/{version}", accept=(404,))
        return None if answer.status_code == 404 else _of_master(Manifest, answer)

    async def addresses(self) -> NodeAddresses:
        return _of_master(NodeAddresses, await self._request("GET", "/v1/nodes"))

    async def pull(self, version: int, report: PullReport) -> PullPlan:
        answer = await self._request("POST", f"/v1/weights/{version}/pull", report.model_dump_json(), accept=(404,))
        return PullPlan(wanted=False) if answer.status_code == 404 else _of_master(PullPlan, answer)

    async def _request(
        self, method: str, path: str, content: str | None = None, patience: float = 60, accept: tuple[int, ...] = ()
    ) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, content=content, timeout=patience)
        except httpx.HTTPError as error:
            raise MasterAway(f"the master does not answer {path}: {_said(error)}") from error
        if answer.status_code >= 500:
            raise MasterAway(f"the master failed {path}: {_reason(answer)}")
        if answer.status_code not in (200, 201, 204, *accept):
            raise InfrastructureError(f"the master refused {path}: {answer.status_code} {_reason(answer)}")
        return answer


class LocalArena:
    """The arena in this pod's shared memory. Reads its header only, so that the agent need not import torch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def version(self) -> int | None:
        """Version in the metadata of a file whose size fits its header; a writer sets it last (rljob.checkpoint_engine.arena)."""
        try:
            with self.path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
                size = 8 + length + max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
                complete = self.path.stat().st_size == size
            return int(header["__metadata__"]["version"]) if complete else None
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None  # no file, being made, or half written

    def remove(self) -> None:
        for path in (self.path, draft_path(self.path), aside_path(self.path)):
            path.unlink(missing_ok=True)


def parse_label(label: str) -> tuple[int | None, str | None]:
    """Version and checksum out of `version:checksum`; nothing for an engine whose weights nobody vouches for."""
    version, colon, checksum = label.partition(":")
    return (int(version), checksum) if colon and version.isdigit() else (None, None)


def _of_master[M: Message](kind: type[M], answer: httpx.Response) -> M:
    return _read(kind, answer, f"what answers {answer.request.url.path} at the master's address", MasterAway)


def _read[M: Message](kind: type[M], answer: httpx.Response, what: str, error: type[RLJobError] = InfrastructureError) -> M:
    """The message of an answer.

    Raises:
        RLJobError: it is none; of the type `error`.
    """
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise error(
            f"{what} is no {kind.__name__}{f', {where}' if where else ''}: {first['msg']}, found {repr(first['input'])[:200]}; all of a "
            "job's processes have to be of one version, and nothing may stand between them"
        ) from problem


def _said(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__} {error}".strip()


def _reason(answer: httpx.Response) -> str:
    try:
        body: Any = answer.json()
    except ValueError:
        return answer.text[:500]
    return str(body.get("error", body)) if isinstance(body, dict) else str(body)
