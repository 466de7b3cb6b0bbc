"""Weights in and out of the model, by Hugging Face name: from a model folder, into the arena, and the canary that proves them."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.arena import (
    NAMES,
    Sums,
    TensorFile,
    TensorSpec,
    converted_there,
    human_size,
    manifest_checksum,
    tensor_entries,
    thread_count,
)
from rljob.checkpoint_engine.draft import part_of, version_of
from rljob.trainer.build import Replica
from rljob.trainer.hf_map import pieces
from rljob.trainer.homes import agreed, find_homes
from rljob.trainer.packing import sequence_row
from rljob.trainer.pipeline import relay
from rljob.trainer.place import alone
from rljob.trainer.ranks import Ranks
from rljob.wire.weights import Canary, Manifest

log = logging.getLogger(__name__)

CANARY_LENGTH = 8
"""Tokens; fits any engine (`rljob.rollout.engine.SHORTEST`). Every weight but other tokens' embeddings has a part in the second log-prob
already (the first has a single position to attend to); with 8 the proof costs little more than reading the weights once."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Largest mean difference per canary token, by the engine's precision. fp32 engines differ by some 1e-6; in bf16 the log-probability of an
unlikely token alone is rounded by about 0.06. The checksum tells versions apart that are closer than that."""
PADDED = {"embedding.word_embeddings.weight", "output_layer.weight"}
"""Parameters with rows that belong to no token."""
Name = Callable[[str], str]


class ModelFolder:
    """Tensors of a Hugging Face folder: `model.safetensors`, or several files with `model.safetensors.index.json`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self._files: dict[str, Any] = {}
        for name in names:
            try:
                file = stack.enter_context(safe_open(folder / name, "pt"))
            except (OSError, SafetensorError) as error:
                raise ConfigurationError(
                    f"{folder / name} cannot be read: {error}; a model folder needs config.json and safetensors"
                ) from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def read(self, name: str, shape: tuple[int, ...], region: tuple[slice, ...]) -> Tensor:
        """A region of a tensor.

        Raises:
            ConfigurationError: it is missing or has another shape than config.json asks for.
        """
        if name not in self._files:
            raise ConfigurationError(f"{self.folder}: tensor {name} is missing, which config.json asks for")
        tensor = self._files[name].get_slice(name)
        if tuple(tensor.get_shape()) != shape:
            raise ConfigurationError(f"{self.folder}: tensor {name} has shape {tensor.get_shape()}, config.json asks for {list(shape)}")
        return tensor[region]


@torch.no_grad()
def load(replica: Replica, folder: Path) -> None:
    """Fill this rank's weights from a Hugging Face folder; whatever precision that has becomes the fp32 masters."""
    masters = replica.masters()
    for name in PADDED & masters.keys():
        masters[name].zero_()
    with ExitStack() as stack:
        source = ModelFolder(folder, stack)
        for piece in replica.pieces:
            mine = piece.view(masters[piece.parameter])
            mine.copy_(source.read(piece.name, piece.shape, piece.region).view(mine.shape))
    replica.follow_masters()


def layout(replica: Replica, dtype: torch.dtype, names: tuple[Name, ...] = (str,)) -> list[TensorSpec]:
    """All tensors of the model, also those of other ranks, in the order of the name map, once per naming."""
    whole = list(pieces(replica.architecture, alone(replica.architecture.layers)))
    return [TensorSpec(name(piece.name), dtype, piece.shape) for name in names for piece in whole]


@torch.no_grad()
def write(file: TensorFile, replica: Replica, tensors: Mapping[str, Tensor], name: Name = str) -> dict[str, Sums]:
    """Write this rank's part of `tensors` (by Megatron name), if they are in the file; returns the checksums of those it holds as a whole.

    Numbers go straight from the parameter into the file, on CPU without any other memory. From an accelerator they come tensor by tensor,
    at most one per thread of `write_all`: there what lies in groups is put together, and converted where the file has another element type;
    a part that does not lie in one piece in the file is held in main memory on its way (copy_kernel_cuda in
    aten/src/ATen/native/cuda/Copy.cu). So neither memory needs more than a `bucket` beside model and file.
    """
    own = [piece for piece in replica.pieces if piece.writes and name(piece.name) in file]
    for piece in own:
        if not piece.whole:
            mine, target = piece.of(tensors[piece.parameter], file.view(name(piece.name)))
            target.copy_(converted_there(mine, target.dtype))
    replica.device.synchronize()
    return file.write_all({name(piece.name): piece.view(tensors[piece.parameter]) for piece in own if piece.whole})


