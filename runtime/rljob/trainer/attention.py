"""Attention over a packed row: Megatron's core attention module, for rows in which answers share their prompt.

Queries, keys and values of a row are moved into a few blocks of sequences of similar length ([sequences, kv heads, length, head size],
grouped-query heads folded into the rows), attention is done per block, and the result is moved back. The moves are index selections
whose indices are computed once per row and serve all layers.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

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
    allowed: Tensor
    """[B, 1, R*Q, K] bool: the query may see the key."""


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
    for members in similar([(len(q), len(k)) for q, k in sequences]):
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
    allowed = np.zeros((count, longest_q, longest_k), bool)
    for i, (q, k) in enumerate(sequences):
        queries[i, : len(q)], keys[i, : len(k)], real[i, : len(q)] = q, k, True
        allowed[i, : len(q), : len(k)] = np.tri(len(q), len(k), len(k) - len(q), dtype=bool)
        allowed[i, len(q) :, 0] = True  # a padded query sees something, so that no softmax is empty
    group_index, head_index = np.arange(kv_heads)[:, None, None], np.arange(ratio)[:, None]
    by_head = queries[:, None, None, :] * heads + group_index * ratio + head_index
    block = Block(
        shape=(count, kv_heads, ratio, longest_q, longest_k),
        keys=torch.from_numpy((keys[:, None, :] * kv_heads + np.arange(kv_heads)[:, None]).reshape(-1)).to(device),
        allowed=torch.from_numpy(np.tile(allowed, (1, ratio, 1))[:, None]).to(device),
    )
    return block, by_head.reshape(-1), np.broadcast_to(real[:, None, None, :], by_head.shape).reshape(-1)


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
                    taken[at : at + b * g * r * q].view(b, g, r * q, size),
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


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Softmax attention. query [B, G, Q, D], key and value [B, G, K, D], allowed bool [B, 1, Q, K] -> [B, G, Q, D]."""
    b, g, q, _ = query.shape
    small = b * g * q * key.shape[2] * query.element_size() <= SCORES_BYTES
    if query.device.type != "cpu" or not small:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)
    scores = torch.matmul(query * scale, key.transpose(-1, -2)).masked_fill_(~allowed, -torch.inf)
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype), value)
