"""What a family file is made of: a Family, and the parts of its layers with the names of their tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rljob.api.families.architecture import Experts

Config = Mapping[str, Any]
"""A config.json."""

EVERYWHERE: Config = {
    "hidden_act": "silu",
    "quantization_config": None,
    "compression_config": None,
    "is_causal": True,
    "per_layer_config": None,
    "attention_chunk_size": None,
    "dual_chunk_attention_config": None,
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "rotary_emb_fraction": 1.0,
    "mrope_section": None,
    "xdrope_section": None,
}
"""What `Family.must_be` has of every family: what transformers or vLLM read from any config.json."""


@dataclass(frozen=True)
class FeedForward:
    """Names of a dense feed-forward part, within its layer."""

    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


@dataclass(frozen=True)
class Mixture:
    """Names of a mixture of experts, within its layer."""

    router: str
    experts: str
    """What stands before an expert's names, with `{}` for its number."""
    expert: FeedForward
    """Names within an expert."""
    shared: FeedForward | None = None
    """The expert that every token goes through."""
    shared_gate: str | None = None
    """One row that weighs the shared expert's output, through a sigmoid."""


@dataclass(frozen=True)
class Family:
    """One supported model family: what its config.json says, and what the tensors of its layers are called.

    What is not named here is the same in all of them: `model.embed_tokens`, `model.norm`, `lm_head`; in layer i, under `model.layers.i.`,
    `input_layernorm`, `self_attn.{q,k,v,o}_proj`, `self_attn.{q,k}_norm` where there is one, and `post_attention_layernorm`.
    """

    model_type: str
    feed_forward: FeedForward | Mixture = FeedForward()
    qkv_bias: bool = False
    """Biases on the query, key and value projections, and nowhere else."""
    qk_norm: bool = False
    """RMSNorm over each head of queries and keys."""
    fixed_head_size: bool = False
    """vLLM takes hidden_size / num_attention_heads for the head size, whatever config.json says."""
    must_be: Config = field(default_factory=dict)
    """Fields of config.json that change the computation, in transformers or in vLLM, with the one value that is supported (absent counts
    as that value); beside those of all families (`EVERYWHERE`)."""
    defaults: Config = field(default_factory=dict)
    """What transformers takes a field for that config.json leaves out, where families differ."""
    experts: Callable[[Config], Experts] | None = None
    """Reads what config.json says of the experts; None: a dense family."""
