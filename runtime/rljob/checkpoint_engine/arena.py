"""A memory-mapped safetensors file: the weight arena in shared memory, and the checkpoint on disk.

An arena is written in place, version after version, because fresh shared-memory pages cost 20 to 40 times as much as warm ones. Two
rules make that safe. An inode never changes its layout: another layout is another inode (`create` replaces the file atomically). And a
version counts only while its number stands in the metadata: a writer calls `create(path, specs, {})`, writes, then
`set_metadata({"version": ...})`, so that a reader of a half-written arena finds no version and refuses it.
"""

import errno
import json
import math
import mmap
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import xxhash

from rljob.api import ConfigurationError, InfrastructureError
from rljob.wire.weights import Manifest, Shard, TensorEntry

PAGE = 4096
CHUNK = 512 * 1024
"""Bytes that are copied before they are hashed: small enough that the hash finds them in the L2 cache."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of the element types."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class WeightsRefused(InfrastructureError):
    """A set of weights is not the one that its manifest describes; it must not be served."""


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
class _Header:
    """What stands before the data. `offsets` count from the start of the file."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    metadata: dict[str, str]
    size: int
    """Bytes before the data."""

    @property
    def file_size(self) -> int:
        return self.size + sum(spec.nbytes for spec in self.specs)


class TensorFile:
    """Named tensors in one mapped file that any safetensors reader opens."""

    def __init__(self, path: Path, descriptor: int, writable: bool) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._descriptor = descriptor
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, protection)
        header = _parse_header(path, self._map, len(self._map))
        self.specs: tuple[TensorSpec, ...] = header.specs
        self._places = {spec.name: (offset, spec) for spec, offset in zip(header.specs, header.offsets, strict=True)}
        self._data_start = header.size
        with warnings.catch_warnings():
            # torch has no read-only tensors; nothing here writes through a read-only mapping (it would be a segmentation fault).
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def create(cls, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Self:
        """A writable file of this layout; an existing one of the same layout is kept (its data too, its metadata is replaced).

        Tensors lie in the order of `specs`, wider element types first, so that every tensor is aligned to its element size without
        holes, which safetensors forbids.

        Raises:
            ConfigurationError: no space or no permission; the message says how much is needed and free.
        """
        ordered = tuple(sorted(specs, key=lambda spec: -spec.dtype.itemsize))
        doubled = [name for name, count in Counter(spec.name for spec in ordered).items() if count > 1]
        if doubled:
            raise ValueError(f"tensor names must be unique; more than once: {', '.join(sorted(doubled))}")
        existing = _open_same_layout(path, ordered)
        if existing is None:
            existing = _allocate(path, ordered, metadata)
        file = cls(path, existing, writable=True)
        file.set_metadata(metadata)
        return file

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> Self:
        """Map an existing file.

        Raises:
            ConfigurationError: it does not exist, may not be read, or is not a complete safetensors file.
        """
        try:
            descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise ConfigurationError(f"cannot open {path}: {error.strerror}") from error
        try:
            return cls(path, descriptor, writable)
        except ValueError as error:  # an empty file cannot be mapped
            os.close(descriptor)
            raise ConfigurationError(f"{path} is not a complete safetensors file: {error}") from error
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata as it is now, also if another process has changed it."""
        return _parse_header(self.path, self._map, len(self._map)).metadata

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata in place.

        Raises:
            ValueError: it does not fit into the room left by `create` (4 KiB or twice the first metadata).
        """
        text = _header_text(self.specs, metadata)
        room = self._data_start - 8
        if len(text) > room:
            raise ValueError(f"metadata of {human_size(len(text))} does not fit into the header of {self.path} ({human_size(room)})")
        self._map[8 : self._data_start] = text.ljust(room)

    @property
    def data_start(self) -> int:
        """First byte of the data; a multiple of 4096 if this project wrote the file."""
        return self._data_start

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.nbytes for spec in self.specs)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal identity means equal layout, for good."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def mapping(self) -> torch.Tensor:
        """The whole mapping, uint8 [file size], zero copy; for registering it with an accelerator."""
        return self._bytes

    def names(self) -> Iterator[str]:
        """Names in the order of the file."""
        return (spec.name for spec in self.specs)

    @staticmethod
    def size_of(dtype: str, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this safetensors type and shape."""
        return math.prod(shape) * DTYPES[dtype].itemsize

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def spec(self, name: str) -> TensorSpec:
        """Element type and shape."""
        return self._places[name][1]

    def offset(self, name: str) -> int:
        """First byte of the tensor, from the start of the file."""
        return self._places[name][0]

    def view(self, name: str) -> torch.Tensor:
        """The tensor itself, zero copy; it keeps the mapping alive. Writing to a file opened read-only is a segmentation fault."""
        offset, spec = self._places[name]
        return self._bytes[offset : offset + spec.nbytes].view(spec.dtype).view(spec.shape)

    def write(self, name: str, source: torch.Tensor) -> str:
        """Copy `source` (same shape; converted to the file's element type) into the file and return the checksum of what was written.

        Copying and hashing go chunk by chunk, so that the bytes are read from memory once.
        """
        offset, spec = self._places[name]
        if tuple(source.shape) != spec.shape:
            raise ValueError(f"tensor {name} has shape {list(source.shape)}, {self.path} holds {list(spec.shape)}")
        target = self.view(name).view(-1)
        flat = source.detach().contiguous().view(-1)
        step = CHUNK // spec.dtype.itemsize if flat.device.type == "cpu" else max(1, flat.numel())
        digest = xxhash.xxh3_128()
        with memoryview(self._map) as memory:
            for start in range(0, flat.numel(), step):
                end = min(start + step, flat.numel())
                target[start:end].copy_(flat[start:end])
                digest.update(memory[offset + start * spec.dtype.itemsize : offset + end * spec.dtype.itemsize])
        return str(digest.hexdigest())

    def checksum(self, name: str) -> str:
        """xxh3-128 of the tensor's bytes, hex."""
        offset, spec = self._places[name]
        with memoryview(self._map) as memory:
            return str(xxhash.xxh3_128_hexdigest(memory[offset : offset + spec.nbytes]))

    def checksums(self, names: Iterable[str] | None = None, threads: int | None = None) -> dict[str, str]:
        """Checksums of many tensors (default: all), in threads: hashing leaves the interpreter lock."""
        wanted = list(self.names() if names is None else names)
        with ThreadPoolExecutor(threads or min(8, len(os.sched_getaffinity(0)))) as pool:
            return dict(zip(wanted, pool.map(self.checksum, wanted), strict=True))

    def sync(self) -> None:
        """Return once data and metadata are durable.

        Raises:
            InfrastructureError: the disk refused.
        """
        try:
            self._map.flush()
            os.fsync(self._descriptor)
        except OSError as error:
            raise InfrastructureError(f"cannot make {self.path} durable: {error.strerror}") from error

    def close(self) -> None:
        """Give up the file; its memory is unmapped when the last view is gone. Repeated: nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._bytes = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- manifests -----------------------------------------------------------------------------------------------------------------------


def manifest_checksum(tensors: Iterable[TensorEntry]) -> str:
    """Identity of a set of weights: xxh3-128 over its sorted lines `name dtype shape checksum` (`Manifest.checksum`)."""
    lines = sorted(f"{t.name} {t.dtype} {'x'.join(map(str, t.shape))} {t.checksum}\n" for t in tensors)
    return str(xxhash.xxh3_128_hexdigest("".join(lines).encode()))


def tensor_entries(file: TensorFile, checksums: Mapping[str, str], node: str) -> tuple[TensorEntry, ...]:
    """Manifest entries of a file that holds whole tensors; `checksums` are what `write` or `checksums` returned."""
    return tuple(
        TensorEntry(
            name=spec.name,
            dtype=NAMES[spec.dtype],
            shape=spec.shape,
            shards=(Shard(node=node, segment=file.path.name, offset=file.offset(spec.name), bytes=spec.nbytes, start=0, rows=_rows(spec)),),
            checksum=checksums[spec.name],
        )
        for spec in file.specs
    )


def verify_manifest(manifest: Manifest, file: TensorFile, contents: bool = True) -> None:
    """Check that `file` holds exactly the weights that `manifest` describes; `contents=False` leaves out reading the tensors.

    Raises:
        WeightsRefused: a tensor is missing, doubled, unknown, of another element type or shape, or elsewhere; the file is of another
            version or half written; the manifest's checksum or a tensor's does not fit.
    """
    found = file.metadata.get("version", "")
    if found != str(manifest.version):
        state = f"holds version {found}" if found else "is half written"
        raise WeightsRefused(f"{file.path} {state}, the manifest is of version {manifest.version}: export again")
    if manifest_checksum(manifest.tensors) != manifest.checksum:
        raise WeightsRefused(f"the checksum of the manifest of version {manifest.version} is not that of its tensors: export again")
    problems = list(_layout_problems(manifest, file))
    if not problems and contents:
        actual = file.checksums(t.name for t in manifest.tensors)
        problems = [f"{t.name}: checksum {actual[t.name]}, not {t.checksum}" for t in manifest.tensors if actual[t.name] != t.checksum]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsRefused(f"{file.path} is not version {manifest.version}: {'; '.join(problems[:3])}{more}; export again")


def _layout_problems(manifest: Manifest, file: TensorFile) -> Iterator[str]:
    counts = Counter(t.name for t in manifest.tensors)
    yield from (f"{name} stands {count} times in the manifest" for name, count in counts.items() if count > 1)
    yield from (f"{name} is not in the manifest" for name in file.names() if name not in counts)
    for entry in manifest.tensors:
        if entry.name not in file:
            yield f"{entry.name} is missing"
            continue
        spec = file.spec(entry.name)
        if (NAMES[spec.dtype], spec.shape) != (entry.dtype, entry.shape):
            yield f"{entry.name} is {NAMES[spec.dtype]} {list(spec.shape)}, not {entry.dtype} {list(entry.shape)}"
        elif not _covered(entry, file):
            yield f"{entry.name} is not covered by its shards"


def _covered(entry: TensorEntry, file: TensorFile) -> bool:
    """The shards are contiguous row ranges of the whole tensor, and those of this file lie where the file has them."""
    spec = file.spec(entry.name)
    row_bytes = spec.nbytes // max(1, _rows(spec))
    at = 0
    for shard in sorted(entry.shards, key=lambda s: s.start):
        here = shard.segment != file.path.name or shard.offset == file.offset(entry.name) + shard.start * row_bytes
        if shard.start != at or shard.bytes != shard.rows * row_bytes or not here:
            return False
        at += shard.rows
    return at == _rows(spec)


def _rows(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.shape else 1


# --- the file itself -----------------------------------------------------------------------------------------------------------------


def human_size(count: int) -> str:
    """`1.5 GiB`, for messages."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _header_text(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for spec in specs:
        table[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    return json.dumps(table, separators=(",", ":")).encode()


def _parse_header(path: Path, memory: mmap.mmap, size: int) -> _Header:
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
    header = _Header(specs, offsets, metadata, start)
    if header.file_size != size or any(offset % spec.dtype.itemsize for spec, offset in zip(specs, offsets, strict=True)):
        raise ConfigurationError(f"{path} is cut short or not aligned: {human_size(size)}, its tensors need {human_size(header.file_size)}")
    return header


def _open_same_layout(path: Path, specs: tuple[TensorSpec, ...]) -> int | None:
    """Descriptor of the existing file if it has this layout and room for metadata, else None."""
    if not path.exists():
        return None
    try:
        with TensorFile.open(path, writable=True) as file:
            same = file.specs == specs and file.data_start % PAGE == 0
            return os.dup(file._descriptor) if same else None
    except ConfigurationError:
        return None  # whatever it is, it is not an arena of this layout: it gets replaced


def _allocate(path: Path, specs: tuple[TensorSpec, ...], metadata: Mapping[str, str]) -> int:
    """Descriptor of a new file with its space reserved and its header written, moved to `path` when complete."""
    text = _header_text(specs, metadata)
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
        _reserve(path, descriptor, need)
        os.pwrite(descriptor, (start - 8).to_bytes(8, "little") + text.ljust(start - 8), 0)
        os.rename(draft, path)
    except BaseException:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return descriptor


def _reserve(path: Path, descriptor: int, need: int) -> None:
    """Allocate every page now: a write to a full shared-memory folder later would be a bus error, which nobody can catch."""
    try:
        status = os.fstatvfs(descriptor)
        if need > status.f_bavail * status.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, need)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InfrastructureError(f"cannot allocate {human_size(need)} for {path}: {error.strerror}") from error
        status = os.fstatvfs(descriptor)
        remedy = (
            "raise the size of the shared-memory volume (`mount -o remount,size=...` on /dev/shm, `sizeLimit` of the emptyDir)"
            if str(path).startswith("/dev/shm")
            else "free space there or choose another folder"
        )
        free = human_size(status.f_bavail * status.f_frsize)
        raise ConfigurationError(f"{path} needs {human_size(need)}, {path.parent} has {free} free: {remedy}") from error
