"""Puts the view on a terminal, or plain lines where there is none."""

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.live import Live

from rljob.api.status import JobStatus
from rljob.local import view
from rljob.local.supervisor import Event


class Display(Protocol):
    """Where a run's news go."""

    def event(self, event: Event) -> None:
        """A container did something."""

    def status(self, before: JobStatus | None, after: JobStatus) -> None:
        """The job has something new to say."""

    def refresh(self, status: JobStatus | None, note: str) -> None:
        """Time has passed."""

    def say(self, text: str) -> None:
        """A line from the supervisor itself."""

    def close(self) -> None:
        """The run is over."""


class PlainDisplay:
    """One line per event, with the seconds since the start."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._begun = clock()

    def say(self, text: str) -> None:
        self._console.print(f"[{self._clock() - self._begun:6.1f} s] {text}", soft_wrap=True)

    def event(self, event: Event) -> None:
        words = {"started": "started", "ready": "is ready", "done": "has finished", "restart": "failed:", "ended": "has ended:"}
        self.say(f"{event.key} {words[event.kind]} {event.text}".rstrip())

    def status(self, before: JobStatus | None, after: JobStatus) -> None:
        for line in view.changes(before, after):
            self.say(line)

    def refresh(self, status: JobStatus | None, note: str) -> None:
        """Nothing: plain output only grows."""

    def close(self) -> None:
        """Nothing to take down."""


class LiveDisplay:
    """A screen that is redrawn, below lines that stay."""

    def __init__(self, console: Console, job: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._job = job
        self._clock = clock
        self._begun = clock()
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        stamp = view.clock(self._clock() - self._begun)
        self._console.print(f"{stamp:>7}  ", style="dim", end="")
        self._console.print(text)

    def event(self, event: Event) -> None:
        if event.kind == "restart":
            self.say(f"{event.key} failed: {event.text}")

    def status(self, before: JobStatus | None, after: JobStatus) -> None:
        for line in view.changes(before, after):
            self.say(line)

    def refresh(self, status: JobStatus | None, note: str) -> None:
        self._live.update(view.live(self._job, status, self._clock() - self._begun, note), refresh=True)

    def close(self) -> None:
        self._live.stop()


def choose(console: Console, job: str) -> Display:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveDisplay(console, job) if console.is_terminal else PlainDisplay(console)
