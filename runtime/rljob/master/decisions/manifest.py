"""Whether a registered set of weights is whole."""

import math

from rljob.wire.pieces import wrong_parts
from rljob.wire.weights import Manifest, TensorEntry

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of one element, by safetensors name."""


def gap(manifest: Manifest) -> str | None:
    """What is missing from the set, or None if it is complete: every tensor once, its shards covering all rows and bytes exactly, and as
    many parts as it is long."""
    if not manifest.tensors:
        return "it lists no tensors"
    names = [t.name for t in manifest.tensors]
    if len(set(names)) != len(names):
        return f"tensor {next(n for n in names if names.count(n) > 1)} is listed twice"
    total = sum(shard.bytes for t in manifest.tensors for shard in t.shards)
    return next((found for t in manifest.tensors if (found := _tensor_gap(t, total))), None)


def _tensor_gap(tensor: TensorEntry, total: int) -> str | None:
    if tensor.dtype not in BYTES:
        return f"tensor {tensor.name} has the unknown dtype {tensor.dtype}"
    rows = tensor.shape[0] if tensor.shape else 1
    row_bytes = math.prod(tensor.shape[1:]) * BYTES[tensor.dtype]
    at = 0
    for shard in sorted(tensor.shards, key=lambda s: s.start):
        if shard.start > at:
            return f"tensor {tensor.name}: rows {at} to {shard.start - 1} of {rows} are missing"
        if shard.start < at:
            return f"tensor {tensor.name}: row {shard.start} of {rows} is held twice"
        if shard.bytes != shard.rows * row_bytes:
            return f"tensor {tensor.name}: {shard.rows} rows from {at} take {shard.rows * row_bytes} bytes, the shard says {shard.bytes}"
        at += shard.rows
    if at < rows:
        return f"tensor {tensor.name}: rows {at} to {rows - 1} of {rows} are missing"
    if at > rows:
        return f"tensor {tensor.name}: its shards hold {at} rows, its shape has {rows}"
    return wrong_parts(tensor, rows * row_bytes, total)
