"""An API server over HTTP. Small requests are tried again here as long as that cannot do harm; what still fails goes to the caller's
back-off.

`kubernetes.aio` would do the same with models of 700 classes, which cost memory and time for each request. What is needed of the protocol
fits on these pages.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from rljob.controller.client import ApiError, Applied, Change, Listing
from rljob.controller.connection import Connection
from rljob.controller.kinds import KINDS, Kind, Ref
from rljob.controller.metrics import Metrics
from rljob.controller.workqueue import delay
from rljob.manifests import Manifest
from rljob.manifests.types import FIELD_MANAGER

_TRIES = 4
_REQUEST_SECONDS, _CONNECT_SECONDS = 20.0, 5.0
_LONGEST_WAIT = 8.0
WATCH_SECONDS = 300
"""The server ends a stream after so long, and the next one goes on where it stopped."""
SILENT_SECONDS = 90.0
"""A stream that brings nothing for so long, not even a bookmark, is dead."""
CHUNK = 250
_PARTIAL = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"


def _url(kind: Kind, namespace: str | None, name: str = "") -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{kind.path}{where}/{kind.plural}" + (f"/{name}" if name else "")


def of_ref(ref: Ref) -> str:
    """Path of an object."""
    return _url(KINDS[ref.kind], ref.namespace or None, ref.name)


def _of_manifest(manifest: Manifest, named: bool) -> str:
    meta = manifest["metadata"]
    return _url(KINDS[manifest["kind"]], meta.get("namespace"), meta["name"] if named else "")


def _error(code: int, body: bytes, retry_after: str | None) -> ApiError:
    try:
        status = json.loads(body)
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    message = status.get("message") or body[:300].decode(errors="replace") or f"HTTP status {code}"
    if message.startswith("failed to create typed patch object"):
        # An apply of a field that the server does not know is answered with 500, but no time cures it.
        return ApiError(400, "BadRequest", message)
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return ApiError(code, status.get("reason") or f"Http{code}", message, seconds)


def _content(manifest: Manifest) -> Manifest:
    meta = {name: value for name, value in manifest["metadata"].items() if name not in ("resourceVersion", "generation", "managedFields")}
    return {name: value for name, value in manifest.items() if name != "status"} | {"metadata": meta}


@dataclass
class ApiServer:
    """Implements `rljob.controller.client.Api`. To be used inside `async with`."""

    connection: Connection
    metrics: Metrics
    luck: random.Random = field(default_factory=random.Random)
    seconds: float = _REQUEST_SECONDS
    """For one request; a stream has another limit."""
    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ApiServer":
        context = self.connection.context()
        self._session = aiohttp.ClientSession(
            self.connection.info.server,
            connector=aiohttp.TCPConnector(limit=64, ssl=context if context is not None else False, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self.seconds, sock_connect=_CONNECT_SECONDS),
            headers={"User-Agent": "rljob-operator"},
            auto_decompress=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, ref: Ref) -> Manifest:
        """One object."""
        return await self._request("GET", of_ref(ref), ref.kind)

    async def create(self, manifest: Manifest) -> Manifest:
        """Make an object; 409 if one of that name exists (also if a first try got through and its answer was lost), 400 if it has a field
        that the server does not know and would otherwise leave out."""
        path, params = _of_manifest(manifest, named=False), {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._request("POST", path, manifest["kind"], manifest, params=params)

    async def apply(self, manifest: Manifest, uid: str) -> Applied:
        """Server-side apply. What `create` made counts as updated, not as applied, and an apply takes away only what was applied: so the
        first apply to an object turns the one into the other (as `kubectl apply --server-side` does with what `kubectl apply` made)."""
        path, kind = _of_manifest(manifest, named=True), manifest["kind"]
        before, now = await self._own_what_was_created(path, kind, manifest["metadata"].get("resourceVersion"))
        body = manifest | {"metadata": manifest["metadata"] | now | {"uid": uid}}
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        after = await self._request("PATCH", path, kind, body, params=params, content_type="application/apply-patch+yaml")
        return Applied(after, _content(before) != _content(after))

    async def _own_what_was_created(self, path: str, kind: str, version: str | None) -> tuple[Manifest, Manifest]:
        """The object as it was, and its new version if it has to be of `version` and has another one by this."""
        there = await self._request("GET", path, kind)
        meta, now = there["metadata"], {}
        for index, entry in enumerate(meta.get("managedFields", ())):
            if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Update" and not entry.get("subresource"):
                at = f"/metadata/managedFields/{index}"
                patch = [
                    *([{"op": "test", "path": "/metadata/resourceVersion", "value": version}] if version else []),
                    {"op": "test", "path": f"{at}/manager", "value": FIELD_MANAGER},
                    {"op": "test", "path": f"{at}/operation", "value": "Update"},
                    {"op": "replace", "path": f"{at}/operation", "value": "Apply"},
                ]
                try:
                    owned = await self._request("PATCH", path, kind, patch, content_type="application/json-patch+json")
                    now = {"resourceVersion": owned["metadata"]["resourceVersion"]} if version else {}
                except ApiError as error:
                    # A test that fails is 422 to the server; here it means that somebody was faster.
                    raise ApiError(409, "Conflict", str(error)) if error.code == 422 else error from error
                break
        return there, now

    async def delete(self, ref: Ref, uid: str) -> None:
        """Delete the object of that uid; its own children follow in the background."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._request("DELETE", of_ref(ref), ref.kind, body)
        except ApiError as error:
            # 409: another object has the name by now, so this one is gone.
            if not error.missing and not error.conflict:
                raise

    async def release(self, ref: Ref, uid: str, finalizer: str) -> None:
        """Take a finalizer off the object of that uid, and leave those of others."""
        body = {"metadata": {"uid": uid, "$deleteFromPrimitiveList/finalizers": [finalizer]}}
        try:
            await self._request("PATCH", of_ref(ref), ref.kind, body, content_type="application/strategic-merge-patch+json")
        except ApiError as error:
            # 422: another object has the name by now, and no uid can change.
            if not error.missing and not error.conflict and error.code != 422:
                raise

    async def replace(self, manifest: Manifest) -> Manifest:
        """Write a whole object."""
        return await self._request("PUT", _of_manifest(manifest, named=True), manifest["kind"], manifest)

    async def patch_status(self, ref: Ref, status: Mapping[str, Any], version: str) -> Manifest:
        """Merge fields into the status of that version."""
        body = {"metadata": {"resourceVersion": version}, "status": dict(status)}
        params = {"fieldManager": FIELD_MANAGER}
        return await self._request(
            "PATCH", of_ref(ref) + "/status", ref.kind, body, params=params, content_type="application/merge-patch+json"
        )

    async def list_objects(self, kind: Kind, namespace: str | None, more: str = "", selector: str = "") -> Listing:
        """One part of a list."""
        params = {"limit": str(CHUNK)} | ({"continue": more} if more else {}) | ({"labelSelector": selector} if selector else {})
        accept = None if kind.whole else _PARTIAL.format("List")
        found = await self._request("GET", _url(kind, namespace), kind.kind, params=params, accept=accept)
        meta = found.get("metadata", {})
        return Listing(found.get("items") or [], meta.get("resourceVersion", ""), meta.get("continue", ""))

    async def events(self, namespace: str, uid: str) -> list[Manifest]:
        """Events about an object."""
        params = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
        found = await self._request("GET", _url(KINDS["Event"], namespace), "Event", params=params)
        items: list[Manifest] = found.get("items") or []
        return items

    async def raw(self, path: str, once: bool = False) -> Manifest:
        """Any document."""
        return await self._request("GET", path, "", tries=1 if once else _TRIES)

    @asynccontextmanager
    async def watch(self, kind: Kind, namespace: str | None, version: str, selector: str) -> AsyncIterator[AsyncIterator[Change]]:
        """A stream of changes."""
        params = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS)}
        if selector:
            params["labelSelector"] = selector
        headers = self.connection.headers() | ({} if kind.whole else {"Accept": _PARTIAL.format("")})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        assert self._session is not None
        try:
            async with self._session.get(_url(kind, namespace), params=params, headers=headers, timeout=timeout) as response:
                self.metrics.requests.labels("WATCH", kind.kind, response.status).inc()
                if response.status != 200:
                    raise _error(response.status, await response.read(), response.headers.get("Retry-After"))
                yield _changes(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"watch of {kind.plural}: {error!r}") from error

    async def _request(
        self,
        verb: str,
        path: str,
        kind: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str | None = None,
        tries: int = _TRIES,
    ) -> Manifest:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        for attempt in range(1, tries + 1):
            try:
                return await self._once(verb, path, kind, data, params, content_type, accept)
            except ApiError as error:
                # A webhook that does not answer takes up to 30 s for each try, and people should hear of it.
                if not error.temporary or error.webhook or attempt == tries:
                    raise
                wait = delay(attempt + 1, self.luck.random(), error.retry_after)
                if wait > _LONGEST_WAIT:
                    # So long, a worker should rather do something else.
                    raise
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _once(
        self, verb: str, path: str, kind: str, data: bytes | None, params: Mapping[str, str] | None, content_type: str, accept: str | None
    ) -> Manifest:
        headers = self.connection.headers()
        if data is not None:
            headers["Content-Type"] = content_type
        if accept is not None:
            headers["Accept"] = accept
        assert self._session is not None
        try:
            async with self._session.request(verb, path, data=data, params=params, headers=headers) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.metrics.requests.labels(verb, kind, 0).inc()
            raise ApiError(0, "Unreachable", f"{verb} {path}: the API server did not answer ({error!r})") from error
        self.metrics.requests.labels(verb, kind, response.status).inc()
        if response.status >= 400:
            raise _error(response.status, answer, response.headers.get("Retry-After"))
        return _parsed(answer, f"{verb} {path}: answered {response.status}")


def _parsed(text: bytes, what: str) -> Manifest:
    """JSON; whoever stands between here and the API server (a proxy, a master behind it) may say something else."""
    try:
        found: Manifest = json.loads(text)
    except ValueError as error:
        raise ApiError(0, "NoJson", f"{what} with what is no JSON ({text[:80].decode(errors='replace')!r})") from error
    return found


async def _changes(response: aiohttp.ClientResponse) -> AsyncIterator[Change]:
    async for line in _lines(response):
        found = _parsed(line, "watch: brought")
        kind: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"] = found["type"]
        if kind == "ERROR":
            status = found["object"]
            raise ApiError(int(status.get("code", 500)), str(status.get("reason")), str(status.get("message")))
        yield Change(kind, found["object"])


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own reader refuses those over 64 KiB."""
    rest = b""
    async for block in response.content.iter_any():
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            if line:
                yield line
