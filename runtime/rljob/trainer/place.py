"""Where in the model a rank stands: which part of every tensor and which layers it holds, and whether it is the one that writes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A rank's coordinates. Groups of ranks are Megatron's; this is what the name map needs to know of them, and it is plain data."""

    chunks: tuple[range, ...]
    """Decoder layers of each model chunk of this pipeline stage, numbered through the whole model; several if stages are interleaved.
    Megatron numbers each chunk's layers from 0."""
    first: bool = True
    """The first stage: its first chunk holds the embedding."""
    last: bool = True
    """The last stage: its last chunk holds the final norm and the output layer."""
    tensor_rank: int = 0
    tensor_size: int = 1
    context_size: int = 1
    """Ranks that share every row."""
    expert_rank: int = 0
    expert_size: int = 1
    data_rank: int = 0
    """Among the ranks that hold the same weights, experts aside."""
    copy: int = 0
    """Among the ranks of this node that hold the same weights, experts aside: the first one writes them into the node's arena."""
    expert_copy: int = 0
    """Among the ranks of this node that hold the same experts."""

    @property
    def whole(self) -> bool:
        """This rank computes the model without others."""
        return self.first and self.last and self.tensor_size == self.context_size == self.expert_size == 1


def alone(layers: int) -> Place:
    """The place of a rank that holds a whole model of so many layers."""
    return Place((range(layers),))


def chunks(layers: int, stage: int, stages: int, count: int) -> tuple[range, ...]:
    """The layers of a stage's chunks: a row goes through the first chunk of every stage, then through their second ones, and so on."""
    depth = layers // (stages * count)
    return tuple(range((i * stages + stage) * depth, (i * stages + stage + 1) * depth) for i in range(count))


def chunk_prefix(number: int, count: int) -> str:
    """What stands before Megatron's parameter names in a chunk, of which each has its own layer 0; nothing if there is one chunk."""
    return f"chunk{number}." if count > 1 else ""
