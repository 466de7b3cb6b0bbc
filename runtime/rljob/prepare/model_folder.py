"""What a Hugging Face folder holds, and whether this job can train it."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.families import Architecture, read

ENGINE_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on CPU (0.32, v1/attention/backends/cpu_attn.py)."""
ENGINE_BLOCK = 32
"""What the sizes of its experts on CPU must be multiples of (0.32, fused_moe/experts/cpu_moe.py). It would fill an expert up to that, but
takes no new weights afterwards."""


@dataclass(frozen=True)
class ModelFacts:
    """What config.json and the safetensors headers say."""

    model_type: str
    vocab_size: int
    context_length: int
    architecture: Architecture
    eos_token_ids: tuple[int, ...]
    parameters: int


def inspect(folder: Path) -> ModelFacts:
    """Read and check a model folder.

    Raises:
        ConfigurationError: something is missing, unreadable, or of a kind that is not supported.
    """
    config = _read_json(folder / "config.json", f"{folder} is no Hugging Face model folder")
    if "quantization_config" in config:
        raise ConfigurationError(f"{folder} holds quantized weights, which cannot be trained; use the model's original weights")
    architecture = read(config, folder / "config.json")
    shapes = tensor_shapes(folder)
    vocab_size = _integer(config, "vocab_size", folder)
    rows = shapes.get("model.embed_tokens.weight", (0,))[0]
    if rows != vocab_size:
        raise ConfigurationError(
            f"{folder}: config.json says vocab_size {vocab_size}, the embedding has {rows} rows; "
            "the folder mixes two models, download it again"
        )
    return ModelFacts(
        model_type=architecture.family,
        vocab_size=vocab_size,
        context_length=_integer(config, "max_position_embeddings", folder),
        architecture=architecture,
        eos_token_ids=_eos(folder, config),
        parameters=sum(prod(shape) for shape in shapes.values()),
    )


def check_parallel_sizes(model: ModelFacts, spec: RLJobSpec) -> None:
    """Attention heads must divide evenly among tensor parallel ranks, experts among expert parallel ones; both sides must be able to run
    the model.

    Megatron splits query groups; vLLM also repeats key/value heads where there are fewer than ranks, and splits every expert.

    Raises:
        ConfigurationError: they do not; the message names the sizes that work.
    """
    a = model.architecture
    sizes = range(1, a.heads + 1)
    trainer = [n for n in sizes if a.heads % n == 0 and a.kv_heads % n == 0]
    rollout = [n for n in sizes if a.heads % n == 0 and (a.kv_heads % n == 0 or n % a.kv_heads == 0)]
    for field, value, works in (
        ("trainer.tensorParallel", spec.trainer.tensor_parallel, trainer),
        ("rollout.tensorParallel", spec.rollout.tensor_parallel, rollout),
    ):
        if value not in works:
            raise ConfigurationError(
                f"spec.{field} is {value}, but the model has {a.heads} attention heads and {a.kv_heads} key/value heads; "
                f"use {' or '.join(map(str, works))}"
            )
    a.check_tensor_parallel(spec.trainer.tensor_parallel)
    a.check_expert_parallel(spec.trainer.expert_parallel, spec.world_size // spec.trainer.pipeline_parallel)
    _check_engine(a, spec)


def _check_engine(a: Architecture, spec: RLJobSpec) -> None:
    """What vLLM finds out only when the trainer is up already."""
    size, on_cpu = spec.rollout.tensor_parallel, spec.accelerator.type == "cpu"
    if on_cpu and a.head_size not in ENGINE_HEADS:
        raise ConfigurationError(
            f"the model has heads of size {a.head_size}; on CPU vLLM's attention knows only {', '.join(map(str, ENGINE_HEADS))}: "
            "take another model, or spec.accelerator.type nvidia"
        )
    if a.experts is None:
        return
    widths = [width for width in (a.experts.ffn, a.experts.shared_ffn) if width]
    if any(width % size for width in widths):
        raise ConfigurationError(
            f"spec.rollout.tensorParallel is {size}, but vLLM splits the model's experts, whose feed-forward size is "
            f"{' and '.join(map(str, widths))}; use a divisor of it"
        )
    if on_cpu and (a.hidden % ENGINE_BLOCK or a.experts.ffn // size % ENGINE_BLOCK):
        raise ConfigurationError(
            f"the model has a hidden size of {a.hidden} and experts of size {a.experts.ffn} (on {size} ranks, spec.rollout.tensorParallel); "
            f"on CPU vLLM's experts need multiples of {ENGINE_BLOCK}: take another model, or spec.accelerator.type nvidia"
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
