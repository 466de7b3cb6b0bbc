"""What the running job says of itself, asked from the master again and again."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from pydantic import ValidationError

from rljob.api.status import JobStatus


@dataclass(frozen=True)
class PhaseTimes:
    """Seconds spent in each phase so far; a value, folded forward."""

    seconds: dict[str, float] = field(default_factory=dict)
    phase: str = "Preparing"
    since: float = 0.0

    def at(self, phase: str, now: float) -> "PhaseTimes":
        """The job is in `phase` at `now`; what has passed since the last look counts for the phase before."""
        passed = max(0.0, now - self.since)
        return PhaseTimes(self.seconds | {self.phase: self.seconds.get(self.phase, 0.0) + passed}, phase, now)


class Watcher:
    """Keeps the newest status of the job. `latest` is None until the master has answered once; what was `known` before is no news then."""

    def __init__(
        self,
        url: str,
        changed: Callable[[JobStatus | None, JobStatus], None],
        known: JobStatus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.latest: JobStatus | None = None
        self._known = known
        self.times = PhaseTimes(since=clock())
        self._url = url
        self._changed = changed
        self._clock = clock

    def progress(self) -> tuple[int, int] | None:
        """What counts as progress between two failures."""
        return (self.latest.iteration, self.latest.policy_version) if self.latest else None

    def take(self, status: JobStatus) -> None:
        """A newer status is known."""
        before, self.latest = self.latest or self._known, status
        self.times = self.times.at(status.phase, self._clock())
        self._changed(before, status)

    async def watch(self, every: float = 0.25) -> None:
        """Ask until cancelled. A master that does not answer is the supervisor's business."""
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            while True:
                try:
                    answer = await client.get(f"{self._url}/v1/status")
                    if answer.status_code == 200:
                        self.take(JobStatus.model_validate_json(answer.content))
                except (httpx.TransportError, ValidationError):
                    pass
                await asyncio.sleep(every)
