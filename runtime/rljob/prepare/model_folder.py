"""What a Hugging Face folder holds, and whether this job can train it."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError, RLJobSpec
from rljob.wire.reward_model import is_scorer

FAMILIES = ("llama", "qwen2")
"""Values of config.json's model_type that the trainer builds."""


@dataclass(frozen=True)
class ModelFacts:
    """What config.json and the safetensors headers say."""

    model_type: str
    vocab_size: int
    context_length: int
    heads: int
    kv_heads: int
    eos_token_ids: tuple[int, ...]
    parameters: int
    scorer: bool = False
    """It is a reward model."""


def inspect(folder: Path) -> ModelFacts:
    """Read and check a model folder.

    Raises:
        ConfigurationError: something is missing, unreadable, or of a kind that is not supported.
    """
    config = _read_json(folder / "config.json", f"{folder} is no Hugging Face model folder")
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ConfigurationError(f"{folder} holds a model of family {model_type!r}; supported are {', '.join(FAMILIES)}")
    if "quantization_config" in config:
        raise ConfigurationError(f"{folder} holds quantized weights, which cannot be trained; use the model's original weights")
    shapes = tensor_shapes(folder)
    vocab_size = _integer(config, "vocab_size", folder)
    rows = shapes.get("model.embed_tokens.weight", (0,))[0]
    if rows != vocab_size:
        raise ConfigurationError(
            f"{folder}: config.json says vocab_size {vocab_size}, the embedding has {rows} rows; "
            "the folder mixes two models, download it again"
        )
    heads = _integer(config, "num_attention_heads", folder)
    return ModelFacts(
        model_type=model_type,
        vocab_size=vocab_size,
        context_length=_integer(config, "max_position_embeddings", folder),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        eos_token_ids=_eos(folder, config),
        parameters=sum(prod(shape) for shape in shapes.values()),
        scorer=is_scorer(config),
    )


def check_parallel_sizes(model: ModelFacts, spec: RLJobSpec) -> None:
    """Attention heads must divide evenly among tensor parallel ranks.

    Megatron splits query groups; vLLM also repeats key/value heads where there are fewer than ranks.

    Raises:
        ConfigurationError: they do not; the message names the sizes that work.
    """
    sizes = range(1, model.heads + 1)
    trainer = [n for n in sizes if model.heads % n == 0 and model.kv_heads % n == 0]
    rollout = [n for n in sizes if model.heads % n == 0 and (model.kv_heads % n == 0 or n % model.kv_heads == 0)]
    for field, value, works in (
        ("trainer.tensorParallel", spec.trainer.tensor_parallel, trainer),
        ("rollout.tensorParallel", spec.rollout.tensor_parallel, rollout),
    ):
        if value not in works:
            raise ConfigurationError(
                f"spec.{field} is {value}, but the model has {model.heads} attention heads and {model.kv_heads} key/value heads; "
                f"use {' or '.join(map(str, works))}"
            )


def check_tokenizer(folder: Path, highest_token: int, vocab_size: int) -> None:
    """The tokenizer must not name a token that the embedding does not have.

    Raises:
        ConfigurationError: it does.
    """
    if highest_token >= vocab_size:
        raise ConfigurationError(
            f"{folder}: the tokenizer has token {highest_token}, the model's vocabulary ends at {vocab_size - 1}; "
            "tokenizer and model do not belong together"
        )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, from the safetensors headers alone.

    Raises:
        ConfigurationError: there is no safetensors file, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigurationError(f"{folder} has no .safetensors file; save the model with `save_pretrained` (pickled weights are not read)")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            try:
                header = json.loads(opened.read(length)) if length < file.stat().st_size else None
            except ValueError:
                header = None
        if not isinstance(header, dict):
            raise ConfigurationError(f"{file} is cut off or no safetensors file; download it again")
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != file.stat().st_size:
            raise ConfigurationError(f"{file} is {file.stat().st_size} bytes long instead of {8 + length + end}; download it again")
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return shapes


def _eos(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End-of-turn tokens: the generation configuration's if it has any."""
    path = folder / "generation_config.json"
    generation = _read_json(path, str(path)) if path.exists() else {}
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = [found] if isinstance(found, int) else found
    if not ids:
        raise ConfigurationError(f"{folder}: neither generation_config.json nor config.json names an eos_token_id; add it")
    return tuple(ids)


def _integer(config: dict[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{folder}: config.json has {key} = {value!r}, a positive number is needed")
    return value


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{otherwise}: {path.name} is missing") from None
    except ValueError as error:
        raise ConfigurationError(f"{otherwise}: {path.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{otherwise}: {path.name} is not a JSON object")
    return content
