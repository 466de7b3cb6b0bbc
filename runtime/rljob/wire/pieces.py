"""How a version is cut for its way to other nodes, and what a node and the master say about it.

A piece is a run of tensors that lie one after the other in a segment and that the trainer has on one node; a long tensor is several pieces.
It comes from one source and is checked by the checksums in the manifest before it counts, so that whoever sent a wrong byte is known.
Master and nodes derive the same pieces from the same manifest, and name a set of them by a bit mask (bit i is piece i), written in hex.

`POST {master}/v1/weights/{version}/pull` takes a PullReport and answers with a PullPlan.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from rljob.api import InfrastructureError
from rljob.wire.base import Message
from rljob.wire.weights import Manifest, TensorEntry

COUNT, SMALLEST = 256, 1 << 20
"""A version has about so many pieces, so that nodes soon have something to give and nobody waits for a large one, but a piece may
always have so many bytes."""
HEARTBEAT = 0.5
"""Seconds between two reports of a node that pulls, while nothing ends: so late can others have what is there. Longer where many pull."""


@dataclass(frozen=True)
class Part:
    """One tensor of a piece, or the part of a long one."""

    name: str
    offset: int
    """First byte within the segment."""
    bytes: int
    checksum: str
    """xxh3-128, hex."""
    node: str
    """As in Shard."""


@dataclass(frozen=True)
class Piece:
    """What is fetched and checked as a whole."""

    offset: int
    bytes: int
    parts: tuple[Part, ...]
    node: str
    """Worker node whose trainer holds all of it (`Shard.node`)."""


def pieces(manifest: Manifest) -> tuple[Piece, ...]:
    """The pieces of a version, in the order of the segment.

    Raises:
        InfrastructureError: its tensors do not lie whole and one after the other in one segment, or one has another number of parts.
    """
    total = sum(shard.bytes for tensor in manifest.tensors for shard in tensor.shards)
    parts = sorted((part for tensor in manifest.tensors for part in _parts(tensor, total)), key=lambda part: (part.offset, part.bytes))
    if not parts or len({shard.segment for t in manifest.tensors for shard in t.shards}) != 1:
        raise InfrastructureError(f"version {manifest.version} does not lie in one segment: other nodes cannot pull it")
    target = max(SMALLEST, total // COUNT)
    found: list[Piece] = []
    open_: list[Part] = []
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        open_.append(part)
        end = part.offset + part.bytes
        if following is not None and following.offset != end:
            raise InfrastructureError(
                f"version {manifest.version} has a hole or an overlap between {part.name}, which ends at byte {end}, and {following.name}, "
                f"which begins at {following.offset}"
            )
        size = end - open_[0].offset
        if following is None or size + following.bytes > target or following.node != part.node:
            found.append(Piece(open_[0].offset, size, tuple(open_), part.node))
            open_ = []
    return tuple(found)


def cut_of(found: Sequence[Piece]) -> str:
    """Which pieces a version is cut in: a set of pieces means something only to who has cut it in the same way. One version may be cut in
    several, if it is registered anew by ranks on other nodes, or by a trainer of another release, perhaps in another order."""
    text = "\n".join(f"{piece.offset} {' '.join(part.name for part in piece.parts)}" for piece in found)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def part_bytes(total: int) -> int:
    """How long the parts of a tensor are in a version of `total` bytes, all but the last one: a piece, in whole pages."""
    return -(-max(SMALLEST, total // COUNT) // 4096) * 4096


def wrong_parts(tensor: TensorEntry, bytes_: int, total: int) -> str | None:
    """What is wrong with the number of parts of a tensor of so many bytes. None is right too: manifests that are older have none."""
    wanted = -(-bytes_ // part_bytes(total))
    if not tensor.parts or len(tensor.parts) == wanted > 1:
        return None
    return f"tensor {tensor.name} has {len(tensor.parts)} parts; {bytes_} bytes in a version of {total} are cut in {wanted}"


def _parts(tensor: TensorEntry, total: int) -> list[Part]:
    if len(tensor.shards) != 1:
        raise InfrastructureError(f"{tensor.name} lies in {len(tensor.shards)} shards; other nodes can only pull whole tensors")
    (shard,) = tensor.shards
    if wrong := wrong_parts(tensor, shard.bytes, total):
        raise InfrastructureError(wrong)
    step = part_bytes(total) if tensor.parts else max(1, shard.bytes)
    return [
        Part(tensor.name, shard.offset + at, min(step, shard.bytes - at), checksum, shard.node)
        for at, checksum in zip(range(0, max(1, shard.bytes), step), tensor.parts or (tensor.checksum,), strict=True)
    ]


def mask_of(text: str) -> int:
    """A set of pieces from the wire."""
    return int(text, 16)


def text_of(mask: int) -> str:
    """A set of pieces for the wire."""
    return f"{mask:x}"


def members(mask: int) -> tuple[int, ...]:
    """Numbers of the pieces in a set, rising."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return tuple(found)


def runs(mask: int) -> list[list[int]]:
    """The same, neighbours together."""
    found: list[list[int]] = []
    for piece in members(mask):
        if found and found[-1][-1] == piece - 1:
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


class HeldWeights(Message):
    """A complete version that a node gives to others."""

    version: int
    checksum: str
    url: str
    """Where its weight server is; a node agent that was started again has another."""


class PullLease(Message):
    """Pieces to be fetched from one source over one stream."""

    source: str
    """Base address of the source's weight server, which also names the source."""
    pieces: str


class PullReport(Message):
    """What a node that pulls a version has of it."""

    node: str
    url: str
    """Its own weight server, from which others can have what it has."""
    checksum: str
    cut: str = ""
    """`cut_of` the pieces that are meant; empty in reports of nodes that are older."""
    have: str
    """Pieces that are here and checked."""
    fetching: tuple[PullLease, ...] = ()
    """What is still under way."""
    refused: tuple[str, ...] = ()
    """Sources that this node does not use any more."""


class PullPlan(Message):
    """What to do now."""

    wanted: bool
    """False: no node is to serve this version any more (or not yet); give up."""
    leases: tuple[PullLease, ...] = ()
    """To be fetched besides what is under way."""
    pause: float = HEARTBEAT
    """Seconds until the next report, if nothing that is under way ends before."""
