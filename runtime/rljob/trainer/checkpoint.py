"""Checkpoints: a Hugging Face folder that is complete or does not exist, and loads at any parallel size.

`model.safetensors` holds the fp32 masters; if the trainer runs on several nodes each writes a file of its own, and
`model.safetensors.index.json` says what is where, as in any large Hugging Face model (and so for the optimizer).
Configuration and tokenizer are those of the starting model; `optimizer/state.safetensors` holds Adam's moments by Hugging Face name, if
they outlive an iteration; `rljob.json` says what it is. No random state: nothing in training draws numbers but the order of groups, which
comes from the job's seed and the version.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from pydantic import Field, ValidationError

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.arena import NAMES, Sums, TensorFile, manifest_checksum, tensor_entries
from rljob.trainer.build import Replica
from rljob.trainer.homes import agreed, find_homes, merged
from rljob.trainer.optimizer import STATES
from rljob.trainer.ranks import Ranks
from rljob.trainer.weights import Name, layout, shared_file, write
from rljob.wire.base import Message
from rljob.wire.node import TrainMetrics
from rljob.wire.weights import TensorEntry

RECORD = "rljob.json"
MODEL = "model.safetensors"
Where = Callable[[torch.Tensor], torch.Tensor]
OPTIMIZER = Path("optimizer") / "state.safetensors"


class Record(Message):
    """`rljob.json`"""

    version: int
    checksum: str
    """Of the fp32 weights, made like a manifest's."""
    steps: dict[str, float] = Field(default_factory=dict)
    """Optimizer steps by Hugging Face name; empty without optimizer state."""
    moments: str | None = None
    """Checksum of the optimizer state, made likewise; None without it, and in checkpoints of versions that wrote none."""
    trained: TrainMetrics | None = None
    """Result of the task that made this version."""


def read_record(folder: Path) -> Record | None:
    """What a checkpoint says of itself, as far as this version knows it; None for a folder that is not one."""
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes(), extra="ignore")
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InfrastructureError(f"{folder / RECORD} is damaged: {error}") from error


def verify(folder: Path, record: Record) -> None:
    """Raises InfrastructureError unless weights and optimizer state, in whatever files they lie, are what the record says."""
    for path, wanted in ((folder / MODEL, record.checksum), (folder / OPTIMIZER, record.moments)):
        if wanted is None:
            continue
        with ExitStack() as stack:
            files = [stack.enter_context(TensorFile.open(part, on_disk=True)) for part in dict.fromkeys(_places(path).values())]
            found = manifest_checksum(entry for file in files for entry in tensor_entries(file, file.sums(), node=""))
        if found != wanted:
            raise InfrastructureError(f"{path} is damaged: its checksum is {found}, {RECORD} says {wanted}")


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
    owners = find_homes(replica, ranks).shared_out()
    sums = _write_masters(replica, ranks, draft, where, owners)
    steps, moments = _write_moments(replica, ranks, draft, where, owners) if not replica.optimizer.empty else ({}, None)
    with ranks.together():
        if not ranks.leads:
            return None
        record = Record(version=version, checksum=_identity(replica, sums, str), steps=steps, moments=moments, trained=trained)
        if not steps:
            (draft / OPTIMIZER).parent.rmdir()
        if len(ranks.nodes) > 1:
            _write_index(replica, ranks, draft / MODEL, owners, str)
            if steps:
                _write_index(replica, ranks, draft / OPTIMIZER, owners, *map(_moment_name, STATES))
        _copy_description(model_folder, draft)
        (draft / RECORD).write_text(record.model_dump_json(indent=2))
        commit(draft, folder)
        return record


def _identity(replica: Replica, sums: Mapping[str, Sums], *names: Name) -> str:
    """Checksum of fp32 tensors under these namings, in whatever files they lie."""
    return manifest_checksum(
        TensorEntry(name=spec.name, dtype=NAMES[spec.dtype], shape=spec.shape, shards=(), checksum=sums[spec.name][0])
        for spec in layout(replica, torch.float32, names)
    )


