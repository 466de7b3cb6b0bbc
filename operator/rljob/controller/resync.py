"""What streams cannot tell: RLJobs that were deleted while kopf listed again, a stream that only looks alive, what the cluster offers."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from rljob.controller.cache import Cache
from rljob.controller.client import Api, ApiError
from rljob.controller.kinds import DEVICE_CLASS, RLJOB, Key, Ref
from rljob.controller.log import log
from rljob.manifests import Cluster

RESYNC_SECONDS, CLUSTER_SECONDS = 120.0, 600.0


def places(namespaces: list[str]) -> list[str | None]:
    """Where to look: None is everywhere."""
    return [*namespaces] or [None]


async def discover(api: Api, last: Cluster) -> Cluster:
    """What rendering must know of the cluster. `last`: what was known; its DeviceClasses stay where they may not be listed."""
    version = await api.raw("/version")
    numbers = tuple(int(re.sub(r"\D.*", "", str(version.get(part) or "0")) or 0) for part in ("major", "minor"))
    try:
        items = (await api.list_objects(DEVICE_CLASS._replace(whole=False), None)).items
        classes = frozenset(item["metadata"]["name"] for item in items)
    except ApiError as error:
        # 404: the cluster does not serve the kind. 403 says nothing about what there is.
        if error.code not in (403, 404):
            raise
        if error.code == 403:
            log.warning("DeviceClasses may not be listed, so what is known of them stays (%s): %s", _known(last), error)
        classes = last.device_classes if error.code == 403 else frozenset()
    return Cluster((numbers[0], numbers[1]), classes)


def _known(cluster: Cluster) -> str:
    return ", ".join(sorted(cluster.device_classes)) or "none"


@dataclass
class Resync:
    """Compares the cache of RLJobs with the API server now and then."""

    api: Api
    cache: Cache
    namespaces: list[str]
    tell: Callable[[Key], None]
    missed: int = 0
    """Times in a row that the stream had missed something."""
    _late: dict[str | None, set[tuple[Key, str]]] = field(default_factory=dict)
    """By namespace: what was late at the last look."""

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            found = []
            for namespace in places(self.namespaces):
                try:
                    found.append(await self._compare(namespace))
                except ApiError as error:
                    log.warning("resync of RLJobs: %s", error)
            if found:
                self.missed = self.missed + 1 if any(found) else 0

    async def _compare(self, namespace: str | None) -> int:
        present, more, version, late = set(), "", "", set()
        while True:
            part = await self.api.list_objects(RLJOB._replace(whole=False), namespace, more)
            for meta in (item["metadata"] for item in part.items):
                key = Key(meta["namespace"], meta["name"])
                present.add(meta["uid"])
                known = self.cache.jobs.get(key)
                if known is None or int(known.version) < int(meta["resourceVersion"]):
                    late.add((key, meta["resourceVersion"]))
            version, more = part.version, part.more
            if not more:
                break
        gone = list(self.cache.sweep_jobs(namespace, int(version), present))
        # What was late at the last look as well, the stream will not bring any more.
        missed = late & self._late.get(namespace, set())
        self._late[namespace] = late
        for key, _ in missed:
            self.cache.put_job(await self.api.get(Ref("RLJob", key.namespace, key.name)))
        for key in [*gone, *(key for key, _ in missed)]:
            self.tell(key)
        return len(missed)
