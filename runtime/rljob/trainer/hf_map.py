"""The one map between Megatron's parameters and Hugging Face tensors, for both directions and for optimizer state.

A Piece pairs a view of what this rank holds of a parameter with the region of the Hugging Face tensor that it is. Copying one onto the
other loads, copying the other way exports; tensors shaped like the parameter (gradients, Adam's moments, fp32 masters) go the same way.
Names are Megatron-core 0.19's local layer spec on one side, transformers' LlamaForCausalLM / Qwen2ForCausalLM on the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from rljob.trainer.architecture import Architecture

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
    replicated: bool = False
    """Every tensor parallel rank holds the same; the first one writes."""

    def of(self, local: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """(view of this rank's tensor, view of the whole Hugging Face tensor), of one shape: copy either onto the other."""
        mine = self.view(local)
        return mine, whole[self.region].view(mine.shape)

    @property
    def whole(self) -> bool:
        """This rank holds all of it."""
        return all(part.indices(size) == (0, size, 1) for part, size in zip(self.region, self.shape, strict=True))


def pieces(a: Architecture, rank: int, size: int) -> Iterator[Piece]:
    """What tensor parallel rank `rank` of `size` holds of the model; query, key, value and gate, up stand next to each other."""
    yield _rows("model.embed_tokens.weight", (a.vocabulary, a.hidden), "embedding.word_embeddings.weight", rank, size)
    for i in range(a.layers):
        yield from _layer(a, rank, size, f"model.layers.{i}.", f"decoder.layers.{i}.")
    yield _same("model.norm.weight", a, "decoder.final_layernorm.weight")
    if a.scored:
        yield Piece("score.weight", (1, a.hidden), "score.weight", (ALL, ALL), _identity, replicated=True)
    if not a.tied:
        yield _rows("lm_head.weight", (a.vocabulary, a.hidden), "output_layer.weight", rank, size)


def padded_vocabulary(a: Architecture, size: int) -> int:
    """Rows of the embedding in Megatron: the vocabulary rounded up to a multiple of the ranks that share it."""
    return -(-a.vocabulary // size) * size


def _layer(a: Architecture, rank: int, size: int, hf: str, megatron: str) -> Iterator[Piece]:
    yield _same(f"{hf}input_layernorm.weight", a, f"{megatron}input_layernorm.weight")
    yield from _qkv(a, rank, size, hf, megatron, "weight", (a.hidden,))
    if a.qkv_bias:
        yield from _qkv(a, rank, size, hf, megatron, "bias", ())
    yield _columns(
        f"{hf}self_attn.o_proj.weight", (a.hidden, a.heads * a.head_size), f"{megatron}self_attention.linear_proj.weight", rank, size
    )
    yield _same(f"{hf}post_attention_layernorm.weight", a, f"{megatron}pre_mlp_layernorm.weight")
    yield from _gate_up(a, rank, size, hf, megatron)
    yield _columns(f"{hf}mlp.down_proj.weight", (a.hidden, a.ffn), f"{megatron}mlp.linear_fc2.weight", rank, size)


def _qkv(a: Architecture, rank: int, size: int, hf: str, megatron: str, kind: str, tail: tuple[int, ...]) -> Iterator[Piece]:
    """Megatron's rows are, for each kv head: its query heads, the key head, the value head."""
    groups, per_group = a.kv_heads // size, a.heads // a.kv_heads * a.head_size
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
        )


def _gate_up(a: Architecture, rank: int, size: int, hf: str, megatron: str) -> Iterator[Piece]:
    """Megatron's rows are this rank's gate rows, then its up rows."""
    height = a.ffn // size
    for name, start in (("gate", 0), ("up", height)):

        def view(t: Tensor, start: int = start) -> Tensor:
            return t[start : start + height]

        region = (slice(rank * height, (rank + 1) * height), ALL)
        yield Piece(f"{hf}mlp.{name}_proj.weight", (a.ffn, a.hidden), f"{megatron}mlp.linear_fc1.weight", region, view)


def _rows(name: str, shape: tuple[int, int], parameter: str, rank: int, size: int) -> Piece:
    """Split by rows; the last ranks' rows beyond the vocabulary are padding and belong to no tensor."""
    height = -(-shape[0] // size)
    start, end = min(shape[0], rank * height), min(shape[0], (rank + 1) * height)
    return Piece(name, shape, parameter, (slice(start, end), ALL), lambda t: t[: end - start])


def _columns(name: str, shape: tuple[int, int], parameter: str, rank: int, size: int) -> Piece:
    width = shape[1] // size
    return Piece(name, shape, parameter, (ALL, slice(rank * width, (rank + 1) * width)), _identity)


def _same(name: str, a: Architecture, parameter: str) -> Piece:
    return Piece(name, (a.hidden,), parameter, (ALL,), _identity, replicated=True)


def _identity(t: Tensor) -> Tensor:
    return t
