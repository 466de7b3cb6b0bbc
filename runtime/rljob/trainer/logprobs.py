"""Log-probabilities of given tokens from hidden states, over a vocabulary that tensor parallel ranks share.

The projection to the vocabulary is the largest activation by far, so it is done for predicting tokens only, in chunks of bounded size,
and its result is kept for the backward pass only while it is small; else it is computed again there.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from torch import Tensor

LOGITS_BYTES = 512 * 2**20
"""Most memory that the logits of a micro-batch take."""
BLOCK = 16
"""Rows whose softmax is done at a time on CPU: 16 × 49152 floats stay in the cache."""


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, first: int, vocabulary: int, group: dist.ProcessGroup, budget: int = LOGITS_BYTES
) -> Tensor:
    """log p(target) for every row of `hidden`, fp32 [N].

    hidden [N, H], equal on all ranks of `group`; weight [V/tp, H], this rank's rows of the output layer, of which the first is token
    `first` and those beyond token `vocabulary` are padding; targets [N]; budget: bytes for logits.
    """
    copied = copy_to_tensor_model_parallel_region(hidden, group=group)
    rows = max(0, min(weight.shape[0], vocabulary - first))
    return cast(Tensor, _TokenLogprobs.apply(copied, weight, targets, first, rows, group, budget))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, first: int, rows: int, group: dist.ProcessGroup, budget: int
    ) -> Tensor:
        head = weight[:rows]
        local, mine = targets - first, (targets >= first) & (targets < first + rows)
        local = local.clamp(0, max(0, rows - 1))
        step = max(1, budget // max(1, rows * hidden.element_size()))
        keep = hidden.shape[0] <= step
        kept: list[Tensor] = []
        normaliser = torch.empty(
            hidden.shape[0], dtype=torch.float32 if hidden.dtype != torch.float64 else torch.float64, device=hidden.device
        )
        chosen = torch.empty_like(normaliser)
        for at in range(0, hidden.shape[0], step):
            part = slice(at, at + step)
            logits = hidden[part] @ head.t()
            normaliser[part] = _logsumexp(logits, normaliser.dtype)
            chosen[part] = logits.gather(1, local[part, None])[:, 0].to(chosen.dtype) * mine[part]
            if keep:
                kept.append(logits)
        if group.size() > 1:
            normaliser = _logsumexp_of_ranks(normaliser, group)
            dist.all_reduce(chosen, group=group)
        ctx.save_for_backward(hidden, weight, local, mine, normaliser, *kept)
        ctx.rows, ctx.step = rows, step
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, local, mine, normaliser, *kept = ctx.saved_tensors
        head = weight[: ctx.rows]
        (gradient,) = gradients
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.rows < weight.shape[0] or not kept else torch.empty_like(weight)
        for at in range(0, hidden.shape[0], ctx.step):
            part = slice(at, at + ctx.step)
            logits = kept[0] if kept else hidden[part] @ head.t()
            at_target = torch.arange(logits.shape[0], device=logits.device), local[part]
            share = torch.exp(logits[at_target].to(normaliser.dtype) - normaliser[part])
            _to_logits_gradient(logits, normaliser[part], gradient[part])
            # Not added to what stands there: rounded to bf16, 1 - p of a token that is nearly certain would be 0.
            logits[at_target] = (gradient[part] * (mine[part].to(share.dtype) - share)).to(logits.dtype)
            torch.matmul(logits, head, out=to_hidden[part])
            if kept:
                torch.matmul(logits.t(), hidden[part], out=to_weight[: ctx.rows])
            else:
                to_weight[: ctx.rows].addmm_(logits.t(), hidden[part])
        return to_hidden, to_weight, None, None, None, None, None


def _logsumexp(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """logsumexp over the last dimension, computed in `dtype`."""
    if logits.shape[1] == 0:
        return torch.full((logits.shape[0],), -torch.inf, dtype=dtype, device=logits.device)
    if logits.device.type != "cpu":
        return torch.logsumexp(logits.to(dtype), -1)
    return torch.cat([torch.logsumexp(block.to(dtype), -1) for block in logits.split(BLOCK)])


def _to_logits_gradient(logits: Tensor, normaliser: Tensor, gradient: Tensor) -> None:
    """Turn logits in place into -gradient * softmax: what every logit gets but the chosen one."""
    size = BLOCK if logits.device.type == "cpu" else logits.shape[0]
    for block, norm, factor in zip(logits.split(size), normaliser.split(size), gradient.split(size), strict=True):
        block.copy_(block.to(norm.dtype).sub_(norm[:, None]).exp_().mul_(-factor[:, None]))


def _logsumexp_of_ranks(local: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Combine each rank's own logsumexp."""
    largest = local.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    total = (local - largest).exp_()
    dist.all_reduce(total, group=group)
    return largest + total.log_()
