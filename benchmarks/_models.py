"""Tensors of well-known models, and how a version of them is cut for its way to other nodes."""

import json
import math
from pathlib import Path
from typing import Any

from rljob.api.families import read
from rljob.api.families.tensors import tensors
from rljob.wire.pieces import part_bytes, pieces
from rljob.wire.weights import Canary, Manifest, Shard, TensorEntry

_LLAMA, _QWEN = {"model_type": "llama", "rms_norm_eps": 1e-5}, {"model_type": "qwen2", "rms_norm_eps": 1e-6}
_MIXTURE = {"model_type": "qwen3_moe", "rms_norm_eps": 1e-6, "num_experts_per_tok": 8, "intermediate_size": 6144, "head_dim": 128}


def _sizes(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, tied: bool = False) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "moe_intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip


MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": _LLAMA | _sizes(30, 576, 1536, 9, 3, 49152, tied=True),
    "Qwen2.5-0.5B": _QWEN | _sizes(24, 896, 4864, 14, 2, 151936, tied=True),
    "Llama-3.2-1B": _LLAMA | _sizes(16, 2048, 8192, 32, 8, 128256, tied=True),
    "Qwen2.5-7B": _QWEN | _sizes(28, 3584, 18944, 28, 4, 152064),
    "Qwen3-30B-A3B": _MIXTURE | {"num_experts": 128} | _sizes(48, 2048, 768, 32, 4, 151936),
    "1T": _MIXTURE | {"num_experts": 384} | _sizes(61, 7168, 2048, 64, 8, 163840),
}
"""What a config.json says, as far as it gives shapes. `1T`: a mixture of a trillion parameters, with the sizes of Kimi K2."""


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of one of MODELS, or of the model of a config.json."""
    config = MODELS[model] if model in MODELS else json.loads(Path(model).read_text())
    return dict(tensors(read(config, model)))


def piece_sizes(model: str, itemsize: int = 2) -> tuple[int, ...]:
    """Bytes of the pieces of a version, whose numbers take `itemsize` bytes, as the trainer would describe it."""
    found = {name: math.prod(shape) * itemsize for name, shape in shapes(model).items()}
    part, at, entries = part_bytes(sum(found.values())), 4096, list[TensorEntry]()
    for name, size in found.items():
        shard = Shard(node="worker-0", segment="w", offset=at, bytes=size, start=0, rows=1)
        parts = ("",) * -(-size // part) if size > part else ()
        entries.append(TensorEntry(name=name, dtype="BF16", shape=(), shards=(shard,), checksum="", parts=parts))
        at += size
    canary = Canary(tokens=(), logprobs=(), tolerance=0.0)
    return tuple(piece.bytes for piece in pieces(Manifest(version=1, dtype="", tensors=tuple(entries), checksum="", canary=canary)))
