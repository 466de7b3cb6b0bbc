"""Which engine gets the next request."""

from collections.abc import Sequence
from dataclasses import dataclass

QUEUE_AHEAD = 1.25
"""Requests in flight per engine, as a multiple of the sequences it runs at a time: a few waiting ones keep it full while answers travel."""
CACHE_FULL = 0.95
"""Share of KV cache in use above which a waiting queue means that the engine cannot take more."""


@dataclass(frozen=True)
class Load:
    """An engine as the master sees it."""

    key: str
    in_flight: int
    """Requests of ours that it has not answered."""
    waiting: int = 0
    """Requests that it says it has queued."""
    cache_usage: float = 0.0
    """Share of its KV cache in use, 0 to 1."""
    usable_at: float = 0.0
    """It failed; not to be used before this time."""


def room(load: Load, max_sequences: int, now: float) -> int:
    """How many more requests the engine can take."""
    if now < load.usable_at or (load.waiting and load.cache_usage > CACHE_FULL):
        return 0
    return max(0, int(max_sequences * QUEUE_AHEAD) - load.in_flight)


def choose(loads: Sequence[Load], max_sequences: int, preferred: str | None, now: float) -> str | None:
    """Key of the engine for the next request, or None if all are full.

    The preferred one (which has the answer's prefix cached) while it has a free sequence, else the one with the most room.
    """
    free = {load.key: (room(load, max_sequences, now), load) for load in loads}
    if preferred in free and free[preferred][0] and free[preferred][1].in_flight < max_sequences:
        return preferred
    best = max(free.values(), key=lambda pair: pair[0], default=None)
    return best[1].key if best is not None and best[0] else None
