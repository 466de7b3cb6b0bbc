"""What the trainer needs to know of a model: sizes, positions, experts. The same for every family."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rljob.api.parallel import Divisible


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding."""

    theta: float
    scaling: Mapping[str, Any] | None = None
    """Llama 3's frequency scaling (`factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`)."""

    def frequencies(self, head_size: int) -> list[float]:
        """Radians per position of each pair of dimensions, [head_size / 2].

        Source: transformers, modeling_rope_utils.py, `_compute_default_rope_parameters` and `_compute_llama3_parameters`.
        """
        plain = [self.theta ** -(i / head_size) for i in range(0, head_size, 2)]
        return [self._scaled(f) for f in plain] if self.scaling else plain

    def _scaled(self, frequency: float) -> float:
        s = self.scaling or {}
        factor, low, high = s["factor"], s["low_freq_factor"], s["high_freq_factor"]
        turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
        if turns < low:
            return float(frequency / factor)
        if turns > high:
            return frequency
        smooth = (turns - low) / (high - low)
        return float((1 - smooth) * frequency / factor + smooth * frequency)


@dataclass(frozen=True)
class Experts:
    """The experts of every layer, and how its router chooses among them."""

    count: int
    active: int
    """Experts that a token goes through."""
    ffn: int
    """Feed-forward size of one expert."""
    normalised: bool
    """The weights of the experts chosen for a token add up to 1; else they are their share of the softmax over all experts."""
    shared_ffn: int = 0
    """Feed-forward size of the expert that every token goes through, weighted by a gate of its own; 0: there is none."""


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer with RMSNorm, SwiGLU and rotary positions."""

    family: str
    layers: int
    hidden: int
    ffn: int
    """Feed-forward size; of a mixture of experts that of one expert."""
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    rope: Rope
    tied: bool
    """There is no output layer of its own: it is the embedding."""
    qkv_bias: bool
    qk_norm: bool = False
    """RMSNorm over each head of queries and keys, before the rotation."""
    experts: Experts | None = None
    """None: a dense model."""
    scored: bool = False
    """A reward model: one row of weights, `score.weight`, in place of the output layer."""

    @property
    def parameters(self) -> int:
        """Weights of the model, all experts counted."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        attention += self.qkv_bias * self.head_size * (self.heads + 2 * self.kv_heads) + self.qk_norm * 2 * self.head_size
        feed_forward = 3 * self.hidden * self.ffn
        if (e := self.experts) is not None:
            shared = 3 * self.hidden * e.shared_ffn + (self.hidden if e.shared_ffn else 0)
            feed_forward = e.count * (3 * self.hidden * e.ffn + self.hidden) + shared
        ends = self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2) + (self.hidden if self.scored else 0)
        return self.layers * (attention + feed_forward + 2 * self.hidden) + ends

    @property
    def divisible(self) -> Divisible:
        """What parallel ranks share out."""
        sizes = self.layers, self.heads, self.kv_heads
        if (e := self.experts) is None:
            return Divisible(*sizes, self.ffn, self.hidden)
        return Divisible(*sizes, e.shared_ffn, self.hidden, e.count, e.ffn)
