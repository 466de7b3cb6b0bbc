"""A memory-mapped safetensors file: the weight arena in shared memory, and the checkpoint on disk.

An arena is written in place, version after version, because fresh shared-memory pages cost 20 to 40 times as much as warm ones. Two
rules make that safe. An inode never changes its layout: another layout is another inode (`create` replaces the file atomically). And a
version counts only while its number stands in the metadata: a writer calls `create(path, specs, {})`, writes, then
`set_metadata({"version": ...})`, so that a reader of a half-written arena finds no version and refuses it.

An engine may read weights where they lie. It then holds the file (`hold`), and nobody can write it before the engine lets go or ends:
otherwise it would go on under its old version with new weights.
"""

import ctypes
import math
import mmap
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
import xxhash

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.hold import give_back, held, take
from rljob.checkpoint_engine.layout import DTYPES, NAMES, PAGE, TensorSpec, allocate, header_text, parse_header
from rljob.checkpoint_engine.space import human_size
from rljob.wire.pieces import part_bytes, wrong_parts
from rljob.wire.weights import Manifest, Shard, TensorEntry, WeightsRefused

__all__ = [
    "DTYPES", "NAMES", "Sums", "TensorFile", "TensorSpec", "WeightsRefused", "converted_there", "human_size", "manifest_checksum",
    "tensor_entries", "thread_count", "verify_manifest",
]  # fmt: skip
CHUNK = 1 << 19
"""Bytes that are copied before they are hashed: few enough that the hash still finds them in a core's own cache (1 MiB or more)."""

Sums = tuple[str, ...]
"""xxh3-128 of a tensor, hex, and of each of its parts if it is cut in parts (`TensorEntry.checksum`, `TensorEntry.parts`)."""


