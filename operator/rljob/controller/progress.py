"""Asks running masters how far they are: each every few seconds, all together not more often than one core has time for."""

import asyncio
import heapq
import json
import random
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from pydantic import ValidationError

from rljob.api import InfrastructureError
from rljob.api.status import JobStatus
from rljob.controller.client import Api
from rljob.controller.decide import SMALL_TALK
from rljob.controller.kinds import Key
from rljob.controller.log import log
from rljob.controller.metrics import Metrics
from rljob.plan.build import MASTER

PER_SECOND = 15.0
"""Looks at all masters together: one costs about 2 ms of CPU on a busy machine."""
AT_ONCE = 16
LONGEST_SECONDS = 60.0
"""Between two looks at a master that does not answer."""

KEPT = 200
"""Of what a master reports for every iteration, so many are kept: no object may be over 1.5 MB, and each write sends all."""
FAMILIES = 200_000
"""Bytes that the accuracies by family may take in all; data may name any number of families."""

Fetch = Callable[["Target"], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Target:
    """A master."""

    key: Key
    uid: str
    address: str
    pod: str


@dataclass
class _Followed:
    target: Target
    report: dict[str, Any] | None = None
    told: float = float("-inf")
    failures: int = 0


@dataclass
class Poller:
    """Implements `rljob.controller.reconcile.Progress`."""

    fetch: Fetch
    tell: Callable[[Key], None]
    metrics: Metrics
    seconds: float = 5.0
    luck: random.Random = field(default_factory=random.Random)
    _followed: dict[Key, _Followed] = field(default_factory=dict)
    _due: list[tuple[float, Key, str]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, key: Key, uid: str, address: str, pod: str) -> None:
        """Ask this master from now on; a new pod starts with nothing said."""
        known = self._followed.get(key)
        target = Target(key, uid, address, pod)
        if known is not None and known.target == target:
            return
        self._followed[key] = _Followed(target)
        self._plan(target, min(1.0, self.seconds))

    def leave(self, key: Key) -> None:
        """Ask no more."""
        self._followed.pop(key, None)

    def report(self, key: Key, pods: Container[str]) -> dict[str, Any] | None:
        """The last word of a master, if it is the one of these pods (uids): an earlier job of this name had another."""
        known = self._followed.get(key)
        return known.report if known and known.target.uid in pods else None

    def _plan(self, target: Target, seconds: float) -> None:
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + seconds, target.key, target.uid))
        self._changed.set()

    @property
    def interval(self) -> float:
        """Seconds between two looks at one master."""
        return max(self.seconds, len(self._followed) / PER_SECOND)

    async def run(self) -> None:
        """Ask until cancelled."""
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wait()
                _, key, uid = heapq.heappop(self._due)
                followed = self._followed.get(key)
                if followed is None or followed.target.uid != uid:
                    continue
                await slots.acquire()
                group.create_task(self._ask(followed, slots))

    async def _wait(self) -> None:
        """Until the first appointment."""
        while True:
            self._changed.clear()
            wait = self._due[0][0] - asyncio.get_running_loop().time() if self._due else None
            if wait is not None and wait <= 0:
                return
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def _ask(self, followed: _Followed, slots: asyncio.Semaphore) -> None:
        try:
            report = await self.fetch(followed.target)
            self._take(followed, report)
        except InfrastructureError:
            followed.failures += 1
            self.metrics.polls.labels("failed").inc()
        except Exception:  # noqa: BLE001 - a master's image is its job's choice: whatever it answers concerns no other job
            followed.failures += 1
            self.metrics.polls.labels("failed").inc()
            log.exception("%s: its master's answer cannot be used", followed.target.key)
        else:
            followed.failures = 0
            self.metrics.polls.labels("ok").inc()
        finally:
            slots.release()
        if self._followed.get(followed.target.key) is followed:
            slower = min(LONGEST_SECONDS, self.interval * 2.0 ** min(followed.failures, 6))
            self._plan(followed.target, max(self.interval, slower) * (0.9 + 0.2 * self.luck.random()))

    def _take(self, followed: _Followed, report: dict[str, Any]) -> None:
        before, now = followed.report, asyncio.get_running_loop().time()
        followed.report = report = shortened(report)
        news = before is None or any(
            report.get(n) != before.get(n) for n in report.keys() | before.keys() if n not in SMALL_TALK - {"phase"}
        )
        if news or now - followed.told > max(30.0, 10 * self.interval):
            followed.told = now
            self.tell(followed.target.key)


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """A report with the newest of what grows with each iteration, and the first evaluation, which the others are compared with."""
    rewards, held_out = report.get("rewards") or [], report.get("heldOut") or []
    short = dict(report)
    if len(rewards) > KEPT:
        short |= {"rewards": rewards[-KEPT:], "rewardsBefore": report.get("rewardsBefore", 0) + len(rewards) - KEPT}
    if held_out:
        short["heldOut"] = _bounded(held_out if len(held_out) <= KEPT else [held_out[0], *held_out[1 - KEPT :]])
    return short


def _bounded(held_out: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations, with the accuracies by family of the first and of the newest ones that fit."""
    left, bounded = FAMILIES, list(held_out)
    for index in (0, *range(len(held_out) - 1, 0, -1)):
        if left >= 0:
            left -= len(json.dumps(held_out[index].get("families") or {}))
        if left < 0:
            bounded[index] = held_out[index] | {"families": {}}
    return bounded


def by_address(session: aiohttp.ClientSession) -> Fetch:
    """Ask at the pod's address: the operator is in the cluster's network."""

    async def fetch(target: Target) -> dict[str, Any]:
        host = f"[{target.address}]" if ":" in target.address else target.address
        try:
            async with session.get(f"http://{host}:{MASTER.number}/v1/status") as response:
                if response.status != 200:
                    raise InfrastructureError(f"{target.pod}: GET /v1/status answered {response.status}")
                found = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise InfrastructureError(f"{target.pod} does not answer: {error!r}") from error
        return _checked(target, found)

    return fetch


def by_api_server(api: Api) -> Fetch:
    """Ask through the API server: the operator is somewhere else (`--dev`)."""

    async def fetch(target: Target) -> dict[str, Any]:
        path = f"/api/v1/namespaces/{target.key.namespace}/pods/{target.pod}:{MASTER.number}/proxy/v1/status"
        return _checked(target, await api.raw(path, once=True))

    return fetch


def _checked(target: Target, found: Any) -> dict[str, Any]:
    """As the CustomResourceDefinition wants it, whatever the master's version."""
    try:
        return JobStatus.model_validate(found, extra="ignore").model_dump(mode="json", by_alias=True, exclude_none=True)
    except ValidationError as error:
        raise InfrastructureError(f"{target.pod}: its status is no JobStatus: {error.errors(include_url=False)[0]}") from error
