"""The trainer's processes among themselves: who this one is, how commands travel, how all agree on an outcome."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist

from rljob.api import InfrastructureError


@dataclass(frozen=True)
class Ranks:
    """All ranks of the trainer; rank 0 says what they do."""

    control: dist.ProcessGroup
    """A gloo group for bytes and agreement; a waiting rank uses neither accelerator nor processor."""
    names: tuple[str, ...] = ()
    """Node of each rank; empty if all are on one."""

    @classmethod
    def joined(cls, control: dist.ProcessGroup, node: str) -> Self:
        """All ranks, each of which names its own node; nodes have different names."""
        return cls(control, tuple(name.decode() for name in cls(control).collect(node.encode())))

    @property
    def rank(self) -> int:
        return self.control.rank()

    @property
    def size(self) -> int:
        return self.control.size()

    @property
    def leads(self) -> bool:
        """This is rank 0."""
        return self.rank == 0

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes, in order of their first rank; one without a name if none has been named."""
        return tuple(dict.fromkeys(self.names)) or ("",)

    @property
    def node(self) -> int:
        """Which of `nodes` this rank is on."""
        return self.nodes.index(self.names[self.rank]) if self.names else 0

    @property
    def leads_node(self) -> bool:
        """This is the first rank of its node."""
        return self.rank == (self.names.index(self.names[self.rank]) if self.names else 0)

    def share(self, data: bytes | None) -> bytes:
        """Give rank 0's bytes to all ranks; the others pass None. No pickle."""
        length = torch.tensor([len(data or b"")])
        dist.broadcast(length, 0, group=self.control)
        payload = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(int(length), dtype=torch.uint8)
        if len(payload):
            dist.broadcast(payload, 0, group=self.control)
        return data or payload.numpy().tobytes()

    def collect(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in order of rank, on all ranks. No pickle."""
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]), group=self.control)
        longest = max(1, *map(int, lengths))
        found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(found, torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8), group=self.control)
        return [part.numpy().tobytes()[: int(n)] for part, n in zip(found, lengths, strict=True)]

    def every(self, answer: bool) -> bool:
        """True if `answer` is true on all ranks."""
        flag = torch.tensor([answer], dtype=torch.uint8)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self.control)
        return bool(flag.item())

    def total(self, number: int) -> int:
        """Sum over all ranks."""
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, group=self.control)
        return int(numbers.item())

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is inside has worked on all ranks or fails on all; also a barrier.

        Raises:
            InfrastructureError: it worked here, but not on another rank.
        """
        worked = False
        try:
            yield
            worked = True
        finally:
            all_worked = self.every(worked)
            if worked and not all_worked:
                raise InfrastructureError("another rank of the trainer failed; its log says why")


def local_rank() -> int:
    """This process's place on its node."""
    return int(os.environ["LOCAL_RANK"])
