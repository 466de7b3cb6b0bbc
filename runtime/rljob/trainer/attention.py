"""Attention over a packed row: Megatron's core attention module, for rows in which answers share their prompt.

Queries, keys and values of a row are moved into a few blocks of sequences of similar length ([sequences, kv heads, length, head size],
queries by kv head), attention is done per block, and the result is moved back. The moves are index selections whose indices are computed
once per row and serve all layers.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from rljob.trainer.context import heads_for_tokens, tokens_for_heads
from rljob.trainer.packing import Ints, Row, similar

Bools = npt.NDArray[np.bool_]

SCORES_BYTES = 64 * 2**20
"""On CPU, blocks whose scores take less memory are computed by two plain matrix products (four times as fast there as the fused kernel:
8 against 33 ms forward and backward for 64 sequences of 30 × 62 tokens in bf16 on two cores)."""


@dataclass(frozen=True)
class Block:
    """Sequences of similar length. B sequences, G kv heads, R query heads per kv head, Q and K longest lengths."""

    shape: tuple[int, int, int, int, int]
    """(B, G, R, Q, K)"""
    keys: Tensor
    """[B*G*K] Which (token, kv head) row of the packed keys and values stands here."""
    allowed: Tensor | None
    """[B, Q, K] bool: the query may see the key. None: in every sequence the last query sees all keys, each one before it a key less."""


@dataclass
class Plan(PackedSeqParams):
    """How a row's attention is done. Travels through Megatron's layers where they carry the description of packed sequences."""

    blocks: tuple[Block, ...] = ()
    queries: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """[M] The blocks' `queries` one after the other."""
    real: Tensor | None = None
    """[M, 1] The blocks' `real`; None if nothing is padded."""
    back: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """[T*G*R] Where in the concatenated block results the row of (token, head) is."""


def plan(row: Row, heads: int, kv_heads: int, device: torch.device) -> Plan:
    """The plan of a row for this rank's `heads` query and `kv_heads` key/value heads."""
    sequences = [_sequence(span) for span in row.spans]
    blocks, queries, real = [], [], []
    for members in similar([(len(q), len(k)) for q, k in sequences], mixed=has_masks(device)):
        block, block_queries, block_real = _block([sequences[i] for i in members], heads, kv_heads, device)
        blocks.append(block)
        queries.append(block_queries)
        real.append(block_real)
    taken, kept = np.concatenate(queries), np.concatenate(real)
    back = np.zeros(len(row.tokens) * heads, np.int64)
    back[taken[kept]] = np.flatnonzero(kept)
    padded = None if kept.all() else torch.from_numpy(kept[:, None]).to(device)
    return Plan(
        qkv_format="rljob",
        blocks=tuple(blocks),
        queries=torch.from_numpy(taken).to(device),
        real=padded,
        back=torch.from_numpy(back).to(device),
    )


def has_masks(device: torch.device) -> bool:
    """Whether blocks have masks, and so may hold sequences whose prompts differ in length. On CPU another block costs more than a mask. A
    GPU has flash attention for blocks without one; for 32,768 tokens a mask would take 1 GiB there, and 2 GiB more in every layer."""
    return device.type == "cpu"


def _sequence(span: tuple[int, int, int, int]) -> tuple[Ints, Ints]:
    """Row indices of the queries and of the keys of one sequence; the last query sees all keys."""
    prompt_start, prompt_length, answer_start, answer_length = span
    prompt = np.arange(prompt_start, prompt_start + prompt_length)
    answer = np.arange(answer_start, answer_start + answer_length)
    return (answer, np.concatenate([prompt, answer])) if answer_length else (prompt, prompt)


def _block(sequences: list[tuple[Ints, Ints]], heads: int, kv_heads: int, device: torch.device) -> tuple[Block, Ints, Bools]:
    """A block, the (token, head) rows that stand in it ([B*G*R*Q]), and which of these places are not padding."""
    count, ratio = len(sequences), heads // kv_heads
    longest_q, longest_k = max(len(q) for q, _ in sequences), max(len(k) for _, k in sequences)
    queries, keys = np.zeros((count, longest_q), np.int64), np.zeros((count, longest_k), np.int64)
    real = np.zeros((count, longest_q), bool)
    for i, (q, k) in enumerate(sequences):
        queries[i, : len(q)], keys[i, : len(k)], real[i, : len(q)] = q, k, True
    group_index, head_index = np.arange(kv_heads)[:, None, None], np.arange(ratio)[:, None]
    by_head = queries[:, None, None, :] * heads + group_index * ratio + head_index
    block = Block(
        shape=(count, kv_heads, ratio, longest_q, longest_k),
        keys=torch.from_numpy((keys[:, None, :] * kv_heads + np.arange(kv_heads)[:, None]).reshape(-1)).to(device),
        allowed=_allowed([len(k) - len(q) for q, k in sequences], longest_q, longest_k) if has_masks(device) else None,
    )
    return block, by_head.reshape(-1), np.broadcast_to(real[:, None, None, :], by_head.shape).reshape(-1)


