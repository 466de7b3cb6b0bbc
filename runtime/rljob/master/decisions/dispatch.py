"""Which engine gets the next request, and whose requests go elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

QUEUE_AHEAD = 1.25
"""Requests in flight per engine, as a multiple of the sequences it runs at a time: a few waiting ones keep it full while answers travel."""
CACHE_FULL = 0.95
"""Share of KV cache in use above which a waiting queue means that the engine cannot take more."""


LEAD = 4
"""An engine that has a request's prefix in its cache may be ahead of the emptiest one by one part in so many of the sequences it runs."""
SLOW = 4.0
"""An engine that writes so many times slower than another, for each sequence, holds the iteration up."""
SLOW_SECONDS = 10.0
"""For so long it has to be slow: a long prompt takes a while, too."""
SILENT_SECONDS = 20.0
"""An engine that is asked and has not said anything for so long, not even its metrics, is taken as gone until it answers."""


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
    speed: float | None = None
    """Tokens per second of one sequence, smoothed; None while that is not known."""
    slow_since: float | None = None
    """Since when it has been among the slow ones (`slow`)."""


def room(load: Load, max_sequences: int, now: float) -> int:
    """How many more requests the engine can take."""
    if now < load.usable_at or (load.waiting and load.cache_usage > CACHE_FULL):
        return 0
    return max(0, int(max_sequences * QUEUE_AHEAD) - load.in_flight)


def choose(loads: Sequence[Load], max_sequences: int, preferred: str | None, now: float) -> str | None:
    """Key of the engine for the next request, or None if all are full.

    The preferred one (which has the answer's prefix cached) while it has a free sequence and is not far fuller than another, as it is
    when a new engine has joined; else the one with the most room.
    """
    free = {load.key: (room(load, max_sequences, now), load) for load in loads}
    best = max(free.values(), key=lambda pair: pair[0], default=None)
    if best is None or not best[0]:
        return None
    if preferred in free and free[preferred][0] and free[preferred][1].in_flight < max_sequences:
        if free[preferred][0] >= best[0] - max(1, max_sequences // LEAD):
            return preferred
    return best[1].key


def slow(loads: Sequence[Load], max_sequences: int, now: float) -> frozenset[str]:
    """Engines that write far slower than one that could take their requests.

    Asked when no request waits: then the others run dry, and the iteration is as long as the slowest engine makes it.
    """
    able = [load.speed for load in loads if load.speed and room(load, max_sequences, now) >= max_sequences // 2]
    best = max(able, default=0.0)
    return frozenset(load.key for load in loads if load.in_flight and load.speed is not None and load.speed * SLOW < best)


def relieved(loads: Sequence[Load], max_sequences: int, now: float) -> frozenset[str]:
    """Of the slow ones, those that have been so for long: what they write is taken back, with the tokens that there are."""
    found = slow(loads, max_sequences, now)
    return frozenset(
        load.key for load in loads if load.key in found and load.slow_since is not None and now - load.slow_since >= SLOW_SECONDS
    )


def smoothed(before: float | None, tokens: int, running: int, seconds: float) -> float | None:
    """The speed of a sequence after another look: `tokens` more in so many seconds, with so many sequences running."""
    if not running or seconds <= 0:
        return before
    fresh = tokens / running / seconds
    return fresh if before is None else 0.7 * before + 0.3 * fresh
