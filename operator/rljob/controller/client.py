"""What the operator asks of an API server: the seam between decisions and effects. `apiserver.py` is a real one, the tests have a twin."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rljob.api import InfrastructureError
from rljob.controller.kinds import Kind, Ref
from rljob.manifests import Manifest


class ApiError(InfrastructureError):
    """An API server refused, or could not be reached (code 0)."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.retry_after = code, reason, retry_after

    @property
    def temporary(self) -> bool:
        """The same request can succeed a moment later."""
        # 401: an account whose token is being renewed, or an API server that cannot ask who it is just now.
        return self.code in (0, 401, 408, 429) or self.code >= 500

    @property
    def webhook(self) -> bool:
        """What the API server has to ask about a request does not answer: that may last until a person looks at it."""
        return self.code >= 500 and "failed calling webhook" in str(self)

    @property
    def missing(self) -> bool:
        """There is no such object."""
        return self.code == 404

    @property
    def conflict(self) -> bool:
        """The object is another one or a newer one than was thought; look again."""
        return self.code == 409

    @property
    def expired(self) -> bool:
        """A watch cannot go on from where it stopped."""
        return self.code == 410


@dataclass(frozen=True)
class Applied:
    """The answer to an apply."""

    object: Manifest
    changed: bool
    """Its content is another one now, apart from who owns which field."""


@dataclass(frozen=True)
class Listing:
    """A part of a list."""

    items: list[Manifest]
    version: str
    """Resource version from which a watch goes on."""
    more: str = ""
    """Token for the next part."""


@dataclass(frozen=True)
class Change:
    """One event of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Manifest


class Api(Protocol):
    """An API server. Every call raises ApiError."""

    async def get(self, ref: Ref) -> Manifest:
        """One object."""

    async def create(self, manifest: Manifest) -> Manifest:
        """Make an object; 409 if one of that name exists, 400 if it has a field that the server does not know."""

    async def apply(self, manifest: Manifest, uid: str) -> Applied:
        """Server-side apply over the object of that uid; 409 if it is gone or another one, 400 as for `create`."""

    async def delete(self, ref: Ref, uid: str) -> None:
        """Delete the object of that uid. That it is gone already is no error."""

    async def release(self, ref: Ref, uid: str, finalizer: str) -> None:
        """Take a finalizer off the object of that uid. That either is gone already is no error."""

    async def replace(self, manifest: Manifest) -> Manifest:
        """Write a whole object; 409 if its resourceVersion is not the newest."""

    async def patch_status(self, ref: Ref, status: Mapping[str, Any], version: str) -> Manifest:
        """Write fields of the status of exactly that version; 409 if it is not the newest. A field of None is removed."""

    async def list_objects(self, kind: Kind, namespace: str | None, more: str = "", selector: str = "") -> Listing:
        """Objects of a kind, part by part; metadata alone unless `kind.whole`."""

    def watch(self, kind: Kind, namespace: str | None, version: str, selector: str) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Changes since a version, and a bookmark about once a minute, until the server ends the stream."""

    async def events(self, namespace: str, uid: str) -> list[Manifest]:
        """Events about the object of that uid."""

    async def raw(self, path: str, once: bool = False) -> Manifest:
        """A document that is no object, such as `/version`; `once`: without another try."""
