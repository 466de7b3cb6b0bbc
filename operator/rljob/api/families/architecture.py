"""What the trainer needs to know of a model: sizes, positions, experts. The same for every family."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rljob.api.errors import ConfigurationError


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
    """The output layer is the embedding."""
    qkv_bias: bool
    qk_norm: bool = False
    """RMSNorm over each head of queries and keys, before the rotation."""
    experts: Experts | None = None
    """None: a dense model."""

    def parameters(self, experts: int | None = None) -> int:
        """Weights of the model; with so many experts a layer instead of all: `experts.active` gives what a token goes through."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        attention += self.qkv_bias * self.head_size * (self.heads + 2 * self.kv_heads) + self.qk_norm * 2 * self.head_size
        feed_forward = 3 * self.hidden * self.ffn
        if (e := self.experts) is not None:
            shared = 3 * self.hidden * e.shared_ffn + (self.hidden if e.shared_ffn else 0)
            feed_forward = (e.count if experts is None else experts) * 3 * self.hidden * e.ffn + self.hidden * e.count + shared
        ends = self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + feed_forward + 2 * self.hidden) + ends

    def check_tensor_parallel(self, size: int) -> None:
        """Raises ConfigurationError if `size` ranks cannot share this model.

        Experts are whole on the ranks that have them; only a shared expert is split like the feed-forward part of a dense model.
        """
        split = self.ffn if self.experts is None else self.experts.shared_ffn
        fitting = [n for n in range(1, self.heads + 1) if self.kv_heads % n == 0 and split % n == 0]
        if size not in fitting:
            width = f" and a feed-forward size of {split}" if split else ""
            raise ConfigurationError(
                f"spec.trainer.tensorParallel is {size}, but the model has {self.heads} heads, {self.kv_heads} key/value heads"
                f"{width}; set it to one of {', '.join(map(str, fitting))}"
            )

    def check_expert_parallel(self, size: int, ranks: int) -> None:
        """Raises ConfigurationError if the experts of a layer cannot be spread over `size` of the `ranks` ranks that hold it (tensor × data
        parallel size)."""
        if size == 1:
            return
        if self.experts is None:
            raise ConfigurationError(f"spec.trainer.expertParallel is {size}, but {self.family} models have no experts; set it to 1")
        fitting = [n for n in range(1, ranks + 1) if self.experts.count % n == 0 and ranks % n == 0]
        if size not in fitting:
            raise ConfigurationError(
                f"spec.trainer.expertParallel is {size}, but the model has {self.experts.count} experts in a layer, for {ranks} ranks "
                f"(tensor × data parallel size); both must be multiples of it: set it to {nearest(size, fitting)}"
            )


def nearest(size: int, fitting: list[int]) -> str:
    """The sizes that work next to `size`, below and above, for a message."""
    below, above = max((n for n in fitting if n < size), default=None), min((n for n in fitting if n > size), default=None)
    return " or ".join(str(n) for n in (below, above) if n is not None)