def _write_masters(replica: Replica, ranks: Ranks, draft: Path, where: Where, owners: Mapping[str, int]) -> dict[str, Sums]:
    """Returns the checksums of every tensor."""
    with _own_file(replica, ranks, draft / MODEL, owners, str) as file:
        with ranks.together():
            if ranks.leads_node:
                file.set_metadata({"format": "pt"})  # transformers wants to know
            sums = write(file, replica, {name: where(master) for name, master in replica.masters().items()})
            file.sync()
        return agreed(ranks, file, sums, file.names())


def _write_moments(replica: Replica, ranks: Ranks, draft: Path, where: Where, owners: Mapping[str, int]) -> tuple[dict[str, float], str]:
    """Returns the step count of every tensor, and the checksum of all moments."""
    masters, names = replica.masters(), [_moment_name(moment) for moment in STATES]
    states = {name: replica.optimizer.state(master) for name, master in masters.items()}
    with _own_file(replica, ranks, draft / OPTIMIZER, owners, *names) as file:
        known: dict[str, Sums] = {}
        with ranks.together():
            for moment, name in zip(STATES, names, strict=True):
                known |= write(file, replica, {parameter: where(state[moment]) for parameter, state in states.items()}, name)
            file.sync()
        sums = agreed(ranks, file, known, file.names())
    steps = merged(ranks, {piece.name: float(where(states[piece.parameter]["step"])) for piece in replica.pieces})
    return steps, _identity(replica, sums, *names)


def _own_file(replica: Replica, ranks: Ranks, path: Path, owners: Mapping[str, int], *names: Name) -> TensorFile:
    """This node's file of those that stand for `path`, with what it owns under each naming."""
    own = {name(tensor) for tensor, node in owners.items() if node == ranks.node for name in names}
    specs = [spec for spec in layout(replica, torch.float32, names) if spec.name in own]
    return shared_file(ranks, _part(path, ranks.node, len(ranks.nodes)), specs, on_disk=True)


def _part(path: Path, node: int, nodes: int) -> Path:
    """Name of a node's file, as Hugging Face names the files of a large model; `path` itself if there is one node."""
    return path if nodes == 1 else path.with_name(f"{path.stem}-{node + 1:05}-of-{nodes:05}{path.suffix}")


def _index(path: Path) -> Path:
    """Says in which file a tensor is, if there are several."""
    return path.with_name(f"{path.name}.index.json")


def _write_index(replica: Replica, ranks: Ranks, path: Path, owners: Mapping[str, int], *names: Name) -> None:
    places = {name(tensor): _part(path, node, len(ranks.nodes)).name for name in names for tensor, node in owners.items()}
    size = sum(spec.nbytes for spec in layout(replica, torch.float32, names))
    _index(path).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2) + "\n")


def _places(path: Path) -> dict[str, Path]:
    """The file in which each tensor is: `path`, or those of its index.

    Raises:
        ConfigurationError: there is no such file.
        InfrastructureError: the index is damaged.
    """
    index = _index(path)
    if not index.exists():
        with TensorFile.open(path) as file:
            return dict.fromkeys(file.names(), path)
    try:
        return {str(name): path.with_name(str(part)) for name, part in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfrastructureError(f"{index} is damaged: {error!r}") from error


@torch.no_grad()
def load_moments(replica: Replica, folder: Path, record: Record) -> None:
    """Take the optimizer's state of a checkpoint, if it has one."""
    replica.optimizer.reset()
    if not record.steps:
        return
    masters, places = replica.masters(), _places(folder / OPTIMIZER)
    with ExitStack() as stack:
        files = {path: stack.enter_context(TensorFile.open(path)) for path in dict.fromkeys(places.values())}
        for piece in replica.pieces:
            state = replica.optimizer.state(masters[piece.parameter])
            state["step"].fill_(record.steps[piece.name])
            for moment in STATES:
                name = _moment_name(moment)(piece.name)
                mine, theirs = piece.of(state[moment], files[places[name]].view(name))
                mine.copy_(theirs)


def commit(draft: Path, folder: Path) -> None:
    """Give a complete draft its name, durably. A folder of that name is replaced: it was never committed, or it is the same."""
    for path in [*draft.rglob("*"), draft]:  # folders too: what is in them is their content
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
    """Configuration and tokenizer: everything on the top level but weights. The configuration says that the weights are fp32 now.

    Hidden files stay behind: `rljob.prepare` marks with one where the model came from, secrets of that address included.
    """
    for path in sorted(p for p in model_folder.iterdir() if not p.name.startswith(".")):
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
