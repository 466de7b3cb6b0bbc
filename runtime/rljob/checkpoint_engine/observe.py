"""Looks at the world: both sidecars, what runs in them, and the arena."""

import asyncio
from collections.abc import Callable

from rljob.checkpoint_engine.act import Parts
from rljob.checkpoint_engine.outcome import telling_line
from rljob.checkpoint_engine.state import EngineSeen, EngineState, Known, Observed, Site, TrainerSeen
from rljob.wire.shim import ShimStatus
from rljob.wire.trainer import TrainerStatus

SILENCE = 30.0
"""Seconds that an attested engine may leave a question unanswered (it may be very busy) before it counts as hung."""


class Observer:
    """Builds `Observed`; the one place that does."""

    def __init__(self, site: Site, parts: Parts, clock: Callable[[], float]) -> None:
        self._site, self._parts, self._clock = site, parts, clock
        self._last: tuple[str, EngineState, float] | None = None
        """Incarnation, last answer and its time, of an engine that has answered."""

    async def look(self, known: Known) -> Observed:
        """The world as it is."""
        trainer, engine = await asyncio.gather(self._trainer(), self._engine(known))
        return Observed(self._site, trainer, engine, self._parts.weights.version(), known)

    async def _trainer(self) -> TrainerSeen:
        if self._site.kind == "rollout":
            return TrainerSeen()
        shim = await self._parts.trainer_shim.status()
        if shim is None:
            return TrainerSeen(life="away")
        status: TrainerStatus | None = await self._parts.trainer.status() if shim.state == "running" else None
        return TrainerSeen(shim.state, shim.incarnation, shim.exit_status, _last_line(shim), status)

    async def _engine(self, known: Known) -> EngineSeen:
        if not self._site.serves:
            return EngineSeen()
        shim = await self._parts.engine_shim.status()
        if shim is None:
            return EngineSeen(life="away")
        state = await self._parts.engine.state() if shim.state == "running" else None
        state = self._patient(shim.incarnation, state, known) if shim.state == "running" else None
        return EngineSeen(shim.state, shim.incarnation, shim.exit_status, _last_line(shim), state, shim.ready)

    def _patient(self, incarnation: str | None, state: EngineState | None, known: Known) -> EngineState | None:
        """An attested engine's last answer stands in for a late one."""
        now = self._clock()
        if state is not None and incarnation is not None:
            self._last = (incarnation, state, now)
            return state
        attested = known.attested is not None and known.attested[0] == incarnation
        if attested and self._last is not None and self._last[0] == incarnation and now - self._last[2] < SILENCE:
            return self._last[1]
        return None


def _last_line(shim: ShimStatus) -> str:
    return telling_line(shim.last_log_lines) if shim.state == "exited" else ""
