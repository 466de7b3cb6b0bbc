"""Off the accelerator between training phases: parameters, masters and optimizer state move to one host buffer, gradients are dropped.

A storage is resized to zero after its copy, which frees it whoever else holds a reference (Megatron's own offload swaps `.data`, takes
30 times as long and frees nothing that is still referenced). The buffer is allocated once: fresh pages cost 20 to 40 times as much.
Not covered: what the process itself needs on a GPU (CUDA context, kernels, NCCL: 1-2.5 GiB on one H100).
"""

from pathlib import Path

import torch
from torch import Tensor

from rljob.trainer.build import Replica


class Offloader:
    """Moves the state of one rank off the accelerator and back, bit for bit."""

    def __init__(self, replica: Replica, folder: Path) -> None:
        """`folder` may hold the buffer: an unnamed file there on CPU."""
        self._replica = replica
        self._folder = folder
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._kept: list[tuple[torch.UntypedStorage, int]] = []
        self._dropped: list[tuple[torch.UntypedStorage, int]] = []
        self.resident = True

    def offload(self) -> None:
        """Leave the accelerator. Repeated: nothing."""
        if not self.resident:
            return
        replica = self._replica
        replica.optimizer.megatron.zero_grad()  # drops references into the gradient buffer
        self._kept = _storages([*(p.data for p in replica.policy.parameters()), *replica.optimizer.tensors()])
        self._dropped = _storages([b.grad_data for b in [*replica.ddp.buffers, *replica.ddp.expert_parallel_buffers]])
        total = sum(size for _, size in self._kept)
        if self._buffer.numel() < total:
            self._buffer = replica.device.host_buffer(total, self._folder)
        for (storage, size), place in zip(self._kept, self._places(), strict=True):
            place.copy_(_bytes(storage, size), non_blocking=True)
        replica.device.synchronize()
        for storage, _ in self._kept + self._dropped:
            storage.resize_(0)
        self.resident = False
        replica.device.release()

    def onload(self, contents: bool = True) -> None:
        """Come back; `contents=False` only takes the memory, for weights that are about to be loaded. Repeated: nothing."""
        if self.resident:
            return
        for storage, size in self._kept + self._dropped:
            storage.resize_(size)
        if contents:
            for (storage, size), place in zip(self._kept, self._places(), strict=True):
                _bytes(storage, size).copy_(place, non_blocking=True)
        for storage, size in self._dropped:
            _bytes(storage, size).zero_()
        self._replica.device.synchronize()
        self.resident = True

    def _places(self) -> list[Tensor]:
        """One slice of the buffer for each kept storage."""
        return list(self._buffer[: sum(size for _, size in self._kept)].split([size for _, size in self._kept]))


def _storages(tensors: list[Tensor]) -> list[tuple[torch.UntypedStorage, int]]:
    """Each storage once, with its size in bytes."""
    unique = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.untyped_storage().nbytes()}
    return [(storage, storage.nbytes()) for storage in unique.values()]


def _bytes(storage: torch.UntypedStorage, size: int) -> Tensor:
    """The storage as uint8 [size]."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (size,), (1,))
