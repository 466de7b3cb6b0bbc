"""Who runs next, who is taken at all, and how long a refused one should wait. Pure: no clock, no tasks."""

import heapq
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

LONGEST_WAIT = 120
"""Seconds; nobody is told to come back later than that."""


@dataclass(frozen=True)
class Place:
    """Where a request stands in the queue. All its runs stand there."""

    order: int
    """The how manieth request this is."""
    priority: int = 0
    """Higher goes first, among those that were not begun."""
    deadline: float | None = None
    """Not worth starting after that."""
    begun: bool = False
    """It has had a slot, and is finished before any other is begun."""


@dataclass
class Queue[T: Hashable]:
    """Waiting tickets: what was begun first, then higher priority, then the older request, then the older ticket of it."""

    _heap: list[tuple[bool, int, int, int, T]] = field(default_factory=list)
    _places: dict[T, Place] = field(default_factory=dict)
    _pushed: int = 0

    def __len__(self) -> int:
        return len(self._places)

    def push(self, ticket: T, place: Place) -> None:
        """Wait. A ticket is pushed once."""
        self._pushed += 1
        self._places[ticket] = place
        heapq.heappush(self._heap, (not place.begun, -place.priority, place.order, self._pushed, ticket))

    def discard(self, ticket: T) -> None:
        """Stop waiting; nothing if it does not wait."""
        self._places.pop(ticket, None)
        # What was discarded stays in the heap until it comes up; a heap of mostly such entries is made anew.
        if len(self._heap) > 2 * len(self._places) + 64:
            self._heap = [entry for entry in self._heap if entry[-1] in self._places]
            heapq.heapify(self._heap)

    def pop(self, now: float) -> tuple[T | None, list[T]]:
        """The next ticket, None if there is none; and those met on the way whose deadline has passed, which no longer wait either."""
        late: list[T] = []
        while self._heap:
            ticket = heapq.heappop(self._heap)[-1]
            place = self._places.pop(ticket, None)
            if place is None:
                continue
            if place.deadline is None or now <= place.deadline:
                return ticket, late
            late.append(ticket)
        return None, late


@dataclass
class Admission:
    """How much is in the service, waiting and running, and whether more fits."""

    requests: int
    """At most so many at the same time."""
    size: int
    """Bytes of their bodies, at most."""
    requests_in: int = 0
    size_in: int = 0

    def fits(self, requests: int, size: int) -> bool:
        """Is there room now?"""
        return self.requests_in + requests <= self.requests and self.size_in + size <= self.size

    def enter(self, requests: int, size: int) -> None:
        """Count in."""
        self.requests_in += requests
        self.size_in += size

    def leave(self, requests: int, size: int) -> None:
        """Count out."""
        self.requests_in -= requests
        self.size_in -= size


@dataclass
class Pace:
    """How long one run holds its slot: an exponential mean that follows the last hundred or so."""

    seconds: float = 0.05
    weight: float = 0.02

    def observe(self, seconds: float) -> None:
        """One run has ended."""
        self.seconds += self.weight * (seconds - self.seconds)

    def retry_after(self, runs: int, slots: int) -> int:
        """Whole seconds until so many waiting runs will have ended; at least 1."""
        return min(LONGEST_WAIT, max(1, math.ceil(runs * self.seconds / slots)))
