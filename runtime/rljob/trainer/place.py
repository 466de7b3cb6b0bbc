"""Where in the model a rank stands: which part of every tensor and which layers it holds, and whether it is the one that writes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A rank's coordinates. Groups of ranks are Megatron's; this is what the name map needs to know of them, and it is plain data."""

    layers: range
    """Decoder layers of this pipeline stage, numbered through the whole model. Megatron numbers each stage's layers from 0."""
    first: bool = True
    """The first stage: it holds the embedding."""
    last: bool = True
    """The last stage: it holds the final norm and the output layer."""
    tensor_rank: int = 0
    tensor_size: int = 1
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
        return self.first and self.last and self.tensor_size == self.expert_size == 1


def alone(layers: int) -> Place:
    """The place of a rank that holds a whole model of so many layers."""
    return Place(range(layers))
