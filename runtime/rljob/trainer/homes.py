"""Which node has which tensors, if the trainer's ranks are spread over several: nodes know of each other's names and sums, never bytes.

Tensor parallel ranks share a node, so a tensor that a node has at all lies in that node's arena as a whole. Data parallel copies on several
nodes each write their own arena.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.arena import Sums, TensorFile
from rljob.trainer.build import Replica
from rljob.trainer.hf_map import pieces
from rljob.trainer.place import alone
from rljob.trainer.ranks import Ranks


@dataclass(frozen=True)
class Homes:
    """The tensors of the model on the trainer's nodes."""

    sizes: dict[str, int]
    """Numbers in each tensor, in the order of the name map."""
    held: tuple[frozenset[str], ...]
    """What each node has, in the order of `Ranks.nodes`."""

    def first(self, nodes: Sequence[str]) -> dict[str, str]:
        """For each tensor the first of the nodes that have it."""
        return {name: nodes[self._holders(name)[0]] for name in self.sizes}

    def shared_out(self) -> dict[str, int]:
        """For each tensor one of the nodes that have it, so that each has about as much to write as the others; the same on all ranks."""
        load = [0] * len(self.held)
        found = {}
        for name, size in self.sizes.items():
            found[name] = min(self._holders(name), key=lambda node: load[node])
            load[found[name]] += size
        return found

    def _holders(self, name: str) -> list[int]:
        return [node for node, names in enumerate(self.held) if name in names]


def find_homes(replica: Replica, ranks: Ranks) -> Homes:
    """Who has what; asked of all ranks at once.

    Raises:
        ConfigurationError: a node has only a part of a tensor.
        InfrastructureError: nobody has a tensor.
    """
    whole = {piece.name: math.prod(piece.shape) for piece in pieces(replica.architecture, alone(replica.architecture.layers))}
    if len(ranks.nodes) == 1:
        return Homes(whole, (frozenset(whole),))
    mine: dict[str, int] = {}
    for piece in replica.pieces:
        if piece.writes:
            region = (len(range(*part.indices(size))) for part, size in zip(piece.region, piece.shape, strict=True))
            mine[piece.name] = mine.get(piece.name, 0) + math.prod(region)
    held = []
    for node, parts in enumerate(_by_node(ranks, mine)):
        found: dict[str, int] = {}
        for part in parts:
            for name, size in part.items():
                found[name] = found.get(name, 0) + size
        split = next((name for name, size in found.items() if size != whole[name]), None)
        if split is not None:
            raise ConfigurationError(
                f"tensor {split} lies on {ranks.nodes[node]} in part only; spec.trainer.tensorParallel must divide accelerator.perNode"
            )
        held.append(frozenset(found))
    if lost := whole.keys() - frozenset().union(*held):
        raise InfrastructureError(f"no rank of the trainer holds tensor {min(lost)}")
    return Homes(whole, tuple(held))


def merged[T](ranks: Ranks, mine: Mapping[str, T]) -> dict[str, T]:
    """What each rank knows of its own tensors, put together; plain JSON values."""
    together: dict[str, T] = {}
    for part in ranks.collect(json.dumps(mine).encode()):
        together |= json.loads(part)
    return together


def agreed(ranks: Ranks, file: TensorFile, mine: Mapping[str, Sums], here: Iterable[str]) -> dict[str, Sums]:
    """Checksums of every tensor, on every rank.

    Args:
        file: of this node.
        mine: checksums that this rank knows.
        here: the tensors that the node has in the file; those whose checksum no rank knows, because it holds a part only, are read there.

    Raises:
        InfrastructureError: nodes that hold the same tensor do not hold the same numbers.
    """
    known = {name: sums for part in _by_node(ranks, mine)[ranks.node] for name, sums in part.items()}
    with ranks.together():
        if ranks.leads_node:
            known |= file.sums([name for name in here if name not in known])
    together: dict[str, Sums] = {}
    for node, *_ in _by_node(ranks, known if ranks.leads_node else {}):
        apart = next((name for name, sums in node.items() if together.setdefault(name, tuple(sums)) != tuple(sums)), None)
        if apart is not None:
            raise InfrastructureError(f"the trainer's nodes have come apart: {apart} is not the same on all of them; load a checkpoint")
    return together


def _by_node[T](ranks: Ranks, mine: Mapping[str, T]) -> list[list[dict[str, T]]]:
    """What each rank says, for each node in order of rank."""
    said = [json.loads(part) for part in ranks.collect(json.dumps(mine).encode())]
    return [[part for rank, part in enumerate(said) if not ranks.names or ranks.names[rank] == node] for node in ranks.nodes]
