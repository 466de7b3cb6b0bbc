"""Streams of children into the cache: a list, then a watch from where the list ends, and a list again when the server has forgotten that
place.

Children do not go through kopf. It takes 1.2 ms of CPU for an event (a task, a queue and a chain of handlers for each object) where this
takes ~0.1 ms, keeps a record of every object, cannot ask for metadata alone, and tells nobody of objects that were deleted while it lists
again.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rljob.controller.cache import Cache
from rljob.controller.client import Api, ApiError
from rljob.controller.kinds import Key, Kind
from rljob.controller.log import log
from rljob.controller.workqueue import delay
from rljob.manifests.types import LABEL_JOB

SELECTOR = "app.kubernetes.io/managed-by=rljob"
GONE_SECONDS = 300.0
"""A kind that the cluster does not serve is asked for again after so long."""


@dataclass
class Stream:
    """One kind in one namespace, or in all of them."""

    api: Api
    cache: Cache
    kind: Kind
    namespace: str | None
    tell: Callable[[Key], None]
    """Called with each job whose children have changed."""
    clock: Callable[[], float] = time.monotonic
    luck: random.Random = field(default_factory=random.Random)
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the first list is complete."""
    heard: float = field(default=0.0)
    """Time of the last sign of life."""
    denied: bool = False
    """The server says that this may not be looked at (403), and has shown nothing since."""

    def __post_init__(self) -> None:
        self.heard = self.clock()

    @property
    def silent(self) -> float:
        """Seconds since the last sign of life."""
        return self.clock() - self.heard

    async def run(self) -> None:
        """Follow until cancelled."""
        failures, version = 0, ""
        while True:
            try:
                if not version:
                    version = await self._list()
                    failures = 0
                version = await self._watch(version)
                failures = 0
            except ApiError as error:
                if error.missing and self.kind.optional:
                    self.listed.set()
                    self.heard = self.clock() + GONE_SECONDS
                    await asyncio.sleep(GONE_SECONDS)
                    continue
                if error.expired:
                    version = ""
                    continue
                failures += 1
                wait = delay(min(failures, 8), self.luck.random(), error.retry_after)
                known, self.denied = self.denied, self.denied or error.code == 403
                if (failures > 1 or self.denied) and not known:
                    log.warning("watch of %s: %s; next try in %.1f s", self.kind.plural, error, wait)
                if failures > 2 or error.code == 403:
                    version = ""
                await asyncio.sleep(wait)

    async def _list(self) -> str:
        present: set[str] = set()
        more, version = "", ""
        while True:
            part = await self.api.list_objects(self.kind, self.namespace, more, SELECTOR)
            self.heard, self.denied = self.clock(), False
            for item in part.items:
                present.add(item["metadata"]["uid"])
                self._tell(self.cache.put_child(self.kind.kind, item))
            version, more = part.version, part.more
            if not more:
                break
        for key in self.cache.sweep(self.kind.kind, self.namespace, int(version), present):
            self.tell(key)
        self.listed.set()
        return version

    async def _watch(self, version: str) -> str:
        async with self.api.watch(self.kind, self.namespace, version, SELECTOR) as changes:
            # That it was opened is one as well: of a kind that nothing ever happened to, an API server sends no bookmarks.
            self.heard = self.clock()
            async for change in changes:
                self.heard = self.clock()
                meta = change.object["metadata"]
                version = meta["resourceVersion"]
                if change.type == "BOOKMARK":
                    continue
                if change.type == "DELETED":
                    key = Key(meta["namespace"], meta.get("labels", {}).get(LABEL_JOB, ""))
                    if self.cache.drop_child(key, self.kind.kind, meta["name"], meta["uid"]):
                        self.tell(key)
                else:
                    self._tell(self.cache.put_child(self.kind.kind, change.object))
        return version

    def _tell(self, key: Key | None) -> None:
        if key is not None:
            self.tell(key)