def _allowed(before: list[int], queries: int, keys: int) -> Tensor:
    """[B, Q, K] bool: a query sees its sequence up to itself; so many keys stand `before` its first one. A padded query sees something too,
    so that no softmax is empty, and no real one sees a padded key."""
    last = torch.arange(queries, dtype=torch.int32) + torch.tensor(before, dtype=torch.int32)[:, None]
    return torch.arange(keys, dtype=torch.int32) <= last[:, :, None]


class _Move(torch.autograd.Function):
    """Put rows elsewhere. Each source row has exactly one real destination, so the backward pass is a selection too, not a sum."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, take: Tensor, back: Tensor) -> Tensor:
        """source [N, D], take [M] rows of the source, back [N] rows of the result."""
        ctx.save_for_backward(back)
        return source.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


class _MoveBack(torch.autograd.Function):
    """The inverse: padding is dropped and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, back: Tensor, take: Tensor, real: Tensor | None) -> Tensor:
        """blocks [M, D] -> [N, D]."""
        ctx.save_for_backward(take, real)
        return blocks.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        take, real = ctx.saved_tensors
        moved = gradients[0].index_select(0, take)
        return (moved if real is None else moved.mul_(real)), None, None, None


class PackedAttention(torch.nn.Module):
    """Core attention for rows; `packed_seq_params` is the row's Plan. No dropout, causal within what a sequence may see."""

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, pg_collection: Any = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.context_group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        /,
        *,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> Tensor:
        """query [T, 1, heads, D], key and value [T, 1, kv heads, D] -> [T, 1, heads * D]; of T tokens that this rank has of the row."""
        todo, group = cast(Plan, packed_seq_params), self.context_group
        q, k, v = query[:, 0], key[:, 0], value[:, 0]
        if group.size() > 1:
            q, k, v = (heads_for_tokens(x, group) for x in (q, k, v))
        found = self._of_row(q, k, v, todo)
        if group.size() > 1:
            found = tokens_for_heads(found, group)
        return found.flatten(1)[:, None]

    def _of_row(self, query: Tensor, key: Tensor, value: Tensor, todo: Plan) -> Tensor:
        """query [T, heads, D], key and value [T, kv heads, D] -> [T, heads, D]; of all tokens of the row."""
        tokens, heads, size = query.shape
        queries, keys, values = query.reshape(-1, size), key.reshape(-1, size), value.reshape(-1, size)
        taken = _Move.apply(queries, todo.queries, todo.back)
        results = []
        at = 0
        for block in todo.blocks:
            b, g, r, q, k = block.shape
            results.append(
                attend(
                    taken[at : at + b * g * r * q].view(b, g, r, q, size),
                    keys.index_select(0, block.keys).view(b, g, k, size),
                    values.index_select(0, block.keys).view(b, g, k, size),
                    block.allowed,
                    self.scale,
                ).reshape(-1, size)
            )
            at += b * g * r * q
        flat = results[0] if len(results) == 1 else torch.cat(results)
        out = _MoveBack.apply(flat, todo.back, todo.queries, todo.real)
        return cast(Tensor, out).view(tokens, heads, size)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """Softmax attention. query [B, G, R, Q, D], key and value [B, G, K, D], `allowed` as a Block has it -> [B, G, R, Q, D]."""
    b, g, r, q, size = query.shape
    k = key.shape[2]
    if allowed is not None and b * g * r * q * k * query.element_size() <= SCORES_BYTES:
        scores = torch.matmul((query * scale).view(b, g, r * q, size), key.transpose(-1, -2))
        with torch.no_grad():  # what is hidden has weight 0 and so no gradient; autograd would copy the whole gradient for it
            scores.view(b, g, r, q, k).masked_fill_(~allowed[:, None, None], -torch.inf)
        return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype), value).view_as(query)
    if query.device.type != "cpu" and query.dtype == torch.float32:  # CUDA's fused kernel for it wants keys for each head (torch 2.13)
        key, value = key.repeat_interleave(r, 1), value.repeat_interleave(r, 1)
    mask = causal_lower_right(q, k) if allowed is None else allowed[:, None]
    heads = query.view(b, g * r, q, size)
    return F.scaled_dot_product_attention(heads, key, value, attn_mask=mask, scale=scale, enable_gqa=True).view_as(query)
