"""How long a task still takes."""

import math
from collections import deque
from dataclasses import dataclass, field

from rljob.wire.node import Progress

WINDOW = 1.0
"""Seconds that the pace is taken from: a task may change it, as training does after the reference's pass, which goes forward only."""


@dataclass
class Pace:
    """What a task's latest progress says of its end. Told the time; pure."""

    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def remaining(self, now: float, progress: Progress | None) -> float:
        """Seconds that are left at the pace of the last moments; infinite while nobody can say."""
        if progress is None:
            return math.inf
        if self._marks and progress.done < self._marks[-1][1]:
            self._marks.clear()  # another task, or the same anew
        if not self._marks or progress.done > self._marks[-1][1]:
            self._marks.append((now, progress.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()
        began, first = self._marks[0]
        if now <= began or progress.done == first:
            return math.inf
        return (progress.total - progress.done) * (now - began) / (progress.done - first)