class TensorFile:
    """Named tensors in one mapped file that any safetensors reader opens."""

    def __init__(self, path: Path, descriptor: int, writable: bool, on_disk: bool = False) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._on_disk = on_disk
        self._descriptor = descriptor
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, protection)
        header = parse_header(path, self._map, len(self._map))
        self.specs: tuple[TensorSpec, ...] = header.specs
        self._places = {spec.name: (offset, spec) for spec, offset in zip(header.specs, header.offsets, strict=True)}
        self._data_start = header.size
        self._part = None if on_disk else part_bytes(self.nbytes)
        with warnings.catch_warnings():
            # torch has no read-only tensors; nothing here writes through a read-only mapping (it would be a segmentation fault).
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def create(cls, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str], on_disk: bool = False) -> Self:
        """A writable file of this layout; an existing one of the same layout is kept (its data too, its metadata is replaced).

        Tensors lie in the order of `specs`, wider element types first, so that every tensor is aligned to its element size without
        holes, which safetensors forbids.

        Args:
            on_disk: `write` goes through write(2). A fresh page of a file on disk costs a fault when it is written through a mapping, which
                made a checkpoint of 513 MiB take 1.3 s instead of 0.4; the warm pages of an arena are faster through the mapping. No tensor
                is cut in parts: nobody pulls from there.

        Raises:
            ConfigurationError: no space or no permission; the message says how much is needed and free.
        """
        ordered = tuple(sorted(specs, key=lambda spec: -spec.dtype.itemsize))
        doubled = [name for name, count in Counter(spec.name for spec in ordered).items() if count > 1]
        if doubled:
            raise ValueError(f"tensor names must be unique; more than once: {', '.join(sorted(doubled))}")
        existing = _open_same_layout(path, ordered)
        if existing is None:
            existing = allocate(path, ordered, metadata)
        file = cls(path, existing, writable=True, on_disk=on_disk)
        file.set_metadata(metadata)
        return file

    @classmethod
    def open(cls, path: Path, writable: bool = False, on_disk: bool = False) -> Self:
        """Map an existing file; `on_disk` as in `create`.

        Raises:
            ConfigurationError: it does not exist, may not be read, or is not a complete safetensors file.
        """
        try:
            descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise ConfigurationError(f"cannot open {path}: {error.strerror}") from error
        try:
            return cls(path, descriptor, writable, on_disk)
        except ValueError as error:  # an empty file cannot be mapped
            os.close(descriptor)
            raise ConfigurationError(f"{path} is not a complete safetensors file: {error}") from error
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata as it is now, also if another process has changed it."""
        return parse_header(self.path, self._map, len(self._map)).metadata

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata in place.

        Raises:
            ValueError: it does not fit into the room left by `create` (4 KiB or twice the first metadata).
            InfrastructureError: an engine holds the file.
        """
        self._refuse_if_held()
        text = header_text(self.specs, metadata)
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

    def write(self, name: str, source: torch.Tensor) -> Sums:
        """Copy `source` (converted to the file's element type) into the file and return the checksums of what was written.

        Copying and hashing go chunk by chunk, so that the bytes are read from memory once. Both leave the interpreter lock.

        Args:
            source: same shape as the tensor, or its first dimension in two: rows that lie in groups, with something else between them.

        Raises:
            InfrastructureError: an engine holds the file.
        """
        self._refuse_if_held()
        offset, spec = self._places[name]
        if spec.shape not in (tuple(source.shape), (math.prod(source.shape[:2]), *source.shape[2:])):
            raise ValueError(f"tensor {name} has shape {list(source.shape)}, {self.path} holds {list(spec.shape)}")
        digest = self._digest(spec)
        for block in _blocks(converted_there(source.detach(), spec.dtype)):
            flat = block.view(-1)
            if self._on_disk:
                self._write_out(offset, flat.to("cpu", spec.dtype), digest)
            else:
                self._copy(offset, flat, spec.dtype, digest)
            offset += flat.numel() * spec.dtype.itemsize
        return digest.sums()

    def _copy(self, offset: int, flat: torch.Tensor, dtype: torch.dtype, digest: "_Digest") -> None:
        """Write through the mapping at `offset`, and hash what stands there."""
        target = self._bytes[offset : offset + flat.numel() * dtype.itemsize].view(dtype)
        copy = _memmove if flat.device.type == "cpu" and flat.dtype == dtype else torch.Tensor.copy_
        step = CHUNK // dtype.itemsize if flat.device.type == "cpu" else max(1, flat.numel())
        with memoryview(self._map) as memory:
            for start in range(0, flat.numel(), step):
                end = min(start + step, flat.numel())
                copy(target[start:end], flat[start:end])
                digest.update(memory[offset + start * dtype.itemsize : offset + end * dtype.itemsize])

    def _write_out(self, offset: int, flat: torch.Tensor, digest: "_Digest") -> None:
        """Write through write(2) at `offset`, and hash what was handed over."""
        # Not through numpy: torch never again resizes a storage that numpy has seen, and the trainer's are resized when they are offloaded.
        contents = memoryview((ctypes.c_ubyte * flat.nbytes).from_address(flat.data_ptr())).cast("B")
        for start in range(0, len(contents), CHUNK):
            chunk = contents[start : start + CHUNK]
            digest.update(chunk)
            while chunk:
                try:
                    written = os.pwrite(self._descriptor, chunk, offset)
                except OSError as error:
                    raise InfrastructureError(f"cannot write {self.path}: {error.strerror}") from error
                offset, chunk = offset + written, chunk[written:]

    def write_all(self, tensors: Mapping[str, torch.Tensor], threads: int | None = None) -> dict[str, Sums]:
        """`write` of many tensors in threads: two reach the memory's bandwidth, one does not."""
        order = sorted(tensors, key=lambda name: -tensors[name].nbytes)  # the longest first, so that threads end together
        with ThreadPoolExecutor(threads or thread_count()) as pool:
            return dict(zip(order, pool.map(lambda name: self.write(name, tensors[name]), order), strict=True))

    def sums(self, names: Iterable[str] | None = None, threads: int | None = None) -> dict[str, Sums]:
        """What `write` returned for tensors (default: all) that are as they were then; read in threads."""
        return self._by_name(self._sums, names, threads)

    def _sums(self, name: str) -> Sums:
        offset, spec = self._places[name]
        digest = self._digest(spec)
        with memoryview(self._map) as memory:
            digest.update(memory[offset : offset + spec.nbytes])
        return digest.sums()

    def _digest(self, spec: TensorSpec) -> "_Digest":
        return _Digest(self._part if self._part is not None and spec.nbytes > self._part else None)

    def checksum(self, name: str) -> str:
        """xxh3-128 of the tensor's bytes, hex."""
        offset, spec = self._places[name]
        with memoryview(self._map) as memory:
            return str(xxhash.xxh3_128_hexdigest(memory[offset : offset + spec.nbytes]))

    def checksums(self, names: Iterable[str] | None = None, threads: int | None = None) -> dict[str, str]:
        """Checksums of many tensors (default: all), in threads: hashing leaves the interpreter lock."""
        return self._by_name(self.checksum, names, threads)

    def _by_name[T](self, read: Callable[[str], T], names: Iterable[str] | None, threads: int | None) -> dict[str, T]:
        wanted = list(self.names() if names is None else names)
        order = sorted(wanted, key=lambda name: -self.spec(name).nbytes)
        with ThreadPoolExecutor(threads or thread_count()) as pool:
            return dict(zip(order, pool.map(read, order), strict=True))

    def hold(self) -> None:
        """From now on nobody can write this file through a TensorFile, until `release`, `close` or the end of this process."""
        take(self._descriptor)

    def release(self) -> None:
        """Undo `hold`; repeated: nothing."""
        give_back(self._descriptor)

    def _refuse_if_held(self) -> None:
        if held(self._descriptor):
            raise InfrastructureError(f"{self.path} is in use: an engine serves from it; stop the engine before writing the next version")

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
            self.release()  # the mapping keeps the open file, and with it the lock
            os.close(self._descriptor)
            self._descriptor = -1
            self._bytes = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Digest:
    """Checksums of a tensor and of its parts, in one pass: each chunk is hashed for both while a core's own cache has it."""

    def __init__(self, part: int | None) -> None:
        """`part`: bytes of a part; None: it is not cut."""
        self._part, self._left = part, 0
        self._whole, self._parts = xxhash.xxh3_128(), list[xxhash.xxh3_128]()

    def update(self, data: memoryview) -> None:
        """What comes next."""
        if self._part is None:
            self._whole.update(data)
            return
        while data:
            if not self._left:
                self._parts.append(xxhash.xxh3_128())
                self._left = self._part
            chunk, data = data[: min(CHUNK, self._left)], data[min(CHUNK, self._left) :]
            self._whole.update(chunk)
            self._parts[-1].update(chunk)
            self._left -= len(chunk)

    def sums(self) -> Sums:
        """Of all that came."""
        return tuple(str(digest.hexdigest()) for digest in (self._whole, *self._parts))


