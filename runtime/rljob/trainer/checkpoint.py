"""Checkpoints: a Hugging Face folder that is complete or does not exist, and loads at any parallel size.

`model.safetensors` holds the fp32 masters; configuration and tokenizer are those of the starting model; `optimizer/state.safetensors`
Adam's moments by Hugging Face name, if they outlive an iteration; `rljob.json` says what it is. No random state: nothing in training
draws numbers but the order of groups, which comes from the job's seed and the version.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field, ValidationError

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.arena import TensorFile, manifest_checksum, tensor_entries
from rljob.trainer.build import Replica
from rljob.trainer.optimizer import STATES
from rljob.trainer.ranks import Ranks
from rljob.trainer.weights import Name, layout, merged, shared_file, write
from rljob.wire.base import Message
from rljob.wire.node import TrainMetrics

RECORD = "rljob.json"
MODEL = "model.safetensors"
Where = Callable[[torch.Tensor], torch.Tensor]
OPTIMIZER = Path("optimizer") / "state.safetensors"


class Record(Message):
    """`rljob.json`"""

    version: int
    checksum: str
    """Of `model.safetensors`, made like a manifest's."""
    steps: dict[str, float] = Field(default_factory=dict)
    """Optimizer steps by Hugging Face name; empty without optimizer state."""
    trained: TrainMetrics | None = None
    """Result of the task that made this version."""


def read_record(folder: Path) -> Record | None:
    """What a checkpoint says of itself; None for a folder that is not one."""
    try:
        return Record.model_validate_json((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InfrastructureError(f"{folder / RECORD} is damaged: {error}") from error


def verify(folder: Path, record: Record) -> None:
    """Raises InfrastructureError unless `model.safetensors` is what the record says."""
    with TensorFile.open(folder / MODEL) as file:
        found = manifest_checksum(tensor_entries(file, file.checksums(), node=""))
    if found != record.checksum:
        raise InfrastructureError(f"{folder / MODEL} is damaged: its checksum is {found}, {RECORD} says {record.checksum}")


def save(
    replica: Replica,
    ranks: Ranks,
    folder: Path,
    version: int,
    trained: TrainMetrics | None,
    model_folder: Path,
    incarnation: str,
    where: Where = lambda tensor: tensor,
) -> Record | None:
    """Write a checkpoint and make it durable before it gets its name. Rank 0 returns its record, the others None.

    `where` finds masters and moments if they are offloaded: a checkpoint needs no accelerator.
    """
    draft = folder.with_name(f".{folder.name}.{incarnation}")
    with ranks.together():
        if ranks.leads:
            _discard_drafts(folder)
            (draft / OPTIMIZER).parent.mkdir(parents=True)
    checksums, model = _write_masters(replica, ranks, draft, where)
    steps = _write_moments(replica, ranks, draft, where) if not replica.optimizer.empty else {}
    with ranks.together():
        if not ranks.leads:
            return None
        with model:
            checksums |= model.checksums(n for n in model.names() if n not in checksums)
            record = Record(
                version=version, checksum=manifest_checksum(tensor_entries(model, checksums, node="")), steps=steps, trained=trained
            )
        if not steps:
            (draft / OPTIMIZER).parent.rmdir()
        _copy_description(model_folder, draft)
        (draft / RECORD).write_text(record.model_dump_json(indent=2))
        commit(draft, folder)
        return record


def _write_masters(replica: Replica, ranks: Ranks, draft: Path, where: Where) -> tuple[dict[str, str], TensorFile]:
    file = shared_file(ranks, draft / MODEL, layout(replica, torch.float32), on_disk=True)
    with ranks.together():
        file.set_metadata({"format": "pt"})  # transformers wants to know
        checksums = write(file, replica, {name: where(master) for name, master in replica.masters().items()})
        file.sync()
    return merged(ranks, checksums), file


def _write_moments(replica: Replica, ranks: Ranks, draft: Path, where: Where) -> dict[str, float]:
    """Returns the step count of every tensor."""
    masters = replica.masters()
    states = {name: replica.optimizer.state(master) for name, master in masters.items()}
    names = tuple(_moment_name(moment) for moment in STATES)
    with shared_file(ranks, draft / OPTIMIZER, layout(replica, torch.float32, names), on_disk=True) as file, ranks.together():
        for moment in STATES:
            write(file, replica, {name: where(state[moment]) for name, state in states.items()}, _moment_name(moment))
        file.sync()
    return merged(ranks, {piece.name: float(where(states[piece.parameter]["step"])) for piece in replica.pieces})


@torch.no_grad()
def load_moments(replica: Replica, folder: Path, record: Record) -> None:
    """Take the optimizer's state of a checkpoint, if it has one."""
    replica.optimizer.reset()
    if not record.steps:
        return
    masters = replica.masters()
    with TensorFile.open(folder / OPTIMIZER) as file:
        for piece in replica.pieces:
            state = replica.optimizer.state(masters[piece.parameter])
            state["step"].fill_(record.steps[piece.name])
            for moment in STATES:
                mine, theirs = piece.of(state[moment], file.view(_moment_name(moment)(piece.name)))
                mine.copy_(theirs)


def commit(draft: Path, folder: Path) -> None:
    """Give a complete draft its name, durably. A folder of that name is replaced: it was never committed, or it is the same."""
    for path in [p for p in draft.rglob("*") if p.is_file()] + [draft]:
        _sync(path)
    aside = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        os.rename(folder, aside)
    os.rename(draft, folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _moment_name(moment: str) -> Name:
    return lambda name: f"{moment}.{name}"


def _copy_description(model_folder: Path, draft: Path) -> None:
    """Configuration and tokenizer: everything on the top level but weights. The configuration says that the weights are fp32 now."""
    for path in sorted(model_folder.iterdir()):
        if path.is_file() and path.suffix not in (".safetensors", ".bin", ".gguf", ".pt") and not path.name.endswith(".index.json"):
            if path.name not in (RECORD, "config.json"):
                shutil.copyfile(path, draft / path.name)
    config = json.loads((model_folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (draft / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def _discard_drafts(folder: Path) -> None:
    """Left by processes that died while writing."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
