"""Off the accelerator between training phases: masters and optimizer state move to one host buffer, the rest is dropped.

On CPU nothing moves: from the first time on, the masters live in the host buffer, a file that the kernel may write back and take out of
memory while nobody trains. What is dropped may be kept for the next training (`freed`), instead of being given back and got again.

Gradients are worth nothing between steps, and bf16 parameters are the rounded masters, so neither is kept. A storage is resized to zero
after its copy, which frees it whoever else holds a reference (Megatron's own offload swaps `.data`, takes 30 times as long and frees
nothing that is still referenced). The buffer is allocated once: fresh pages cost 20 to 40 times as much.
Not covered: what the process itself needs on a GPU (CUDA context, kernels, NCCL: 1-2.5 GiB on one H100).
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rljob.trainer.build import Replica


@dataclass(frozen=True)
class Place:
    """A storage and where in the buffer its bytes are."""

    storage: torch.UntypedStorage
    size: int
    start: int


class Offloader:
    """Moves the state of one rank off the accelerator and back, bit for bit."""

    def __init__(self, replica: Replica, folder: Path) -> None:
        """`folder` may hold the buffer: an unnamed file there on CPU."""
        self._replica = replica
        self._folder = folder
        self._buffer = self._home = torch.empty(0, dtype=torch.uint8)
        self._kept: dict[int, Place] = {}
        self._dropped: dict[int, Place] = {}
        self.resident = True
        self.freed = 0
        """Bytes that are free in this process and not given back, after an offload that kept them."""

    def offload(self, keep_freed: bool = False) -> None:
        """Leave the accelerator. Repeated: nothing, but memory that was kept is given back without `keep_freed`."""
        if self.resident:
            self._leave()
            self.freed = self._replica.device.freed() if keep_freed else 0
            if not self.freed:
                self._replica.device.release()
        elif self.freed and not keep_freed:
            self.freed = 0
            self._replica.device.release()

    def _leave(self) -> None:
        replica = self._replica
        replica.optimizer.megatron.zero_grad()  # drops references into the gradient buffer
        if replica.device.unified:
            self._settle()
        self._kept = {key: place for key, place in _storages(replica.optimizer.tensors()).items() if key != self._home_key}
        gradients = [b.grad_data for chunk in replica.chunks for b in [*chunk.ddp.buffers, *chunk.ddp.expert_parallel_buffers]]
        dropped = _storages([*(parameter for _, parameter in replica.parameters()), *gradients])
        self._dropped = {key: place for key, place in dropped.items() if key not in self._kept and key != self._home_key}
        total = max((place.start + place.size for place in self._kept.values()), default=0)
        if self._buffer.numel() < total:
            if self._buffer.numel():  # or its pages stay pinned, and whatever lies there next cannot be registered
                replica.device.unregister(self._buffer)
                self._buffer = torch.empty(0, dtype=torch.uint8)
            self._buffer = replica.device.host_buffer(total, self._folder)
        for place in self._kept.values():
            self._in_buffer(place).copy_(_bytes(place), non_blocking=True)
        replica.device.synchronize()
        for place in [*self._kept.values(), *self._dropped.values()]:
            place.storage.resize_(0)
        self.resident = False

    def onload(self, contents: bool = True) -> None:
        """Come back; `contents=False` only takes the memory, for weights that are about to be loaded. Repeated: nothing.

        Gradients are not zeroed: every step begins with that.
        """
        if self.resident:
            return
        for place in [*self._kept.values(), *self._dropped.values()]:
            place.storage.resize_(place.size)
        self.resident = True
        if contents:
            for place in self._kept.values():
                _bytes(place).copy_(self._in_buffer(place), non_blocking=True)
            self._replica.follow_masters()
        self._replica.device.synchronize()
        self._kept, self._dropped = {}, {}  # or moments that are reset live as long as these

    def view(self, tensor: Tensor) -> Tensor:
        """A master or a moment where it is now: the tensor itself, or its copy in the host buffer."""
        if self.resident or tensor.untyped_storage()._cdata == self._home_key:
            return tensor
        place = self._in_buffer(self._kept[tensor.untyped_storage()._cdata])
        return place.view(tensor.dtype)[tensor.storage_offset() :].as_strided(tensor.shape, tensor.stride())

    @torch.no_grad()
    def _settle(self) -> None:
        """Move the masters into host memory for good; repeated: nothing."""
        if self._home.numel():
            return
        masters = list(self._replica.masters().values())
        starts = list(itertools.accumulate((_rounded(m.nbytes) for m in masters), initial=0))
        self._home = self._replica.device.host_buffer(starts[-1], self._folder)
        for master, start in zip(masters, starts, strict=False):
            place = self._home[start : start + master.nbytes].view(master.dtype).view(master.shape)
            place.copy_(master.data)
            master.data = place

    @property
    def _home_key(self) -> int:
        return self._home.untyped_storage()._cdata

    def _in_buffer(self, place: Place) -> Tensor:
        return self._buffer[place.start : place.start + place.size]


def _storages(tensors: Iterable[Tensor]) -> dict[int, Place]:
    """Each storage once, laid out one after the other at multiples of 256 bytes; by the storage's address, which outlives its memory."""
    found: dict[int, Place] = {}
    at = 0
    for storage in (t.untyped_storage() for t in tensors):
        if storage._cdata not in found:
            found[storage._cdata] = Place(storage, storage.nbytes(), at)
            at += _rounded(storage.nbytes())
    return found


def _rounded(size: int) -> int:
    """Up to a multiple of 256."""
    return -(-size // 256) * 256


def _bytes(place: Place) -> Tensor:
    """The storage as uint8 [size]."""
    return torch.empty(0, dtype=torch.uint8, device=place.storage.device).set_(place.storage, 0, (place.size,), (1,))
