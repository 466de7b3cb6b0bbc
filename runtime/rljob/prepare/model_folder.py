"""What a Hugging Face folder holds, and whether this job can train it."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.families import Architecture, read
from rljob.api.families.tensors import tensors, unread
from rljob.api.parallel import engine_misfits, trainer_misfits

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Says which file holds which tensor, where there are several."""


@dataclass(frozen=True)
class ModelFacts:
    """What config.json and the safetensors headers say."""

    model_type: str
    vocab_size: int
    context_length: int
    architecture: Architecture
    eos_token_ids: tuple[int, ...]
    parameters: int


def inspect(folder: Path, name: Path | None = None) -> ModelFacts:
    """Read and check a model folder.

    Args:
        name: what the folder was made of, for messages: the user's file, not our copy.

    Raises:
        ConfigurationError: something is missing, unreadable, or of a kind that is not supported.
    """
    name = name or folder
    config = _read_json(folder / "config.json", f"{name} is no Hugging Face model folder")
    architecture = read(config, name / "config.json")
    shapes = tensor_shapes(folder)
    vocab_size = _integer(config, "vocab_size", name)
    rows = shapes.get("model.embed_tokens.weight", (vocab_size,))[0]
    if rows != vocab_size:
        raise ConfigurationError(
            f"{name}: config.json says vocab_size {vocab_size}, the embedding has {rows} rows; "
            "the folder mixes two models, download it again"
        )
    _check_tensors(shapes, architecture, name)
    return ModelFacts(
        model_type=architecture.family,
        vocab_size=vocab_size,
        context_length=_integer(config, "max_position_embeddings", name),
        architecture=architecture,
        eos_token_ids=_eos(folder, config, name),
        parameters=sum(prod(shape) for shape in shapes.values()),
    )


def _check_tensors(shapes: dict[str, tuple[int, ...]], architecture: Architecture, name: Path) -> None:
    """A tensor that is missing would be found when the trainer has started; one too many, such as a bias, would be lost in silence."""
    known = set()
    for tensor, shape in tensors(architecture):
        known.add(tensor)
        if tensor not in shapes:
            raise ConfigurationError(f"{name}: the weights lack {tensor}, which config.json's model has; download them again")
        if shapes[tensor] != shape:
            kind, remedy = "config.json's model", "the folder mixes two models, download it again"
            if tensor == "score.weight":
                kind, remedy = "a reward model", "start from a model with one label"
            raise ConfigurationError(f"{name}: {tensor} is {list(shapes[tensor])}, {kind} has {list(shape)}; {remedy}")
    for tensor in shapes:
        if tensor not in known and not unread(tensor, architecture):
            raise ConfigurationError(
                f"{name}: the weights hold {tensor}, which the trainer does not know in {architecture.family} models and would lose; "
                "use a model without it"
            )


def check_parallel_sizes(model: ModelFacts, spec: RLJobSpec) -> None:
    """Layers, heads, experts and the feed-forward part must divide evenly among parallel ranks, and the engine must be able to run them.

    Raises:
        ConfigurationError: they do not; the message names the nearest sizes that work.
    """
    sizes = model.architecture.divisible
    if lines := [*trainer_misfits(sizes, spec.trainer, spec.world_size), *engine_misfits(sizes, spec.rollout, spec.accelerator)]:
        raise ConfigurationError("; also ".join(lines))


def disk_bytes(parameters: int, spec: RLJobSpec) -> int:
    """What a job needs of its disk at the least beside the starting model, in bytes: the newest checkpoints and one in the making, in whose
    place the final model comes at the end, all fp32. `rljob.plan` says what a job may need."""
    checkpoint = (4 if spec.algorithm.reset_optimizer and spec.generates else 12) * parameters  # weights, and two moments if they are kept
    made = spec.iterations + (spec.warm_start is not None)
    kept = min(spec.checkpoint.keep, made)
    return kept * checkpoint + (checkpoint if made > kept else 4 * parameters)


def check_tokenizer(name: Path, highest_token: int, vocab_size: int) -> None:
    """The tokenizer must not name a token that the embedding does not have.

    Raises:
        ConfigurationError: it does.
    """
    if highest_token >= vocab_size:
        raise ConfigurationError(
            f"{name}: the tokenizer has token {highest_token}, the model's vocabulary ends at {vocab_size - 1}; "
            "tokenizer and model do not belong together, take both from one place"
        )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, from the safetensors headers alone.

    Raises:
        ConfigurationError: there is no safetensors file, or one that the index names is not there, or one is damaged.
    """
    if not any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{folder} has no .safetensors file; save the model with `save_pretrained` (pickled weights are not read)")
    if not (folder / INDEX).exists():
        if not (folder / MODEL).exists():
            raise ConfigurationError(f"{folder} has neither {MODEL} nor {INDEX}; add the index, or give a single file the name {MODEL}")
        return _header(folder / MODEL)
    placed = _read_json(folder / INDEX, str(folder)).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise ConfigurationError(f"{folder / INDEX} has no weight_map from tensors to files; download it again")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(placed.values())):
        if Path(name).name != name:
            raise ConfigurationError(f"{folder / INDEX} names {name}; put all files of the model into one folder and name them without it")
        if not (folder / name).is_file():
            raise ConfigurationError(f"{folder} has no {name}, which {INDEX} names; download it")
        shapes |= _header(folder / name)
    return shapes


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if length < file.stat().st_size else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise ConfigurationError(f"{file} is cut off or no safetensors file; download it again")
    header.pop("__metadata__", None)
    try:
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{file} has a damaged header ({error!r}); download it again") from error
    if 8 + length + end != file.stat().st_size:
        raise ConfigurationError(f"{file} is {file.stat().st_size} bytes long instead of {8 + length + end}; download it again")
    return shapes


def _eos(folder: Path, config: dict[str, Any], name: Path) -> tuple[int, ...]:
    """End-of-turn tokens: the generation configuration's if it has any."""
    path = folder / "generation_config.json"
    generation = _read_json(path, str(path)) if path.exists() else {}
    found = generation.get("eos_token_id")
    if found is None:
        found = config.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not ids:
        raise ConfigurationError(f"{name}: neither generation_config.json nor config.json names an eos_token_id; add it")
    if not all(type(token) is int for token in ids):
        raise ConfigurationError(f"{name}: eos_token_id is {found!r}; it must be the number of a token or a list of such")
    return tuple(ids)


def _integer(config: dict[str, Any], key: str, name: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}: config.json has {key} = {value!r}, a positive number is needed")
    return value


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(
            f"{otherwise}: {path.name} is missing; download all of the model, or save it with `save_pretrained`"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{otherwise}: {path.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{otherwise}: {path.name} is not a JSON object")
    return content
