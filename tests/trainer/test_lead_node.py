"""The first rank of another node: a command is done when rank 0 shares it and the node's own agent asks for it."""

import queue
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rljob.api import InfrastructureError
from rljob.trainer.commands import Command, Export, Load, Onload, WrongState, encode
from rljob.trainer.loop import Trainer
from rljob.trainer.nodes import lead_node
from rljob.trainer.server import HttpBoard
from rljob.wire.base import Message
from rljob.wire.trainer import ExportCommand, LoadCommand, TrainerStatus

LOAD, EXPORT = Load(LoadCommand(version=3, path="/a")), Export(ExportCommand(version=3, arena="/b/w"))


class World:
    """A trainer that notes what it does, its board, and what rank 0 shares."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.shared: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.fulfilled: set[str] = set()
        self.refused: set[str] = set()
        self.broken: set[str] = set()
        self.board = HttpBoard(self.status())
        trainer = SimpleNamespace(
            ranks=SimpleNamespace(share=lambda data: self.shared.get(), size=2),
            status=self.status,
            refuse=self.refuse,
            held=SimpleNamespace(version=3),
            fulfilled=lambda command: self.status() if type(command).__name__ in self.fulfilled else None,
            execute=self.execute,
            report=None,
        )
        threading.Thread(target=lead_node, args=(cast("Trainer", trainer), self.board), daemon=True).start()

    def status(self, busy: str | None = None, progress: Any = None, error: str | None = None) -> TrainerStatus:
        return TrainerStatus(incarnation="i", version=3, resident=True, busy=busy, progress=progress, error=error)

    def refuse(self, command: Command) -> None:
        if type(command).__name__ in self.refused:
            raise WrongState("not now")
        if type(command).__name__ in self.broken:
            raise InfrastructureError("damaged")

    def execute(self, command: Command) -> Message:
        self.done.append(type(command).__name__)
        return self.status()

    def share(self, command: Command) -> None:
        self.shared.put(encode(command))

    def ask(self, command: Command) -> "Future[Message | Exception]":
        return self.board.ask(command)


@pytest.mark.parametrize("first", ["agent", "rank 0"])
def test_it_waits_for_both(first: str) -> None:
    world = World()
    if first == "agent":
        answer = world.ask(LOAD)
        with pytest.raises(TimeoutError):
            answer.result(0.2)
        assert world.board.status.busy == "load"
        world.share(LOAD)
    else:
        world.share(LOAD)
        answer = world.ask(Load(LoadCommand(version=3, path="/where/this/node/has/it")))
    assert isinstance(answer.result(5), TrainerStatus)
    assert world.done == ["Load"]


def test_what_others_are_not_at_is_refused_and_what_they_are_at_is_done_when_it_is_asked_for() -> None:
    world = World()
    world.share(EXPORT)
    refused = world.ask(LOAD).result(5)
    assert isinstance(refused, WrongState)
    assert "the trainer's other nodes want to export, version 3, this one to load; look again" in str(refused)
    other = world.ask(Export(ExportCommand(version=4, arena="/b/w"))).result(5)
    assert isinstance(other, WrongState)
    assert isinstance(world.ask(EXPORT).result(5), TrainerStatus)
    world.share(Onload())
    assert isinstance(world.ask(Onload()).result(5), TrainerStatus)
    assert world.done == ["Export", "Onload"]


def test_what_is_done_already_or_cannot_be_is_answered_without_the_others() -> None:
    world = World()
    world.fulfilled, world.refused, world.broken = {"Export"}, {"Load"}, {"Onload"}
    assert isinstance(world.ask(EXPORT).result(5), TrainerStatus)
    assert str(world.ask(LOAD).result(5)) == "not now"
    assert str(world.ask(Onload()).result(5)) == "damaged"
    assert world.done == []
