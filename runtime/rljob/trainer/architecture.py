"""What a Hugging Face `config.json` says of a model, as far as the trainer supports it. Imports neither torch nor Megatron."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError
from rljob.wire.reward_model import is_scorer


@dataclass(frozen=True)
class Family:
    """One supported model family. Another one is another entry of FAMILIES."""

    qkv_bias: bool
    """Biases on the query, key and value projections, and nowhere else."""
    must_be: Mapping[str, object]
    """Fields of `config.json` that change the computation, with the one value that is supported (absent counts as that value)."""


FAMILIES = {
    "llama": Family(qkv_bias=False, must_be={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}),
    "qwen2": Family(qkv_bias=True, must_be={"hidden_act": "silu", "use_sliding_window": False}),
}
"""By `model_type`. SmolLM2 is a `llama`."""


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
class Architecture:
    """A dense decoder-only transformer with RMSNorm, SwiGLU and rotary positions."""

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    rope: Rope
    tied: bool
    """There is no output layer of its own: it is the embedding."""
    qkv_bias: bool
    scored: bool = False
    """A reward model: one row of weights, `score.weight`, in place of the output layer."""

    def check_tensor_parallel(self, size: int) -> None:
        """Raises ConfigurationError if `size` ranks cannot share this model."""
        fitting = [n for n in range(1, self.heads + 1) if self.kv_heads % n == 0 and self.ffn % n == 0]
        if size not in fitting:
            raise ConfigurationError(
                f"spec.trainer.tensorParallel is {size}, but the model has {self.heads} heads, {self.kv_heads} key/value heads and a "
                f"feed-forward size of {self.ffn}; set it to one of {', '.join(map(str, fitting))}"
            )


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json`.

    Raises:
        ConfigurationError: it is missing or broken, the family is not supported, or it uses something of its family that is not.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; a model folder needs config.json, safetensors and a tokenizer") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    name = config.get("model_type")
    family = FAMILIES.get(name)
    if family is None:
        raise ConfigurationError(
            f"{path}: model family {name!r} is not supported by the trainer; choose one of {', '.join(sorted(FAMILIES))}"
        )
    for key, only in family.must_be.items():
        if config.get(key, only) != only:
            raise ConfigurationError(f"{path}: {key} is {config[key]!r}, the trainer supports only {only!r} for {name} models")
    try:
        return _architecture(name, family, config, path)
    except KeyError as error:
        raise ConfigurationError(f"{path}: {error.args[0]} is missing") from error


def _architecture(name: str, family: Family, config: Mapping[str, Any], path: Path) -> Architecture:
    heads = config["num_attention_heads"]
    scored = is_scorer(config)
    return Architecture(
        family=name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        epsilon=config["rms_norm_eps"],
        rope=_rope(config, path),
        tied=config.get("tie_word_embeddings", False) or scored,
        qkv_bias=family.qkv_bias,
        scored=scored,
    )


def _rope(config: Mapping[str, Any], path: Path) -> Rope:
    """transformers 5 writes `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters") or {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta", 10000.0)}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ConfigurationError(f"{path}: rotary positions of type {kind!r} are not supported by the trainer; choose default or llama3")
    return Rope(float(parameters["rope_theta"]), dict(parameters) if kind == "llama3" else None)
