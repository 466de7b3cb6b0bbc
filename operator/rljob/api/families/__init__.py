"""Model families: one file each, and the only place that knows them. docs/families.md says how to add one.

Both sides read them: the plan estimates and refuses, `prepare` checks, the trainer builds and names tensors. Imports neither torch nor
Megatron.
"""

import importlib
import pkgutil
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from rljob.api.errors import ConfigurationError
from rljob.api.families.architecture import Architecture, Experts, Rope
from rljob.api.families.family import EVERYWHERE, Family, FeedForward, Mixture
from rljob.api.families.rope import positive, read_rope

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
    for key, only in {**EVERYWHERE, **found.must_be}.items():
        value = config.get(key, only)
        if value != only and (value or only):  # null, false and an empty list say the same
            remedy = _REMEDIES.get(key, _OTHER)
            shown = reprlib.repr(value)
            raise ConfigurationError(f"{where}: {key} is {shown}, the trainer supports only {only!r} for {name} models; {remedy}")
    return found


_OTHER = "choose another model"
_WINDOW = f"{_OTHER}, or, for sequences that are no longer than the window, change it in a copy of the folder"
_ORIGINAL = "quantized weights cannot be trained, use the model's original weights"
_REMEDIES = {
    "quantization_config": _ORIGINAL,
    "compression_config": _ORIGINAL,
    **dict.fromkeys(("sliding_window", "use_sliding_window", "attention_chunk_size", "dual_chunk_attention_config"), _WINDOW),
}


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
_SWITCHES = ("tie_word_embeddings", "norm_topk_prob")


def _sizes(kind: Family) -> Iterator[str]:
    """Fields of a config.json that have to be sizes. Of experts that its family does not have, a model may say anything, and some do."""
    yield from _SIZES
    if isinstance(kind.feed_forward, Mixture):
        yield from _EXPERT_SIZES
        yield from _SHARED_SIZES if kind.feed_forward.shared is not None else ()


def read(config: Mapping[str, Any], where: object) -> Architecture:
    """What a config.json says of a model.

    Raises:
        ConfigurationError: as `family`, or a field is missing, is of the wrong kind, is a size and no positive whole number, or does not go
            with another one.
    """
    kind = family(config, where)
    for key in _sizes(kind):
        value = config.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigurationError(
                f"{where}: {key} is {value!r}, a positive whole number is needed; use the file that came with the model"
            )
    for key in _SWITCHES:
        if not isinstance(config.get(key) or False, bool):
            raise ConfigurationError(f"{where}: {key} is {config[key]!r}, true or false is needed; use the file that came with the model")
    said = {**kind.defaults, **{key: value for key, value in config.items() if value is not None}}
    try:
        made = _architecture(kind, said, where)
        lines = list(_misfits(kind, said, made))
    except KeyError as error:
        raise ConfigurationError(f"{where}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{where}: a field is of another kind ({error}); use the file that came with the model") from error
    if lines:
        raise ConfigurationError(f"{where}: {'; also '.join(lines)}; choose another model, or use the file that came with this one")
    return made


def _misfits(kind: Family, config: Mapping[str, Any], a: Architecture) -> Iterator[str]:
    """Fields that do not go with each other, or with what the trainer and the engine compute."""
    names = [f"{kind.model_type.replace('_', '')}for{task}" for task in ("causallm", "sequenceclassification")]
    if other := [name for name in config.get("architectures") or () if str(name).replace("_", "").lower() not in names]:
        yield f"architectures has {' and '.join(map(repr, other))}, which is another model to the engine than {kind.model_type}"
    if types := set(config.get("layer_types") or ()) - {"full_attention"}:
        yield f"layer_types has {' and '.join(map(repr, sorted(types)))}, the trainer supports only 'full_attention'"
    if a.heads % a.kv_heads:
        yield f"num_attention_heads is {a.heads}, no multiple of num_key_value_heads ({a.kv_heads})"
    if "head_dim" not in config and a.hidden % a.heads:
        yield f"hidden_size is {a.hidden}, no multiple of num_attention_heads ({a.heads})"
    elif kind.fixed_head_size and a.head_size * a.heads != a.hidden:
        yield f"head_dim is {a.head_size}, the engine takes hidden_size / num_attention_heads ({a.hidden} / {a.heads}) in {kind.model_type}"
    elif a.head_size % 2:
        yield f"the head size is {a.head_size}, rotary positions need an even one"
    if (e := a.experts) is None:
        return
    if len(counts := {config[key] for key in ("num_experts", "num_local_experts") if key in config}) > 1:
        yield f"num_experts and num_local_experts are {' and '.join(map(str, sorted(counts)))}, which have to be the same"
    if e.active > e.count:
        yield f"num_experts_per_tok is {e.active}, more than the {e.count} experts of a layer"
    if e.active == 1 and e.normalised:
        yield "num_experts_per_tok is 1 with weights that add up to 1, of which a router learns nothing"


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
        epsilon=positive(config, "rms_norm_eps"),
        rope=read_rope(config, where),
        tied=config.get("tie_word_embeddings", False) or is_scorer(config),
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
        experts=experts,
        scored=is_scorer(config),
    )
