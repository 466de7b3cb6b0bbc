"""What the master is doing right now, for the status."""

from typing import Literal

from rljob.api.status import ProgressStatus
from rljob.master.timing import Clock, News

Phase = Literal["Preparing", "WarmStart", "Rollout", "Training", "Evaluating", "Finishing", "Succeeded", "Failed"]


class Activity:
    """Phase and progress."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.phase: Phase = "Preparing"
        self.progress: ProgressStatus | None = None
        self.begun = clock()
        self.tokens = 0
        """The engines' token count when this began."""
        self.records = 0
        """Raised when a record was added that report and metrics have to show."""
        self.news = News()

    def begin(self, phase: Phase, progress: ProgressStatus | None = None, tokens: int = 0) -> None:
        """Something new has begun; `tokens` is the engines' count by now."""
        self.phase, self.progress, self.begun, self.tokens = phase, progress, self._clock(), tokens
        self.news.announce()

    def advanced(self) -> None:
        """One more is done."""
        if self.progress is not None:
            self.progress = self.progress.model_copy(update={"done": self.progress.done + 1})

    def changed(self) -> None:
        """A durable record was added."""
        self.records += 1
        self.news.announce()
