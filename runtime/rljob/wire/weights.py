"""The manifest of one version of the weights.

A version is an integer: 0 is the starting model, each training task makes the next one. A version is identified by its number *and*
its checksum; nothing is loaded, routed to or committed on the number alone.
"""

from rljob.api import InfrastructureError
from rljob.wire.base import Message


class WeightsRefused(InfrastructureError):
    """A set of weights is not the one that its manifest describes; it must not be served."""


class Shard(Message):
    """A piece of one tensor, somewhere."""

    node: str
    """Node that holds it."""
    segment: str
    """Memory segment on that node: file name of the arena below the node's shared-memory folder."""
    offset: int
    """First byte within the segment."""
    bytes: int
    """Length in bytes."""
    start: int
    """First row (index into dimension 0) of the tensor that this piece holds; pieces are contiguous row ranges."""
    rows: int
    """Number of rows; a tensor without dimensions counts one."""


class TensorEntry(Message):
    """One tensor by its Hugging Face name."""

    name: str
    dtype: str
    """safetensors name: `F32`, `BF16`, `F16`."""
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]
    checksum: str
    """xxh3-128 of the whole tensor's bytes, hex."""
    parts: tuple[str, ...] = ()
    """The same of each part of a tensor that is so long that other nodes get it in parts (`rljob.wire.pieces.part_bytes`); else empty."""


class Canary(Message):
    """A fixed token sequence and what the trainer's policy says of it, so that an engine can prove that it holds these weights."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of tokens[1:], each given what stands before it, by the trainer's own forward pass."""
    tolerance: float
    """Largest mean absolute difference per token that still counts as the same policy."""


class Manifest(Message):
    """All tensors of one version."""

    version: int
    dtype: str
    tensors: tuple[TensorEntry, ...]
    checksum: str
    """xxh3-128 over the sorted lines `name dtype shape checksum`, hex: the identity of the version's weights."""
    canary: Canary
