"""The one map between Megatron's parameters and Hugging Face tensors, for both directions and for optimizer state.

A Piece pairs a view of what this rank holds of a parameter with the region of the Hugging Face tensor that it is. Copying one onto the
other loads, copying the other way exports; tensors shaped like the parameter (gradients, Adam's moments, fp32 masters) go the same way.
Names are Megatron-core 0.19's local layer spec on one side and Hugging Face's on the other; where families differ in these, their file in
rljob.api.families says how.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from rljob.api.families import Architecture, Experts, FeedForward, Mixture, families
from rljob.trainer.place import Place, chunk_prefix

View = Callable[[Tensor], Tensor]
Region = tuple[slice, ...]
ALL = slice(None)


@dataclass(frozen=True)
class Piece:
    """What one rank holds of one Hugging Face tensor."""

    name: str
    """Hugging Face name."""
    shape: tuple[int, ...]
    """Shape of the whole Hugging Face tensor."""
    parameter: str
    """Megatron's name."""
    region: Region
    """Part of the Hugging Face tensor."""
    view: View
    """The same numbers in a tensor shaped like this rank's parameter; as a view, so that it can be written to."""
    writes: bool
    """Of the ranks of its node that hold the same this is the one that writes it."""

    def of(self, local: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """(view of this rank's tensor, view of the whole Hugging Face tensor), of one shape: copy either onto the other."""
        mine = self.view(local)
        return mine, whole[self.region].view(mine.shape)

    @property
    def whole(self) -> bool:
        """This rank holds all of it."""
        return all(part.indices(size) == (0, size, 1) for part, size in zip(self.region, self.shape, strict=True))


def pieces(a: Architecture, place: Place) -> Iterator[Piece]:
    """What the rank at `place` holds of the model; query, key, value and gate, up stand next to each other.

    If the output layer is the embedding, the last of several stages holds a copy of it, which it reads but never writes.
    """
    embedding = ("model.embed_tokens.weight", (a.vocabulary, a.hidden))
    count = len(place.chunks)
    first, last = chunk_prefix(0, count), chunk_prefix(count - 1, count)
    if place.first:
        yield _rows(*embedding, f"{first}embedding.word_embeddings.weight", place)
    for chunk, layers in enumerate(place.chunks):
        for number, i in enumerate(layers):
            yield from _layer(a, place, f"model.layers.{i}.", f"{chunk_prefix(chunk, count)}decoder.layers.{number}.")
    if place.last:
        yield _same("model.norm.weight", (a.hidden,), f"{last}decoder.final_layernorm.weight", place)
    if place.last and a.scored:
        yield _same("score.weight", (1, a.hidden), f"{last}score.weight", place)
    if place.last and not a.tied:
        yield _rows("lm_head.weight", (a.vocabulary, a.hidden), f"{last}output_layer.weight", place)
    if place.last and a.tied and not place.first:
        yield replace(_rows(*embedding, f"{last}output_layer.weight", place), writes=False)


def padded_vocabulary(a: Architecture, size: int) -> int:
    """Rows of the embedding in Megatron: the vocabulary rounded up to a multiple of the ranks that share it."""
    return -(-a.vocabulary // size) * size


def _layer(a: Architecture, place: Place, hf: str, megatron: str) -> Iterator[Piece]:
    attention = f"{megatron}self_attention."
    yield _same(f"{hf}input_layernorm.weight", (a.hidden,), f"{megatron}input_layernorm.weight", place)
    yield from _qkv(a, place, hf, megatron, "weight", (a.hidden,))
    if a.qkv_bias:
        yield from _qkv(a, place, hf, megatron, "bias", ())
    for letter in "qk" if a.qk_norm else "":
        yield _same(f"{hf}self_attn.{letter}_norm.weight", (a.head_size,), f"{attention}{letter}_layernorm.weight", place)
    yield _columns(f"{hf}self_attn.o_proj.weight", (a.hidden, a.heads * a.head_size), f"{attention}linear_proj.weight", place)
    yield _same(f"{hf}post_attention_layernorm.weight", (a.hidden,), f"{megatron}pre_mlp_layernorm.weight", place)
    names = families()[a.family].feed_forward
    if isinstance(names, Mixture):
        if a.experts is not None:
            yield from _mixture(a.hidden, a.experts, names, place, hf, f"{megatron}mlp.")
    else:
        yield from _feed_forward(a.hidden, a.ffn, names, place, hf, f"{megatron}mlp.")


def _mixture(hidden: int, e: Experts, names: Mixture, place: Place, hf: str, megatron: str) -> Iterator[Piece]:
    """The router and a shared expert are on every rank, split as in a dense model; an expert is whole on the ranks that have it."""
    yield _same(f"{hf}{names.router}.weight", (e.count, hidden), f"{megatron}router.weight", place)
    if names.shared is not None:
        yield from _feed_forward(hidden, e.shared_ffn, names.shared, place, hf, f"{megatron}shared_experts.")
    if names.shared_gate is not None:
        yield _same(f"{hf}{names.shared_gate}.weight", (1, hidden), f"{megatron}shared_experts.gate_weight", place)
    count = e.count // place.expert_size
    whole = replace(place, tensor_rank=0, tensor_size=1, copy=place.expert_copy)
    for number in range(count):
        name = hf + names.experts.format(place.expert_rank * count + number)
        yield from _feed_forward(hidden, e.ffn, names.expert, whole, name, f"{megatron}experts.local_experts.{number}.")


def _qkv(a: Architecture, place: Place, hf: str, megatron: str, kind: str, tail: tuple[int, ...]) -> Iterator[Piece]:
    """Megatron's rows are, for each kv head: its query heads, the key head, the value head."""
    rank, groups, per_group = place.tensor_rank, a.kv_heads // place.tensor_size, a.heads // a.kv_heads * a.head_size
    at = 0
    for letter, height in (("q", per_group), ("k", a.head_size), ("v", a.head_size)):
        start, end = at, at + height
        at = end

        def view(t: Tensor, start: int = start, end: int = end) -> Tensor:
            return t.view(groups, per_group + 2 * a.head_size, *tail)[:, start:end]

        yield Piece(
            name=f"{hf}self_attn.{letter}_proj.{kind}",
            shape=(a.kv_heads * height, *tail),
            parameter=f"{megatron}self_attention.linear_qkv.{kind}",
            region=(slice(rank * groups * height, (rank + 1) * groups * height), *(ALL for _ in tail)),
            view=view,
            writes=place.copy == 0,
        )


def _feed_forward(hidden: int, ffn: int, names: FeedForward, place: Place, hf: str, megatron: str) -> Iterator[Piece]:
    """Megatron's rows of the first matrix are this rank's gate rows, then its up rows."""
    rank, height = place.tensor_rank, ffn // place.tensor_size
    for name, start in ((names.gate, 0), (names.up, height)):

        def view(t: Tensor, start: int = start) -> Tensor:
            return t[start : start + height]

        region = (slice(rank * height, (rank + 1) * height), ALL)
        yield Piece(f"{hf}{name}.weight", (ffn, hidden), f"{megatron}linear_fc1.weight", region, view, place.copy == 0)
    yield _columns(f"{hf}{names.down}.weight", (hidden, ffn), f"{megatron}linear_fc2.weight", place)


def _rows(name: str, shape: tuple[int, int], parameter: str, place: Place) -> Piece:
    """Split by rows; the last ranks' rows beyond the vocabulary are padding and belong to no tensor."""
    height = -(-shape[0] // place.tensor_size)
    start, end = (min(shape[0], rank * height) for rank in (place.tensor_rank, place.tensor_rank + 1))
    return Piece(name, shape, parameter, (slice(start, end), ALL), lambda t: t[: end - start], place.copy == 0)


def _columns(name: str, shape: tuple[int, int], parameter: str, place: Place) -> Piece:
    width = shape[1] // place.tensor_size
    region = (ALL, slice(place.tensor_rank * width, (place.tensor_rank + 1) * width))
    return Piece(name, shape, parameter, region, _identity, place.copy == 0)


def _same(name: str, shape: tuple[int, ...], parameter: str, place: Place) -> Piece:
    """Held by every tensor parallel rank; the first one writes."""
    return Piece(name, shape, parameter, tuple(ALL for _ in shape), _identity, place.copy == 0 and place.tensor_rank == 0)


def _identity(t: Tensor) -> Tensor:
    return t