def bucket(replica: Replica, tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the largest tensor this rank has a part of, as it lies in `tensors`, once per thread: the bound of what `write` takes."""
    sizes = (piece.view(tensors[piece.parameter]).nbytes for piece in replica.pieces if piece.writes)
    return thread_count() * max(sizes, default=0)


class Arena:
    """The arena as this process has it mapped: once, since mapping it anew costs as much as writing it."""

    def __init__(self) -> None:
        self._file: TensorFile | None = None

    def file(self, replica: Replica, ranks: Ranks, path: Path, specs: list[TensorSpec]) -> TensorFile:
        """The mapped file at `path`, emptied of its version; made by the node's first rank if it is missing or different."""
        known = self._file is not None and self._file.path == path and self._file.identity == _identity(path)
        if ranks.every(known) and self._file is not None:
            with ranks.together():
                if ranks.leads_node:
                    self._file.set_metadata({})
            return self._file
        if self._file is not None:
            replica.device.unregister(self._file.mapping())
            self._file.close()
        self._file = shared_file(ranks, path, specs)
        replica.device.register(self._file.mapping())
        return self._file


@torch.no_grad()
def export(replica: Replica, ranks: Ranks, arena: Arena, path: Path, version: int, dtype: torch.dtype, node: str) -> Manifest | None:
    """Write the arena of each node and describe all of them; each node's first rank returns the manifest, the others None.

    `path` is this node's arena, of the same name on every node. An arena that lacks tensors which only other nodes hold is no version yet
    but a part of one (`draft.part_of`), until `checkpoint_engine.fill` has brought the rest.

    Every rank logs the most memory that it took beside the arena, and the `bucket` that bounds it whatever the size of the model, but for
    some 4 MiB of the process's own: threads, names, oneDNN's code the first time. A toy model's bucket is smaller than that. On CPU the
    canary's pass over eight tokens may run meanwhile (`_beside`) and then counts: it reads the weights where they lie and takes a few rows.
    Elsewhere it comes afterwards and does not count.

    Nothing here builds a graph. A view of a parameter that does takes the parameter's lock and then, for the accumulator that Megatron has
    hooks on, the interpreter's (`grad_accumulator` in torch/csrc/autograd/variable.cpp); the canary's pass takes them in the other order
    (`fw_grad` there, from `Function.apply`), and both threads would wait for ever.
    """
    file = arena.file(replica, ranks, path, layout(replica, dtype))
    taken = replica.device.watch()
    masters = replica.masters()  # before the canary's pass, which puts them in the policy's place
    with _beside(replica, lambda: canary(replica, dtype)) as computed:
        with ranks.together():
            mine = write(file, replica, masters)
        homes = find_homes(replica, ranks)
        sums = agreed(ranks, file, mine, homes.held[ranks.node])
        log.info("exported version %d: took %s beside the arena, bucket %s", version, taken(), human_size(bucket(replica, masters)))
        proof = computed()
    entries = tensor_entries(file, sums, homes.first(ranks.nodes if ranks.names else (node,)))
    identity = manifest_checksum(entries)
    manifest = Manifest(version=version, dtype=NAMES[dtype], tensors=entries, checksum=identity, canary=proof)
    if len(ranks.nodes) > 1:  # another machine may round the canary in another way
        manifest = Manifest.model_validate_json(ranks.share(manifest.model_dump_json().encode() if ranks.leads else None))
    with ranks.together():
        if manifest.tensors != entries:
            raise InfrastructureError(f"{path} is laid out in another way than on {ranks.nodes[0]}")
        if ranks.leads_node:
            whole = len(homes.held[ranks.node]) == len(file.specs)
            file.set_metadata(version_of(manifest) if whole else part_of(manifest))
    return manifest if ranks.leads_node else None


@contextmanager
def _beside(replica: Replica, work: Callable[[], Canary]) -> Iterator[Callable[[], Canary]]:
    """Do `work` while what is inside goes on, and give a call that waits for its result. On CPU, where the canary takes one core; on an
    accelerator it would get in the way of the copies, and ranks that share the model would talk from two threads: there it is done when
    it is asked for."""
    if not replica.device.unified or not replica.place.whole:
        yield work
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work).result


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what stands at `path` now."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def shared_file(ranks: Ranks, path: Path, specs: list[TensorSpec], on_disk: bool = False) -> TensorFile:
    """A file of this node that its first rank makes and every rank of the node maps; `on_disk` as in `TensorFile.create`."""
    with ranks.together():
        made = TensorFile.create(path, specs, {}, on_disk) if ranks.leads_node else None
    with ranks.together():
        return made if made is not None else TensorFile.open(path, writable=True, on_disk=on_disk)


def canary(replica: Replica, dtype: torch.dtype) -> Canary:
    """What the masters say of a fixed sequence, computed in fp32 also when training is not, so that it speaks of the weights alone."""
    vocabulary = replica.architecture.vocabulary
    tokens = [(7919 * (i + 1)) % vocabulary for i in range(CANARY_LENGTH)]
    row = sequence_row(tokens)
    with replica.device.undisturbed():
        logprobs = relay(replica, row, replica.masters())
    return Canary(tokens=tuple(tokens), logprobs=tuple(logprobs.tolist()), tolerance=TOLERANCE[dtype])
