"""Watches over failures: counts them, and ends the job when `decisions.health` says so."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

from rljob.api import RLJobError
from rljob.api.status import LastFailure
from rljob.master.decisions import health
from rljob.wire.base import Failure
from rljob.wire.node import NodeReport

log = logging.getLogger(__name__)


def _wall_time() -> datetime:
    """For others, who go by the machine's clock; to the second, as times in Kubernetes."""
    return datetime.now(UTC).replace(microsecond=0)


class Watch:
    """The job's health."""

    def __init__(self, backoff_limit: int, clock: Callable[[], datetime] = _wall_time) -> None:
        self._limit, self._clock = backoff_limit, clock
        self._health = health.Health()
        self._ended: asyncio.Future[RLJobError] = asyncio.get_running_loop().create_future()

    @property
    def last(self) -> LastFailure | None:
        """The newest failure."""
        return self._health.last

    @property
    def over(self) -> bool:
        """True once the failures have ended the job."""
        return self._ended.done()

    def reported(self, report: NodeReport, workers_away: bool) -> None:
        """A node has reported; `workers_away`: another one that trains has not, for a while."""
        self._now(health.reported(self._health, report, workers_away))

    def failed(self, pod: str, stage: str, reason: str, message: str, configuration: bool = False, vital: bool = True) -> None:
        """The master itself saw something fail; `vital`: the job cannot do without it."""
        failure = Failure(stage=stage, reason=reason, message=message, configuration=configuration)
        self._now(health.failed(self._health, pod, failure, vital))

    def progressed(self) -> None:
        """Something durable was reached."""
        self._health = health.progressed(self._health)

    async def ended(self) -> NoReturn:
        """Wait until the job has failed.

        Raises:
            RLJobError: why.
        """
        raise await asyncio.shield(self._ended)

    def _now(self, new: health.Health) -> None:
        if new.last is not None and new.last is not self._health.last:
            log.warning("%s on %s failed: %s (%s)", new.last.stage, new.last.pod, new.last.message, new.last.reason)
            new = replace(new, last=new.last.model_copy(update={"at": self._clock()}))
        self._health = new
        error = health.end_of(new, self._limit)
        if error is not None and not self._ended.done():
            self._ended.set_result(error)
