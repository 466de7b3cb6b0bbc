"""Looks at the world: both sidecars, what runs in them, and the arena."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from rljob.checkpoint_engine.act import Parts
from rljob.checkpoint_engine.outcome import telling_line
from rljob.checkpoint_engine.state import EngineSeen, Known, Observed, Site, TrainerSeen
from rljob.wire.shim import ShimStatus
from rljob.wire.trainer import TrainerStatus

SILENCE = 30.0
"""Seconds that an attested engine, or its shim, may leave questions unanswered (they may be very busy) before it counts as hung."""


class Observer:
    """Builds `Observed`; the one place that does."""

    def __init__(self, site: Site, parts: Parts, clock: Callable[[], float]) -> None:
        self._site, self._parts, self._clock = site, parts, clock
        self._last: tuple[EngineSeen, float] | None = None
        """An engine when both it and its shim last answered, and when that was."""

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
            return await self._without_shim(known)
        seen = EngineSeen(shim.state, shim.incarnation, shim.exit_status, _last_line(shim), None, shim.ready)
        if shim.state != "running":
            return seen
        state = await self._parts.engine.state()
        if state is not None:
            seen = replace(seen, state=state)
            self._last = (seen, self._clock())
            return seen
        last = self._lately(known)
        return replace(seen, state=last.state) if last is not None and last.incarnation == seen.incarnation else seen

    async def _without_shim(self, known: Known) -> EngineSeen:
        """As it was last seen, while the engine itself says that it is what was attested; else away."""
        last = self._lately(known)
        state = await self._parts.engine.state() if last is not None else None
        if last is None or state is None or known.attested != (last.incarnation, state.version, state.checksum):
            return EngineSeen(life="away")
        return replace(last, state=state)

    def _lately(self, known: Known) -> EngineSeen | None:
        """The attested engine as it last answered, if that was not long ago: a late answer costs nothing that it is writing."""
        if self._last is None or self._clock() - self._last[1] >= SILENCE:
            return None
        seen = self._last[0]
        return seen if known.attested is not None and known.attested[0] == seen.incarnation else None


def _last_line(shim: ShimStatus) -> str:
    return telling_line(shim.last_log_lines) if shim.state == "exited" else ""
