"""Whom the agent talks to: interfaces, and their implementations over HTTP. Every failure is an RLJobError."""

import asyncio
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from rljob.api import ConfigurationError, InfrastructureError
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

    async def fill(self, manifest: Manifest, sources: Mapping[str, str], publish: Callable[[Progress | None], None]) -> None:
        """`sources`: address of each node's weight server."""


def socket_client(path: Path) -> httpx.AsyncClient:
    """A client of a server on a unix socket."""
    return httpx.AsyncClient(transport=pool(uds=path), base_url="http://socket", timeout=None)


class HttpShim:
    """A shim on its unix socket."""

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        self._http, self._name = http, name

    async def status(self, memory: bool = False) -> ShimStatus | None:
        try:
            answer = await self._http.get("/v1/status", params={"memory": 1} if memory else None, timeout=STATUS_TIMEOUT)
        except httpx.HTTPError:
            return None
        return ShimStatus.model_validate_json(answer.content) if answer.status_code == 200 else None

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
        return ShimStatus.model_validate_json(answer.content)


class HttpTrainer:
    """The trainer on its unix socket."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def status(self) -> TrainerStatus | None:
        try:
            answer = await self._http.get("/v1/status", timeout=STATUS_TIMEOUT)
        except httpx.HTTPError:
            return None
        return TrainerStatus.model_validate_json(answer.content) if answer.status_code == 200 else None

    async def load(self, command: LoadCommand) -> None:
        await self._post("/v1/load", command.model_dump_json())

    async def train(self, task: TrainTask, batch: bytes) -> TrainMetrics:
        return TrainMetrics.model_validate_json(await self._post("/v1/train", batch, {TASK_HEADER: task.model_dump_json()}))

    async def export(self, command: ExportCommand) -> Manifest:
        return Manifest.model_validate_json(await self._post("/v1/export", command.model_dump_json()))

    async def checkpoint(self, command: CheckpointCommand) -> None:
        await self._post("/v1/checkpoint", command.model_dump_json())

    async def offload(self, command: OffloadCommand) -> None:
        await self._post("/v1/offload", command.model_dump_json())

    async def onload(self) -> None:
        await self._post("/v1/onload", b"")

    async def _post(self, path: str, content: str | bytes, headers: dict[str, str] | None = None) -> bytes:
        try:
            answer = await self._http.post(path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise InfrastructureError(f"the trainer went away during {path}: {_said(error)}") from error
        if answer.status_code == 200:
            return answer.content
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
    """The master. What only means that it is not there raises MasterAway."""

    def __init__(self, http: httpx.AsyncClient, node: str) -> None:
        """`http` has the master's address as its base URL."""
        self._http, self._node = http, node

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired:
        body, path = report.model_dump_json(), f"/v1/nodes/{self._node}/sync?wait={wait}"
        answer = await self._request("POST", path, body, patience=wait + 10, accept=(409,))
        if answer.status_code == 409:
            raise IdentityTaken(_reason(answer))
        return NodeDesired.model_validate_json(answer.content)

    async def batch(self, version: int) -> bytes:
        return (await self._request("GET", f"/v1/batches/{version}")).content

    async def register(self, manifest: Manifest) -> None:
        answer = await self._request("PUT", f"/v1/weights/{manifest.version}", manifest.model_dump_json(), accept=(409,))
        if answer.status_code == 409:
            raise ChecksumMismatch(_reason(answer))

    async def manifest(self, version: int) -> Manifest | None:
        answer = await self._request("GET", f"/v1/weights/{version}", accept=(404,))
        return None if answer.status_code == 404 else Manifest.model_validate_json(answer.content)

    async def addresses(self) -> NodeAddresses:
        return NodeAddresses.model_validate_json((await self._request("GET", "/v1/nodes")).content)

    async def pull(self, version: int, report: PullReport) -> PullPlan:
        answer = await self._request("POST", f"/v1/weights/{version}/pull", report.model_dump_json(), accept=(404,))
        return PullPlan(wanted=False) if answer.status_code == 404 else PullPlan.model_validate_json(answer.content)

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


def _said(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__} {error}".strip()


def _reason(answer: httpx.Response) -> str:
    try:
        body: Any = answer.json()
    except ValueError:
        return answer.text[:500]
    return str(body.get("error", body)) if isinstance(body, dict) else str(body)