def converted_there(source: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of an accelerator in `dtype`, converted on it, so that only as many bytes travel: left to itself, a blocking copy takes the
    numbers as they are and converts them on CPU (copy_kernel_cuda in aten/src/ATen/native/cuda/Copy.cu). One of main memory as it is."""
    return source if source.device.type == "cpu" else source.to(dtype)


def thread_count() -> int:
    """Threads that write or read a file together: so many tensors are under way at a time."""
    return min(8, len(os.sched_getaffinity(0)))


def _blocks(source: torch.Tensor) -> Sequence[torch.Tensor]:
    """The tensor as contiguous tensors one after the other, on CPU without a copy where its groups of rows are whole: torch's own copy
    works in threads that wait for each other, which takes ten times as long whenever another process is on their cores."""
    if not source.is_contiguous() and source.device.type == "cpu" and source.dim() > 1 and source[0].is_contiguous():
        return source.unbind(0)
    return (source.contiguous(),)


def _memmove(target: torch.Tensor, source: torch.Tensor) -> None:
    """Equal types on CPU: one thread, without the interpreter lock; torch's copy would start threads of its own in each of ours."""
    ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)


# --- manifests -----------------------------------------------------------------------------------------------------------------------


def manifest_checksum(tensors: Iterable[TensorEntry]) -> str:
    """Identity of a set of weights: xxh3-128 over its sorted lines `name dtype shape checksum` (`Manifest.checksum`)."""
    lines = sorted(f"{t.name} {t.dtype} {'x'.join(map(str, t.shape))} {t.checksum}\n" for t in tensors)
    return str(xxhash.xxh3_128_hexdigest("".join(lines).encode()))


def tensor_entries(file: TensorFile, sums: Mapping[str, Sums], node: str | Mapping[str, str]) -> tuple[TensorEntry, ...]:
    """Manifest entries of a file that holds whole tensors; `sums` are what `write` or `sums` returned.

    `node`: who holds them, or who holds which.
    """

    def shard(spec: TensorSpec) -> Shard:
        holder = node if isinstance(node, str) else node[spec.name]
        return Shard(node=holder, segment=file.path.name, offset=file.offset(spec.name), bytes=spec.nbytes, start=0, rows=_rows(spec))

    def entry(spec: TensorSpec) -> TensorEntry:
        checksum, *parts = sums[spec.name]
        return TensorEntry(
            name=spec.name, dtype=NAMES[spec.dtype], shape=spec.shape, shards=(shard(spec),), checksum=checksum, parts=tuple(parts)
        )

    return tuple(entry(spec) for spec in file.specs)


def verify_manifest(manifest: Manifest, file: TensorFile, contents: bool = True, part: bool = False) -> None:
    """Check that `file` holds exactly the weights that `manifest` describes; `contents=False` leaves out reading the tensors.

    `part`: the file has the manifest's layout, but is no version yet.

    Raises:
        WeightsRefused: a tensor is missing, doubled, unknown, of another element type or shape, or elsewhere; the file is of another
            version or half written; the manifest's checksum or a tensor's does not fit.
    """
    found = file.metadata.get("version", "")
    if found != str(manifest.version) and not part:
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
    counts, total = Counter(t.name for t in manifest.tensors), file.nbytes
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
        elif wrong := wrong_parts(entry, spec.nbytes, total):
            yield wrong


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
