"""A version on its way into this node: a file in shared memory that fills up piece by piece, and becomes the arena when it is whole.

It lies beside the arena, so that the version before stays as it is meanwhile, and gets the layout that the manifest describes, byte for
byte: the engine finds every tensor where the manifest says, and other nodes can pull from here in turn. When it is whole, the two files
change names, and the next version is written where the one before lay: fresh pages of shared memory are 20 to 40 times as slow.

Its metadata says what it is a draft of. An agent that was killed finds out by the checksums which pieces are there, and goes on.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.hold import held
from rljob.checkpoint_engine.outcome import ArenaHeld
from rljob.checkpoint_engine.space import reserve
from rljob.wire.pieces import Piece, cut_of, pieces
from rljob.wire.weights import Manifest

METADATA = b'{"__metadata__":'


def part_of(manifest: Manifest) -> dict[str, str]:
    """Metadata of a file that has some of a version: what is being pulled, or what the ranks of one node of several have exported."""
    return {"pulling": f"{manifest.version}:{manifest.checksum}"}


def version_of(manifest: Manifest) -> dict[str, str]:
    """Metadata of a file that is a version."""
    return {"version": str(manifest.version), "checksum": manifest.checksum}


def draft_path(arena: Path) -> Path:
    """Where the next version of an arena is put together."""
    return arena.with_name(f"{arena.stem}.next{arena.suffix}")


def aside_path(arena: Path) -> Path:
    """Where the version before lies between two renames (`Draft.become`); what an agent that was killed there leaves behind."""
    return arena.with_name(f"{arena.stem}.before{arena.suffix}")


def take_back(arena: Path) -> None:
    """Have the version before lie where the next one is put together, if an agent that was killed has left it between the two."""
    draft, aside = draft_path(arena), aside_path(arena)
    if aside.exists() and not draft.exists():
        os.rename(aside, draft)


def read_metadata(descriptor: int) -> dict[str, str]:
    """Metadata of an arena or a draft; empty if it has none, or is no such file. Reads the first 4 KiB only: it stands first."""
    text = os.pread(descriptor, 4096, 8)
    if not text.startswith(METADATA):
        return {}
    try:
        found, _ = json.JSONDecoder().raw_decode(text.decode(errors="replace"), len(METADATA))
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def is_laid_out_as(path: Path, manifest: Manifest) -> bool:
    """Whether the file has exactly the tensors that the manifest names, each once and where it says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(length))
    found.pop("__metadata__", None)
    return len(manifest.tensors) == len(found) and found == _table(manifest, 8 + length)


def _table(manifest: Manifest, start: int) -> dict[str, Any]:
    """What a safetensors header says of these tensors, in order, if their bytes begin at `start`."""
    table: dict[str, Any] = {}
    for tensor in sorted(manifest.tensors, key=lambda t: (t.shards[0].offset, t.shards[0].bytes)):
        begin = tensor.shards[0].offset - start
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.shards[0].bytes]}
    return table


class Draft:
    """The file; made by `Draft.of`."""

    def __init__(self, path: Path, descriptor: int, manifest: Manifest) -> None:
        """Use `of`."""
        self.path, self.manifest = path, manifest
        self.descriptor = descriptor
        self.pieces: tuple[Piece, ...] = pieces(manifest)
        self.cut = cut_of(self.pieces)
        self._start = self.pieces[0].offset
        self._map = mmap.mmap(descriptor, self.pieces[-1].offset + self.pieces[-1].bytes)
        self.have = 0
        """Bit mask of the pieces that are here and checked."""

    @classmethod
    def of(cls, path: Path, manifest: Manifest) -> "Draft":
        """The draft of this version at `path`, with the pieces that an earlier try left there.

        Raises:
            ConfigurationError: no space or no permission.
            ArenaHeld: an engine reads the file.
            InfrastructureError: the version cannot be pulled.
        """
        found = pieces(manifest)
        size = found[-1].offset + found[-1].bytes
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot create {path}: {error.strerror}; check that the folder exists and may be written") from error
        try:
            if held(descriptor):
                raise ArenaHeld(f"{path} is in use: an engine serves from it; the next version waits for its end")
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, 0)
                reserve(path, descriptor, size)
            draft = cls(path, descriptor, manifest)
            label = part_of(manifest)
            if read_metadata(descriptor) == label:
                draft.have = sum(1 << i for i in range(len(found)) if draft.checks(i))
            draft._write_header(label)
        except BaseException:
            os.close(descriptor)
            raise
        return draft

    @property
    def missing(self) -> int:
        """Bit mask of the pieces that are not here yet."""
        return ((1 << len(self.pieces)) - 1) & ~self.have

    def memory(self) -> memoryview:
        """All of it."""
        return memoryview(self._map)

    def room(self, piece: int) -> memoryview:
        """Where a piece belongs."""
        where = self.pieces[piece]
        return memoryview(self._map)[where.offset : where.offset + where.bytes]

    def checks(self, piece: int) -> bool:
        """Whether the bytes that lie there are the piece's."""
        with memoryview(self._map) as memory:
            return all(
                xxhash.xxh3_128_hexdigest(memory[part.offset : part.offset + part.bytes]) == part.checksum
                for part in self.pieces[piece].parts
            )

    def complete(self) -> None:
        """Be a version from now on.

        Raises:
            InfrastructureError: pieces are missing.
        """
        if self.missing:
            raise InfrastructureError(
                f"{self.missing.bit_count()} of {len(self.pieces)} pieces of version {self.manifest.version} are missing"
            )
        self._write_header(version_of(self.manifest))

    def become(self, arena: Path) -> None:
        """Be the arena from now on; the file that was the arena is where the next draft will be.

        Raises:
            InfrastructureError: pieces are missing.
        """
        self.complete()
        aside = aside_path(arena)
        if arena.exists():
            os.rename(arena, aside)
        os.rename(self.path, arena)
        if aside.exists():
            os.rename(aside, self.path)

    def close(self) -> None:
        """Give up the file; its memory is unmapped when the last view is gone. Repeated: nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _write_header(self, metadata: Mapping[str, str]) -> None:
        table = {"__metadata__": dict(metadata)} | _table(self.manifest, self._start)
        text = json.dumps(table, separators=(",", ":")).encode()
        room = self._start - 8
        if len(text) > room:
            raise InfrastructureError(
                f"the header of version {self.manifest.version} takes {len(text)} bytes, its first tensor leaves {room}"
            )
        self._map[: self._start] = struct.pack("<Q", room) + text.ljust(room)
