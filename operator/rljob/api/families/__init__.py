"""Model families: one file each, and the only place that knows them. docs/families.md says how to add one.

Both sides read them: the plan estimates and refuses, `prepare` checks, the trainer builds and names tensors. Imports neither torch nor
Megatron.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from rljob.api.errors import ConfigurationError
from rljob.api.families.architecture import Architecture, Experts, Rope
from rljob.api.families.family import Family, FeedForward, Mixture

__all__ = ["Architecture", "Experts", "Family", "FeedForward", "Mixture", "Rope", "families", "family", "is_scorer", "read"]


@cache
def families() -> Mapping[str, Family]:
    """All supported families by `model_type`: what the files of this folder call FAMILY."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found: list[Family] = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {one.model_type: one for one in sorted(found, key=lambda one: one.model_type)}


def family(config: Mapping[str, Any], where: object) -> Family:
    """The family of a config.json; `where` names the file in messages.

    Raises:
        ConfigurationError: it is not supported, or the model uses something of its family that is not.
    """
    name = config.get("model_type")
    found = families().get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigurationError(f"{where}: model family {name!r} is not supported by the trainer; choose one of {', '.join(families())}")
    for key, only in found.must_be.items():
        value = config.get(key, only)
        if value != only and (value or only):  # null, false and an empty list say the same
            raise ConfigurationError(f"{where}: {key} is {value!r}, the trainer supports only {only!r} for {name} models")
    return found


_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
_EXPERT_SIZES = (
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
_SHARED_SIZES = ("shared_expert_intermediate_size",)


def _sizes(kind: Family) -> Iterator[str]:
    """Fields of a config.json that have to be sizes. Of experts that its family does not have, a model may say anything, and some do."""
    yield from _SIZES
    if isinstance(kind.feed_forward, Mixture):
        yield from _EXPERT_SIZES
        yield from _SHARED_SIZES if kind.feed_forward.shared is not None else ()


def read(config: Mapping[str, Any], where: object) -> Architecture:
    """What a config.json says of a model.

    Raises:
        ConfigurationError: as `family`, or a field is missing, is of the wrong kind, or is a size and no positive whole number.
    """
    kind = family(config, where)
    for key in _sizes(kind):
        value = config.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigurationError(
                f"{where}: {key} is {value!r}, a positive whole number is needed; use the file that came with the model"
            )
    try:
        return _architecture(kind, {**kind.defaults, **{key: value for key, value in config.items() if value is not None}}, where)
    except KeyError as error:
        raise ConfigurationError(f"{where}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{where}: a field is of another kind ({error}); use the file that came with the model") from error


def is_scorer(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a reward model, as transformers saves one (`LlamaForSequenceClassification`)."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _architecture(kind: Family, config: Mapping[str, Any], where: object) -> Architecture:
    heads = config["num_attention_heads"]
    experts = kind.experts(config) if kind.experts is not None else None
    return Architecture(
        family=kind.model_type,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"] if experts is None else experts.ffn,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        epsilon=float(config["rms_norm_eps"]),
        rope=_rope(config, where),
        tied=config.get("tie_word_embeddings", False) or is_scorer(config),
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
        experts=experts,
        scored=is_scorer(config),
    )


def _rope(config: Mapping[str, Any], where: object) -> Rope:
    """transformers 5 writes `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters") or {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta", 10000.0)}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ConfigurationError(f"{where}: rotary positions of type {kind!r} are not supported by the trainer; choose default or llama3")
    return Rope(float(parameters["rope_theta"]), dict(parameters) if kind == "llama3" else None)
