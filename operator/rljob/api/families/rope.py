"""Rotary positions in a config.json, read as transformers and vLLM read them."""

import math
from collections.abc import Mapping
from typing import Any

from rljob.api.errors import ConfigurationError
from rljob.api.families.architecture import Rope

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_LLAMA3}


def read_rope(config: Mapping[str, Any], where: object) -> Rope:
    """transformers 5 writes `rope_parameters`, older ones `rope_theta` and `rope_scaling`; in a file with both, `rope_scaling` counts.

    Source: transformers, modeling_rope_utils.py, `convert_rope_params_to_dict` and `standardize_rope_params`.

    Raises:
        ConfigurationError: they are of a kind that is not supported.
        KeyError, TypeError, ValueError: a number is missing or none.
    """
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    said = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get(field) or {})}
    kinds = {said[key] for key in ("rope_type", "type") if key in said} or {"default"}
    if kinds not in ({"default"}, {"llama3"}):
        kind = " and ".join(map(repr, sorted(kinds)))
        raise ConfigurationError(f"{where}: rotary positions of type {kind} are not supported by the trainer; choose default or llama3")
    for key, value in said.items():
        if key not in _KNOWN or (key == "partial_rotary_factor" and value != 1):
            raise ConfigurationError(f"{where}: {field}.{key} is {value!r}, which is not supported by the trainer; choose another model")
    if kinds == {"default"}:
        return Rope(positive(said, "rope_theta"))
    # vLLM takes a number beside them for the one in them, transformers does not.
    inner = said.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    outer = config.get("original_max_position_embeddings", inner)
    if outer != inner:
        raise ConfigurationError(
            f"{where}: original_max_position_embeddings is {outer!r}, in {field} it is {inner!r}; make them the same, or remove the first"
        )
    scaling = {key: positive(said, key) for key in _LLAMA3}
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError(f"high_freq_factor is {said['high_freq_factor']}, more than low_freq_factor ({said['low_freq_factor']}) is needed")
    return Rope(positive(said, "rope_theta"), scaling)


def positive(said: Mapping[str, Any], key: str) -> float:
    """Raises KeyError where the field is missing, ValueError where it is no positive number."""
    value = said[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}, a positive number is needed")
    return float(value)
