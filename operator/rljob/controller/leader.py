"""One operator acts at a time: the holder of a Lease. As client-go does it: clocks of machines are never compared, only how long the record
has not changed; and who cannot renew steps down before another may take over."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rljob.api import InfrastructureError
from rljob.controller.client import Api, ApiError
from rljob.controller.kinds import Ref
from rljob.controller.log import log
from rljob.manifests import Manifest

Step = Literal["make", "take", "renew", "wait"]


class LeaseLost(InfrastructureError):
    """Another operator acts from now on; this one must stop at once."""


def decide_lease(lease: Manifest | None, me: str, unchanged: float) -> Step:
    """What to do about a Lease that has not changed for `unchanged` seconds. Pure."""
    if lease is None:
        return "make"
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity")
    if holder == me:
        return "renew"
    return "take" if not holder or unchanged > float(spec.get("leaseDurationSeconds") or 0) else "wait"


def _micro(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Leader:
    """Takes a Lease and keeps it."""

    api: Api
    ref: Ref
    me: str
    """Unique among operators, such as the pod's name with something random."""
    seconds: float
    clock: Callable[[], float]
    """Unix time, for people who look at the Lease."""
    luck: random.Random = field(default_factory=random.Random)
    _seen: tuple[str, float] = ("", 0.0)

    async def acquire(self) -> None:
        """Wait until this operator is the one that acts."""
        while True:
            if await self._try():
                break
            await asyncio.sleep(self.seconds / 5 * (0.8 + 0.4 * self.luck.random()))
        log.info("%s: this operator (%s) acts", self.ref, self.me)

    async def keep(self) -> None:
        """Renew until that is no longer possible.

        Raises:
            LeaseLost: somebody else has it, or it could not be renewed in time.
        """
        loop = asyncio.get_running_loop()
        renewed, kept = loop.time(), True
        while True:
            await asyncio.sleep(self.seconds / (5 if kept else 15))
            left = renewed + self.seconds * 2 / 3 - loop.time()
            try:
                async with asyncio.timeout(max(0.1, left)):
                    kept = await self._try()
            except TimeoutError:
                kept = False
            if kept:
                renewed = loop.time()
            elif self._holder not in ("", self.me):
                raise LeaseLost(f"{self.ref}: lost to {self._holder}; this operator stops")
            elif (silent := loop.time() - renewed) >= self.seconds * 2 / 3:
                raise LeaseLost(f"{self.ref}: could not be renewed for {silent:.1f} s, so another may take it; this operator stops")

    async def release(self) -> None:
        """Give it back at a clean end, so that the next one need not wait."""
        try:
            lease = await self.api.get(self.ref)
            if lease["spec"].get("holderIdentity") == self.me:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self.api.replace(lease)
        except ApiError as error:
            log.warning("%s: was not given back: %s", self.ref, error)

    _holder: str = ""

    async def _try(self) -> bool:
        """One step; True if this operator holds the Lease after it."""
        try:
            lease = await self._read()
            step = decide_lease(lease, self.me, self._unchanged(lease))
            if step == "make":
                await self.api.create(self._lease({}, 0))
            elif step in ("take", "renew") and lease is not None:
                await self.api.replace(lease | {"spec": self._spec(lease["spec"], step == "take")})
            if step != "wait":
                self._holder = self.me
            return step != "wait"
        except ApiError as error:
            if not error.conflict:
                log.warning("%s: %s", self.ref, error)
            return False

    async def _read(self) -> Manifest | None:
        try:
            lease = await self.api.get(self.ref)
        except ApiError as error:
            if error.missing:
                return None
            raise
        self._holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        return lease

    def _unchanged(self, lease: Manifest | None) -> float:
        """Seconds for which the record has looked the same to this process."""
        now, version = asyncio.get_running_loop().time(), lease["metadata"]["resourceVersion"] if lease else ""
        if self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1]

    def _lease(self, old: dict[str, Any], transitions: int) -> Manifest:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.ref.name, "namespace": self.ref.namespace},
            "spec": self._spec(old, True) | {"leaseTransitions": transitions},
        }

    def _spec(self, old: dict[str, Any], taken: bool) -> dict[str, Any]:
        now = _micro(self.clock())
        spec = dict(old) | {"holderIdentity": self.me, "leaseDurationSeconds": round(self.seconds), "renewTime": now}
        if taken:
            spec |= {"acquireTime": now, "leaseTransitions": int(old.get("leaseTransitions") or 0) + 1}
        return spec
