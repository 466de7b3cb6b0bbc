"""What the estimate needs to know of a model, read from a config.json, a GGUF header or the job. Reads headers only, never weights."""

import importlib.util
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, BinaryIO

from rljob.api import RLJob
from rljob.api.families import read
from rljob.api.sources import ModelSource, ScratchSource


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer."""

    family: str
    parameters: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    experts: int = 0
    """Experts of a layer, of feed-forward size `ffn` each; 0: a dense model."""
    chosen: int = 0
    """Experts that a token goes through."""
    shared_ffn: int = 0
    """Feed-forward size of one more that every token goes through, if there is one."""

    @property
    def in_experts(self) -> int:
        """Parameters of all experts, those that every token goes through aside."""
        return self.layers * self.experts * 3 * self.hidden * self.ffn

    @property
    def active(self) -> int:
        """Parameters that a token goes through: what its time depends on."""
        return self.parameters - (self.in_experts * (self.experts - self.chosen) // self.experts if self.experts else 0)


def read_shape(job: RLJob, folder: Path) -> ModelShape | None:
    """The shape of the job's model; None if it is not on this machine or cannot be read.

    Args:
        folder: what relative paths start at.

    Raises:
        ConfigurationError: its family, or something that it uses, is not supported.
    """
    source = job.spec.model.source
    if source.scratch is not None:
        return of_scratch(source.scratch)
    path = locate(source, folder)
    try:
        if path is not None and path.suffix == ".gguf" and path.is_file():
            with path.open("rb") as stream:
                return of_gguf(stream)
        if path is not None and (path / "config.json").is_file():
            return of_config(json.loads((path / "config.json").read_text()), path / "config.json")
    except (KeyError, ValueError, TypeError, ArithmeticError, MemoryError, struct.error, OSError):
        return None  # What is wrong with the model is for `rljob.prepare` to say; an estimate only does without.
    return None


def find_package(name: str) -> ModuleSpec | None:
    """Where Python has the top package of a dotted name; None if it has none."""
    try:
        return importlib.util.find_spec(name.partition(".")[0])
    except ValueError:  # a module that was not imported as one, such as __main__
        return None


def locate(source: ModelSource, folder: Path) -> Path | None:
    """File or folder of a model that is on this machine; it need not exist."""
    if source.path is not None:
        return folder / source.path
    if source.package is not None:
        spec = find_package(source.package.name)
        if spec is not None and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0], *source.package.name.split(".")[1:], source.package.file)
    return None


def of_scratch(source: ScratchSource) -> ModelShape:
    """Shape of a model made on the spot; its character vocabulary is padded to 128."""
    return of_config(
        {
            "model_type": "llama",
            "num_hidden_layers": source.layers,
            "hidden_size": source.hidden_size,
            "intermediate_size": source.ffn_size,
            "num_attention_heads": source.heads,
            "num_key_value_heads": source.kv_heads,
            "vocab_size": 128,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": source.context_length,
        }
    )


def of_config(config: Mapping[str, Any], where: object = "config.json") -> ModelShape:
    """Shape from a Hugging Face config.json; `where` names it in messages.

    Raises:
        ConfigurationError, KeyError, TypeError, ValueError: it is not the configuration of a model that can be trained.
    """
    a = read(config, where)
    sizes = (a.layers, a.hidden, a.ffn, a.heads, a.kv_heads, a.head_size, a.vocabulary)
    context = int(config.get("max_position_embeddings", 0))
    experts = (e.count, e.active, e.shared_ffn) if (e := a.experts) is not None else ()
    return ModelShape(a.family, a.parameters, *sizes, context, *experts)


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def _scalar(stream: BinaryIO, form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _text(stream: BinaryIO) -> str:
    return stream.read(_scalar(stream, "<Q")).decode(errors="replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    """One metadata value; none of an array, which no size of a model that can be trained is."""
    if kind == _STRING:
        return _text(stream)
    if kind != _ARRAY:
        return _scalar(stream, _SCALARS[kind])
    member, length = _scalar(stream, "<I"), int(_scalar(stream, "<Q"))
    if member == _STRING:
        for _ in range(length):
            stream.seek(_scalar(stream, "<Q"), 1)
    else:
        stream.seek(struct.calcsize(_SCALARS[member]) * length, 1)
    return None


def of_gguf(stream: BinaryIO) -> ModelShape:
    """Shape from the header of a GGUF file, version 2 or 3 (layout: ggml's docs/gguf.md).

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError, MemoryError, struct.error: it is no such file, or a key is missing or no size.
    """
    if stream.read(4) != b"GGUF" or _scalar(stream, "<I") not in (2, 3):
        raise ValueError("not a GGUF file of version 2 or 3")
    tensors, keys = int(_scalar(stream, "<Q")), int(_scalar(stream, "<Q"))
    meta = {}
    for _ in range(keys):
        name = _text(stream)
        meta[name] = _value(stream, _scalar(stream, "<I"))
    parameters = 0
    vocabulary = 0
    for _ in range(tensors):
        name, dimensions = _text(stream), int(_scalar(stream, "<I"))
        sizes = struct.unpack(f"<{dimensions}Q", stream.read(8 * dimensions))
        stream.read(12)
        product = 1
        for size in sizes:
            product *= size
        parameters += product
        if name == "token_embd.weight":
            vocabulary = sizes[-1]
    family = str(meta["general.architecture"])
    hidden, heads = int(meta[f"{family}.embedding_length"]), int(meta[f"{family}.attention.head_count"])
    sizes = (
        int(meta[f"{family}.block_count"]),
        hidden,
        int(meta[f"{family}.feed_forward_length"]),
        heads,
        int(meta.get(f"{family}.attention.head_count_kv", heads)),
        int(meta.get(f"{family}.attention.key_length", hidden // heads)),
        vocabulary,
    )
    if min(sizes) < 1:
        raise ValueError("a size is missing or no positive number")
    return ModelShape(family, parameters, *sizes, int(meta.get(f"{family}.context_length", 0)))
