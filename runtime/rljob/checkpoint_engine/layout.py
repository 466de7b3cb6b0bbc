"""How named tensors lie in a file (safetensors: header length, JSON, data), and how such a file comes into being."""

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rljob.api import ConfigurationError
from rljob.checkpoint_engine.space import human_size, reserve

PAGE = 4096
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of the element types."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What stands before the data. `offsets` count from the start of the file."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    metadata: dict[str, str]
    size: int
    """Bytes before the data."""

    @property
    def file_size(self) -> int:
        return self.size + sum(spec.nbytes for spec in self.specs)


def header_text(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for spec in specs:
        table[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    return json.dumps(table, separators=(",", ":")).encode()


def parse_header(path: Path, memory: mmap.mmap, size: int) -> Header:
    """Read the header of a safetensors file.

    Raises:
        ConfigurationError: it is not one, or it is cut short.
    """
    length = int.from_bytes(memory[:8], "little")
    if size < 8 or length > size - 8:
        raise ConfigurationError(f"{path} is not a complete safetensors file: {human_size(size)} is too short for its header")
    start = 8 + length
    try:
        table = json.loads(memory[8:start])
        metadata = table.pop("__metadata__", {})
        rows = sorted(((*entry["data_offsets"], name, entry) for name, entry in table.items()), key=lambda row: row[:2])
        specs = tuple(TensorSpec(name, DTYPES[entry["dtype"]], tuple(entry["shape"])) for _, _, name, entry in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} has no header that safetensors would read: {error!r}") from error
    offsets = tuple(start + row[0] for row in rows)
    header = Header(specs, offsets, metadata, start)
    if header.file_size != size or any(offset % spec.dtype.itemsize for spec, offset in zip(specs, offsets, strict=True)):
        raise ConfigurationError(f"{path} is cut short or not aligned: {human_size(size)}, its tensors need {human_size(header.file_size)}")
    return header


def allocate(path: Path, specs: tuple[TensorSpec, ...], metadata: Mapping[str, str]) -> int:
    """Descriptor of a new file with its space reserved and its header written, moved to `path` when complete."""
    text = header_text(specs, metadata)
    slack = max(PAGE, 2 * len(json.dumps(dict(metadata))))
    start = -(-(8 + len(text) + slack) // PAGE) * PAGE
    need = start + sum(spec.nbytes for spec in specs)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.unlink(missing_ok=True)  # its space may be needed
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot create {path}: {error.strerror}; check that the folder exists and may be written") from error
    try:
        reserve(path, descriptor, need)
        os.pwrite(descriptor, (start - 8).to_bytes(8, "little") + text.ljust(start - 8), 0)
        os.rename(draft, path)
    except BaseException:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return descriptor
