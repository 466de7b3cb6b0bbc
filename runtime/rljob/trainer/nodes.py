"""The trainer on several nodes: each node's agent drives the ranks of its own pod, and a command is done when all have asked for it.

Rank 0 shares a command with all ranks as soon as its agent asks for it. On another node the first rank does it only when its own agent has
asked for the same, which that agent does once its engine has left and memory is free. So every node's hand-over stays with its agent, and
nobody begins before all are ready. What one agent asks for while the others are at something else is refused: it looks again.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from rljob.api import RLJobError
from rljob.trainer.commands import Command, Train, WrongState, decode, name, version_of
from rljob.trainer.loop import Trainer, carry_out, end_if_apart
from rljob.trainer.ranks import Ranks
from rljob.trainer.server import Asked
from rljob.wire.trainer import TrainerStatus


class NodeBoard(Protocol):
    """Where the first rank of a node hears its own agent and rank 0, and shows its status."""

    def event(self) -> Asked | Command:
        """The next of what the agent asks for and what rank 0 shares."""

    def announce(self, command: Command) -> None:
        """Rank 0 has shared this; from any thread."""

    def show(self, status: TrainerStatus) -> None:
        """Replace the status."""


def lead_node(trainer: Trainer, board: NodeBoard) -> None:
    """The first rank of every node but the first: do what rank 0 shares and the own agent asks for. Never returns."""
    listening = Listening(trainer.ranks, board.announce)
    asked: Asked | None = None
    shared: Command | None = None
    error: str | None = None
    while True:
        board.show(trainer.status(name(asked.command) if asked is not None else None, error=error))
        event = board.event()
        if isinstance(event, Asked):
            if asked is not None:
                asked.answer.set_result(WrongState(f"asked to {name(event.command)} meanwhile"))
            asked = _pending(trainer, event)
        else:
            shared = event
        if asked is None or shared is None:
            continue
        if _same(asked.command, shared):
            outcome, error = carry_out(trainer, board.show, shared, partial(trainer.execute, shared))
            shared = None
            asked.answer.set_result(outcome)
            end_if_apart(trainer.ranks, outcome)
            listening.go_on()
        else:
            other = f"{name(shared)}, version {version_of(shared)}"
            asked.answer.set_result(WrongState(f"the trainer's other nodes want to {other}, this one to {name(asked.command)}; look again"))
        asked = None


class Listening:
    """Hears rank 0 in a thread, so that the main thread can hear the agent as well; one command at a time, as the ranks use the same group
    to do it."""

    def __init__(self, ranks: Ranks, announce: Callable[[Command], None]) -> None:
        self._ranks, self._announce = ranks, announce
        self._done = threading.Semaphore(1)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def go_on(self) -> None:
        """What was shared last is done."""
        self._done.release()

    def _listen(self) -> None:
        while True:
            self._done.acquire()
            self._announce(decode(self._ranks.share(None)))


def _pending(trainer: Trainer, asked: Asked) -> Asked | None:
    """What has to wait for the others; what has nothing left to do, or cannot be done, is answered at once."""
    try:
        trainer.refuse(asked.command)
        done = trainer.fulfilled(asked.command)
    except (RLJobError, WrongState) as failure:
        asked.answer.set_result(failure)
        return None
    if done is not None:
        asked.answer.set_result(done)
        return None
    return asked


def _same(one: Command, other: Command) -> bool:
    """Whether two agents ask for the same; where each has its files and memory is its own affair."""
    tasks = (one.body, other.body) if isinstance(one, Train) and isinstance(other, Train) else (None, None)
    return type(one) is type(other) and version_of(one) == version_of(other) and tasks[0] == tasks[1]
