"""HTTP of the master: nodes, weights, batches, status, report."""

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rljob.api import InfrastructureError
from rljob.master.decisions.manifest import gap
from rljob.master.nodes import IdentityTaken
from rljob.master.parts import Parts
from rljob.master.prometheus import exposition
from rljob.master.report import LivePage
from rljob.master.status import job_status
from rljob.wire.base import Message
from rljob.wire.node import NodeReport
from rljob.wire.pieces import PullReport
from rljob.wire.weights import Manifest

DEFAULT_WAIT = 10.0
"""Seconds of a sync that names none."""


class Service:
    """The routes. Refusals: 400 for what is no such message, 404 unknown, 409 another checksum, 422 an incomplete set."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._page = LivePage(parts)

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/nodes/{node}/sync", self.sync, methods=["POST"]),
                Route("/v1/nodes", self.addresses, methods=["GET"]),
                Route("/v1/weights/{version:int}", self.register, methods=["PUT"]),
                Route("/v1/weights/{version:int}", self.manifest, methods=["GET"]),
                Route("/v1/weights/{version:int}/pull", self.pull, methods=["POST"]),
                Route("/v1/batches/{version:int}", self.batch, methods=["GET"]),
                Route("/v1/status", self.status, methods=["GET"]),
                Route("/healthz", self.health, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/", self.page, methods=["GET"]),
            ]
        )

    async def sync(self, request: Request) -> Response:
        """Long poll of a node."""
        try:
            report = NodeReport.model_validate_json(await request.body())
            wait = float(request.query_params.get("wait", DEFAULT_WAIT))
        except (ValidationError, ValueError) as error:
            return _refusal(400, f"not a NodeReport: {error}")
        if report.node != request.path_params["node"]:
            return _refusal(400, f"the report is of node {report.node}, the address says {request.path_params['node']}")
        try:
            return _message(await self._parts.nodes.sync(report, wait))
        except IdentityTaken as error:
            if error.first:
                self._parts.watch.failed(report.node, "sync", "IdentityTaken", str(error), vital=report.kind == "worker")
            return _refusal(409, str(error))

    async def addresses(self, request: Request) -> Response:
        """NodeAddresses."""
        return _message(self._parts.nodes.addresses())

    async def register(self, request: Request) -> Response:
        """Take a manifest; repeating it changes nothing."""
        try:
            manifest = Manifest.model_validate_json(await request.body())
        except ValidationError as error:
            return _refusal(400, f"not a Manifest: {error}")
        version, versions = request.path_params["version"], self._parts.state.versions
        if manifest.version != version:
            return _refusal(400, f"the manifest is of version {manifest.version}, the address says {version}")
        known = versions.checksum(version)
        if known is not None and known != manifest.checksum:
            return _refusal(
                409, f"version {version} is registered with checksum {known}, this set has {manifest.checksum}: not the same weights"
            )
        if missing := gap(manifest):
            return _refusal(422, f"the set of version {version} is not complete: {missing}")
        if versions.manifest(version) != manifest:
            versions.register(manifest)
            self._parts.nodes.news.announce()
        return Response(status_code=204)

    async def manifest(self, request: Request) -> Response:
        """Where a version's weights are."""
        found = self._parts.state.versions.manifest(request.path_params["version"])
        return _message(found) if found else _refusal(404, f"version {request.path_params['version']} is not registered")

    async def pull(self, request: Request) -> Response:
        """What a node that pulls a version is to fetch next, and where."""
        try:
            report = PullReport.model_validate_json(await request.body())
            manifest = self._parts.state.versions.manifest(request.path_params["version"])
            if manifest is None:
                return _refusal(404, f"version {request.path_params['version']} is not registered")
            return _message(self._parts.exchange.plan(manifest, report))
        except (ValidationError, ValueError) as error:
            return _refusal(400, f"not a PullReport: {error}")
        except InfrastructureError as error:
            return _refusal(422, str(error))

    async def batch(self, request: Request) -> Response:
        """What the training task in progress consumes."""
        found = self._parts.state.versions.batch(request.path_params["version"])
        if found is None:
            return _refusal(404, f"there is no batch for version {request.path_params['version']}")
        return Response(found, media_type="application/octet-stream")

    async def status(self, request: Request) -> Response:
        """JobStatus, in camelCase."""
        return Response(job_status(self._parts).model_dump_json(by_alias=True), media_type="application/json")

    async def health(self, request: Request) -> Response:
        """Alive."""
        return Response("ok\n", media_type="text/plain")

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(exposition(self._parts), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """The report, which looks again every few seconds."""
        return HTMLResponse(self._page.now())


def _message(message: Message) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _refusal(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status)
