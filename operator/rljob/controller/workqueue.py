"""Which job is looked at next: each at most once at a time, however often it is named meanwhile; one that failed later and later."""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rljob.api import InfrastructureError
from rljob.controller.kinds import Key
from rljob.controller.log import log
from rljob.controller.metrics import Metrics

FIRST_DELAY, LONGEST_DELAY = 0.2, 60.0

Look = Callable[[Key], Awaitable[float | None]]
"""Looks at a job; answers after how many seconds to look again if nothing happens before."""


def delay(failures: int, luck: float, least: float | None = None) -> float:
    """Seconds before the next try after so many failures in a row: doubled each time, and between half of that and all of it, by `luck` (0
    to 1), so that those who failed together do not come back together. So they do not where the server says how long at `least`
    (`Retry-After`) either: it says the same to all."""
    full = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))
    return max(full * (0.5 + luck / 2), (least or 0.0) * (1 + luck / 2))


@dataclass
class WorkQueue:
    """Keys that wait, and the workers that take them."""

    look: Look
    metrics: Metrics
    luck: random.Random = field(default_factory=random.Random)
    _waiting: deque[Key] = field(default_factory=deque)
    _queued: set[Key] = field(default_factory=set)
    _running: set[Key] = field(default_factory=set)
    _failures: dict[Key, int] = field(default_factory=dict)
    _later: list[tuple[float, Key]] = field(default_factory=list)
    _due: dict[Key, float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _timer: asyncio.TimerHandle | None = None

    def add(self, key: Key) -> None:
        """Look at a job soon."""
        if key in self._queued:
            return
        self._queued.add(key)
        if key not in self._running:
            self._waiting.append(key)
            self._changed.set()
        self.metrics.depth.set(len(self._waiting))

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at a job after a while; an earlier appointment stands."""
        due = asyncio.get_running_loop().time() + seconds
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._later, (due, key))
        self._arm()

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    def failures(self, key: Key) -> int:
        """Failed looks in a row."""
        return self._failures.get(key, 0)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            self._timer = asyncio.get_running_loop().call_at(self._later[0][0], self._ring)

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._later and self._later[0][0] <= now:
            due, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._timer = None
        self._arm()

    async def run(self, workers: int) -> None:
        """Look at jobs until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            key = self._waiting.popleft()
            self._queued.discard(key)
            self._running.add(key)
            self.metrics.depth.set(len(self._waiting))
            try:
                await self._one(key)
            finally:
                self._running.discard(key)
                if key in self._queued:
                    self._waiting.append(key)
                    self._changed.set()

    async def _one(self, key: Key) -> None:
        try:
            with self.metrics.looking():
                again = await self.look(key)
        except Exception as error:  # noqa: BLE001 - one job must not take the others with it, nor the operator after each restart
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            wait = delay(failures, self.luck.random(), getattr(error, "retry_after", None))
            self.metrics.errors.inc()
            if isinstance(error, InfrastructureError):
                log.warning("%s: %s; next try in %.1f s", key, error, wait)
            else:
                log.exception("%s: a fault of this operator; next try in %.1f s", key, wait)
            self.add_after(key, wait)
            return
        self._failures.pop(key, None)
        if again is not None:
            self.add_after(key, again)
