"""What can be asked of the trainer, as values: made by the server, carried to every rank as bytes, executed by the loop."""

import json
from dataclasses import dataclass

from rljob.wire.node import TrainTask
from rljob.wire.trainer import CheckpointCommand, ExportCommand, LoadCommand, OffloadCommand


@dataclass(frozen=True)
class Load:
    body: LoadCommand


@dataclass(frozen=True)
class Train:
    body: TrainTask
    batch: bytes
    """Batch.encode()"""


@dataclass(frozen=True)
class Export:
    body: ExportCommand


@dataclass(frozen=True)
class Checkpoint:
    body: CheckpointCommand


@dataclass(frozen=True)
class Offload:
    body: OffloadCommand


@dataclass(frozen=True)
class Onload:
    pass


Command = Load | Train | Export | Checkpoint | Offload | Onload
KINDS = ("load", "train", "export", "checkpoint", "offload", "onload")
"""Commands by their name in the address."""


class WrongState(Exception):
    """The command does not fit the trainer's state; nothing has changed. HTTP 409."""


def name(command: Command) -> str:
    """`load`, `train`, ..."""
    return type(command).__name__.lower()


def version_of(command: Command) -> int | None:
    """The version that it is about, if any."""
    return None if isinstance(command, Offload | Onload) else command.body.version


def parse(kind: str, body: bytes, task: str | None) -> Command:
    """A command from its HTTP request; `task` is the header of `train`, whose body is the batch.

    Raises:
        pydantic.ValidationError: the body is not what the command needs.
        ValueError: there is no such command.
    """
    match kind:
        case "load":
            return Load(LoadCommand.model_validate_json(body))
        case "train":
            return Train(TrainTask.model_validate_json(task or ""), body)
        case "export":
            return Export(ExportCommand.model_validate_json(body))
        case "checkpoint":
            return Checkpoint(CheckpointCommand.model_validate_json(body))
        case "offload":
            return Offload(OffloadCommand.model_validate_json(body or b"{}"))
        case "onload":
            return Onload()
    raise ValueError(f"no such command: {kind}")


def encode(command: Command) -> bytes:
    """One line of JSON, then the batch if there is one."""
    body = "" if isinstance(command, Onload) else command.body.model_dump_json()
    return json.dumps([name(command), body]).encode() + b"\n" + (command.batch if isinstance(command, Train) else b"")


def decode(data: bytes) -> Command:
    """Inverse of `encode`."""
    head, _, batch = data.partition(b"\n")
    kind, body = json.loads(head)
    return parse(kind, batch if kind == "train" else body.encode(), body)
