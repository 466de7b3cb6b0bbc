"""Context parallelism: ranks that share every row, each with its part of the tokens, and in attention with its part of the heads.

The way of DeepSpeed-Ulysses (arXiv:2309.14509): queries, keys and values go from a share of the tokens with all heads to all tokens with a
share of the heads, and the results back, an all-to-all each. So attention sees a row whole, which it must where answers share a prompt;
Megatron-core's own ways cut each sequence in equal parts, and exist in Transformer Engine only. Everything else in a layer is done token by
token. Gradients are added up over these ranks by Megatron's DistributedDataParallel, to which they are copies.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import all_to_all
from torch import Tensor


def share(length: int, group: dist.ProcessGroup) -> slice:
    """This rank's part of a row of `length` tokens, a multiple of the group's size."""
    size = length // group.size()
    return slice(group.rank() * size, (group.rank() + 1) * size)


def heads_for_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[T/c, heads, D] -> [T, heads/c, D]: give away the other ranks' heads, get their tokens.

    Of fewer heads than ranks, as there may be of keys and values, each goes to several ranks: [T, 1, D].
    """
    if x.shape[1] < group.size():
        x = x.repeat_interleave(group.size() // x.shape[1], dim=1)
    tokens, heads, size = x.shape
    parts = x.view(tokens, group.size(), heads // group.size(), size).transpose(0, 1)
    return cast(Tensor, all_to_all(group, parts)).reshape(-1, heads // group.size(), size)


def tokens_for_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[T, heads/c, D] -> [T/c, heads, D]: the inverse."""
    tokens, heads, size = x.shape
    parts = x.reshape(group.size(), tokens // group.size(), heads, size)
    return cast(Tensor, all_to_all(group, parts)).transpose(0, 1).reshape(-1, heads * group.size(), size)


def gathered(own: Tensor, where: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
    """[count] values of a row of which this rank has those at `where`; each rank's gradient goes to its own."""
    return cast(Tensor, _Sum.apply(own.new_zeros(count).index_copy(0, where, own), group))


class _Sum(torch.autograd.Function):
    """Sum over ranks. All of them compute the same from it, so that the gradient that each finds is already that of its own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None
