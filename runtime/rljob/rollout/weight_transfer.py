"""The weight-transfer engine `rljob-arena` of vLLM: takes a version of the weights from the arena, or refuses it untouched.

What it guards: the file holds the announced version, complete, with the announced layout; every byte that is read has the announced
checksum; every parameter of the model is written. All of that is proven before the model is touched, so that a refused set leaves the
engine as it was. What it does not guard: that the manifest itself belongs to the wanted policy; the node agent compares log-probs for that.

Written for vLLM 0.32, run on its CPU build. The CUDA branch does what was measured on one H100 with vLLM 0.26; that release itself is too
old, since it labels neither engines nor answers with the version of their weights.
"""

import ctypes
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.arena import TensorFile, human_size, verify_manifest
from rljob.rollout import linear, loading
from rljob.wire.weights import Canary, Manifest, Shard, TensorEntry

log = logging.getLogger("vllm.rljob")  # below vLLM's own logger, so that its handlers apply
_HOST_REGISTER_READ_ONLY = 8
"""cudaHostRegisterReadOnly: other flags fail on a read-only mapping."""


@dataclass
class ArenaInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ArenaUpdate(WeightTransferUpdateInfo):
    """One version of the weights, as `rljob.rollout.client.update_info` writes it."""

    path: str
    version: int
    checksum: str
    tensors: list[list[Any]] = field(default_factory=list)
    """Rows of name, safetensors type, shape, offset in the file, xxh3-128."""
    share: bool = False
    beside: bool = False
    """Another process needs the cores as well: the first forward pass gets one thread."""

    def manifest(self) -> Manifest:
        """Without canary: the engine is who it is held against."""
        return Manifest(version=self.version, dtype="", checksum=self.checksum, tensors=tuple(map(self._entry, self.tensors)),
                        canary=Canary(tokens=(), logprobs=(), tolerance=0.0))  # fmt: skip

    def _entry(self, row: list[Any]) -> TensorEntry:
        name, dtype, shape, offset, checksum = row
        rows = shape[0] if shape else 1
        size = TensorFile.size_of(dtype, shape)
        shard = Shard(node="", segment=Path(self.path).name, offset=offset, bytes=size, start=0, rows=rows)
        return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), shards=(shard,), checksum=checksum)


class ArenaEngine(WeightTransferEngine[ArenaInit, ArenaUpdate]):
    """One in every worker process; a version arrives in one `update_weights` call."""

    init_info_cls = ArenaInit
    update_info_cls = ArenaUpdate

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._layout = loading.Layout.of(self.model)
        self._file: TensorFile | None = None
        self._registered: torch.Tensor | None = None
        self._shares = False
        self._threads = torch.get_num_threads()

    def init_transfer_engine(self, init_info: ArenaInit) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Nothing yet: the model stays whole until an update is proven."""

    def receive_weights(self, update_info: ArenaUpdate) -> None:
        """Prove, then load.

        Raises:
            WeightsRefused: not proven; the model is as it was.
        """
        began = time.perf_counter()
        file = self._open(Path(update_info.path))
        manifest = update_info.manifest()
        file.hold()  # what has been verified is what gets loaded
        try:
            verify_manifest(manifest, file)
            verified = time.perf_counter()
            self._shares = self._load(manifest, file, update_info.share, update_info.beside)
        finally:
            if not self._shares:
                file.release()
        log.info(
            "Version %d (%s, %s): verified in %.3f s, loaded in %.3f s",
            manifest.version, manifest.checksum, human_size(file.nbytes), verified - began, time.perf_counter() - verified,
        )  # fmt: skip

    def _load(self, manifest: Manifest, file: TensorFile, share: bool, beside: bool) -> bool:
        """Put the proven weights into the model; whether that reads the file's memory from now on."""
        linear.set_threads(self._threads)  # whatever the last load left it at
        tensors = [(entry.name, file.view(entry.name)) for entry in manifest.tensors]
        world = self.parallel_config.world_size
        if loading.is_transformed(self.model, self.model_config):
            loading.layerwise(self.model, self.model_config, self._layout, tensors, world)
            return False
        if self.device.type == "cpu" and not linear.installed():
            raise InfrastructureError("this engine has packed its weights away; start it through rljob.rollout.zygote")
        pieces = loading.record(self.model, tensors)
        loading.refuse_incomplete(self.model, self._layout, pieces, world)
        if self.device.type == "cpu":
            loading.adopt(self.model, self._layout, pieces, share, self._threads if beside else None)
            return share
        loading.in_place(self.model, tensors)
        return False

    def finish_weight_update(self) -> None:
        """Nothing left to do."""

    def shutdown(self) -> None:
        """Let others write the arena. The mapping stays for the next version: making and registering it costs as much as reading it."""
        self._shares = False
        if self._file is not None:
            self._file.release()

    def _open(self, path: Path) -> TensorFile:
        """The mapping, kept from version to version: an inode's layout never changes, and registering costs a pass over its pages."""
        if self._file is not None:
            status = os.stat(path)
            if self._file.identity == (status.st_dev, status.st_ino):
                return self._file
        self._close()
        self._file = TensorFile.open(path)
        if self.device.type == "cuda":
            self._register(self._file.mapping())
        return self._file

    def _close(self) -> None:
        if self._registered is not None:
            torch.cuda.cudart().cudaHostUnregister(self._registered.data_ptr())
            self._registered = None
        self._shares = False  # an inode that has been replaced is not written any more
        if self._file is not None:
            self._file.close()
            self._file = None

    def _register(self, mapping: torch.Tensor) -> None:
        """Pin the pages: 25 to 42 GB/s instead of 5 to 6 (facts measured on one H100)."""
        error = int(torch.cuda.cudart().cudaHostRegister(mapping.data_ptr(), mapping.numel(), _HOST_REGISTER_READ_ONLY))
        if error:
            _forget_last_error()
            log.warning("cudaHostRegister failed with error %d (memlock limit?): weights load about five times slower", error)
        else:
            self._registered = mapping


def _forget_last_error() -> None:
    """CUDA keeps the error of a failed call until somebody asks for the last one, as torch does after each kernel. torch gives us no call
    that asks for it, so this is the library that torch has loaded."""
    ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}").cudaGetLastError()
