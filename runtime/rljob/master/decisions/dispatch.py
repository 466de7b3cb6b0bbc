"""Which engine gets the next request, and whose requests go elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

QUEUE_AHEAD = 1.25
"""Requests in flight per engine, as a multiple of the sequences it runs at a time: a few waiting ones keep it full while answers travel."""
CACHE_SHORT = 0.5
"""Share of its KV cache in use above which an engine that has a free sequence and lets requests wait has no cache for them. Below that they
wait to be read, which may be over before the next look at its figures."""
LEAD = 4
"""An engine that has a request's prefix in its cache may be fuller than the emptiest one by one part in so many."""
SLOW = 4.0
"""An engine that writes so many times slower than another, for each sequence, holds the iteration up."""
SHARED = 32
"""An engine that runs so many sequences more than another may well write half as fast for each, and is as good as that one."""
SLOW_SECONDS = 10.0
"""For so long it has to be slow: a long prompt takes a while, too."""
READS = 1000.0
"""Tokens per second that an engine reads at least, of answers that are new to it; it writes little or nothing meanwhile."""
READING_SECONDS = 120.0
"""For so long that may go on at most: an engine that hangs reads nothing."""
SILENT_SECONDS = 20.0
"""An engine that is asked and has not said anything for so long, not even its metrics, is taken as gone until it answers."""


@dataclass(frozen=True)
class Load:
    """An engine as the master sees it."""

    key: str
    in_flight: int
    """Requests of ours that it has not answered."""
    running: int = 0
    """Sequences that it says it runs."""
    waiting: int = 0
    """Requests that it says it has queued."""
    cache_usage: float = 0.0
    """Share of its KV cache in use, 0 to 1."""
    usable_at: float = 0.0
    """It failed; not to be used before this time."""
    speed: float | None = None
    """Tokens per second of one sequence, smoothed; None while that is not known."""
    reads_until: float = -math.inf
    """Until when it may be reading what it was sent (`reading_until`)."""
    busy_since: float = math.inf
    """Since when it has had requests without a break."""
    quiet: bool = False
    """It had requests, and wrote nothing from one look at its figures to the next."""
    slow_since: float | None = None
    """Since when it has been among the slow ones (`slow`)."""


def room(load: Load, max_sequences: int, now: float) -> int:
    """How many more requests the engine can take: none while some wait there for KV cache. Those that wait for a sequence are few
    (`QUEUE_AHEAD`), and keep it full."""
    short = queues(load, max_sequences) and load.cache_usage > CACHE_SHORT
    return 0 if short or now < load.usable_at else max(0, int(max_sequences * QUEUE_AHEAD) - load.in_flight)


def queues(load: Load, max_sequences: int) -> bool:
    """Whether requests wait in the engine for something else than a sequence: for KV cache, or to be read."""
    return load.waiting > 0 and load.running < min(load.in_flight, max_sequences)


def reads(load: Load, max_sequences: int, now: float) -> bool:
    """Whether the engine may be reading what it was sent: long answers that were moved to it take it a while, and say nothing of the speed
    at which it writes."""
    return (load.quiet or queues(load, max_sequences)) and now < load.reads_until


def reading_until(before: float, tokens: int, now: float) -> float:
    """Until when an engine may be reading that had until `before` to do so and is sent so many tokens more."""
    return min(max(before, now) + tokens / READS, now + READING_SECONDS)


def fullness(load: Load, max_sequences: int) -> float:
    """Share of the engine that is taken: of its sequences or of its KV cache, whichever is more. From one look at its figures to the next,
    every request of ours that comes or goes counts with the cache that one had then."""
    cache = load.cache_usage / load.running * load.in_flight if load.running else load.cache_usage
    return max(load.in_flight / max_sequences, cache)


def choose(loads: Sequence[Load], max_sequences: int, preferred: str | None, now: float) -> str | None:
    """Key of the engine for the next request, or None if all are full.

    The preferred one (which has the answer's prefix cached) while it has a free sequence and is not far fuller than another, as it is
    when a new engine has joined; else the one of which the most is free.
    """
    able = {load.key: load for load in loads if room(load, max_sequences, now)}
    if not able:
        return None
    full = {key: fullness(load, max_sequences) for key, load in able.items()}
    best = min(able, key=lambda key: (full[key], able[key].in_flight))
    if preferred in able and able[preferred].in_flight < max_sequences:
        if full[preferred] <= full[best] + max(1 / LEAD, 1 / max_sequences):
            return preferred
    return best


def slow(loads: Sequence[Load], max_sequences: int, now: float) -> frozenset[str]:
    """Engines that write far slower than one that could take their requests.

    Asked when no request waits: then the others run dry, and the iteration is as long as the slowest engine makes it.
    """
    able = _free(loads, max_sequences, now)
    return frozenset(load.key for load in loads if load.in_flight and any(_far_slower(load, other) for other in able))


def relieved(loads: Sequence[Load], max_sequences: int, now: float) -> frozenset[str]:
    """Of the slow ones, those that have been so for long: what they write is taken back, with the tokens that there are."""
    found = slow(loads, max_sequences, now)
    return frozenset(
        load.key
        for load in loads
        if load.key in found
        and load.slow_since is not None
        and now - load.slow_since >= SLOW_SECONDS
        and not reads(load, max_sequences, now)
    )


def trial(loads: Sequence[Load], max_sequences: int, now: float) -> str | None:
    """Key of the engine of which one request is to be taken back, for another to show how fast it writes: that one has nothing to do and
    was never measured, because it has just joined, say, so that `slow` cannot tell. None if there is no need.

    Asked when no request waits.
    """
    idle = [load for load in _free(loads, max_sequences, now) if not load.in_flight]
    if not idle or any(load.speed for load in idle):
        return None
    long = [
        load
        for load in loads
        if load.in_flight and now >= load.usable_at and now - load.busy_since >= SLOW_SECONDS and not reads(load, max_sequences, now)
    ]
    return min(long, key=lambda load: load.speed or 0.0).key if long else None


def smoothed(before: float | None, tokens: int, was_running: int, running: int, seconds: float) -> float | None:
    """The speed of a sequence after another look: `tokens` more in so many seconds, of so many sequences at its beginning and its end.

    As before if their number has changed much: of many that have ended nobody knows when they did.
    """
    fewer, more = sorted((was_running, running))
    if not more or fewer * 2 < more or seconds <= 0:
        return before
    fresh = tokens / more / seconds
    return fresh if before is None else 0.7 * before + 0.3 * fresh


def _far_slower(load: Load, other: Load) -> bool:
    """Whether one writes far slower than the other, as far as that is known, and not for the sequences alone that share it."""
    if load.speed is None or other.speed is None:
        return False
    return load.speed * SLOW * (1 + max(0, load.running - other.running) / SHARED) < other.speed


def _free(loads: Sequence[Load], max_sequences: int, now: float) -> list[Load]:
    """Engines that could take many requests."""
    return [load for load in loads if room(load, max_sequences, now) >= max(1, max_sequences // 2)]
