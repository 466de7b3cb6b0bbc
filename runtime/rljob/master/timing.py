"""Where the time of an iteration went."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Clock = Callable[[], float]
"""Unix time in seconds (`rljob.wire.clock`)."""


class Stopwatch:
    """Seconds per phase since the last lap, as this process saw them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begun = self._clock()
        try:
            yield
        finally:
            self.add({name: self._clock() - begun})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what others have timed."""
        for name, value in seconds.items():
            self._phases[name] = self._phases.get(name, 0.0) + value

    def so_far(self) -> dict[str, float]:
        """Phases, `other` (what no phase accounts for) and `total`."""
        total = self._clock() - self._begun
        return {**self._phases, "other": max(0.0, total - sum(self._phases.values())), "total": total}

    def lap(self) -> dict[str, float]:
        """`so_far`, and start again."""
        seconds = self.so_far()
        self._begun, self._phases = self._clock(), {}
        return seconds


def uncounted(steps: Mapping[str, float], counted: Mapping[str, float]) -> dict[str, float]:
    """Seconds of `steps` that are not in `counted` yet. A step that is shorter than what was counted of it has been timed anew since."""
    return {step: s - before if (before := counted.get(step, 0.0)) <= s else s for step, s in steps.items()}


class News:
    """Wakes everybody who waits, each time something has changed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def announce(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Until the next announcement."""
        await self._event.wait()
