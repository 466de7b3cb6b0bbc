"""The name map over all parallel sizes: together, the ranks write every number of every tensor, and each once."""

from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rljob.api.families import Architecture, Experts, Rope, families
from rljob.trainer.hf_map import padded_vocabulary, pieces
from rljob.trainer.place import Place, alone, chunks

LAYERS, HEADS, KV_HEADS = 12, 12, 6
DENSE = ["llama", "qwen2", "qwen3"]


def architecture(tied: bool, family: str, scored: bool = False) -> Architecture:
    kind = families()[family]
    return Architecture(
        family=family, layers=LAYERS, hidden=8, ffn=24, heads=HEADS, kv_heads=KV_HEADS, head_size=2, vocabulary=17, epsilon=1e-5,
        rope=Rope(1e4), tied=tied or scored, qkv_bias=kind.qkv_bias, qk_norm=kind.qk_norm, scored=scored,
    )  # fmt: skip


def on_every_rank(name: str) -> bool:
    """Of the tensor parallel ranks that hold its layer, each holds all of it."""
    return "norm" in name or name == "score.weight"


def places(tensor: int, pipeline: int, data: int, count: int = 1) -> list[Place]:
    return [
        Place(
            chunks(LAYERS, stage, pipeline, count),
            first=stage == 0,
            last=stage == pipeline - 1,
            tensor_rank=rank,
            tensor_size=tensor,
            copy=copy,
        )
        for stage in range(pipeline)
        for copy in range(data)
        for rank in range(tensor)
    ]


@settings(max_examples=25, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 3, 6]),
    stages=st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (12, 1), (2, 2), (2, 3), (2, 6), (3, 2), (3, 4), (4, 3), (6, 2)]),
    data=st.integers(1, 3),
    tied=st.booleans(),
    family=st.sampled_from(DENSE),
    scored=st.booleans(),
)
def test_every_number_is_written_once_and_loaded_by_every_copy(
    tensor: int, stages: tuple[int, int], data: int, tied: bool, family: str, scored: bool
) -> None:
    a, (pipeline, count) = architecture(tied, family, scored), stages
    whole = {piece.name: piece.shape for piece in pieces(a, alone(LAYERS))}
    written = {name: torch.zeros(shape, dtype=torch.long) for name, shape in whole.items()}
    loaded = {name: torch.zeros(shape, dtype=torch.long) for name, shape in whole.items()}
    for place in places(tensor, pipeline, data, count):
        for piece in pieces(a, place):
            assert piece.shape == whole[piece.name]
            loaded[piece.name][piece.region] += 1
            written[piece.name][piece.region] += piece.writes
    assert all((times == 1).all() for times in written.values())
    copy = a.tied and pipeline > 1
    for name, found in loaded.items():
        times = data * (tensor if on_every_rank(name) else 1) * (1 + (copy and "embed" in name))
        assert (found == times).all(), name
    assert sum(name.endswith("_proj.bias") for name in whole) == (3 * LAYERS if family == "qwen2" else 0)
    assert sum(name.endswith(("q_norm.weight", "k_norm.weight")) for name in whole) == (2 * LAYERS if family == "qwen3" else 0)
    assert ("score.weight" in whole, "lm_head.weight" in whole) == (scored, not a.tied)


def test_chunks_of_stages_take_turns_through_the_model() -> None:
    assert [chunks(12, stage, 2, 3) for stage in range(2)] == [
        (range(0, 2), range(4, 6), range(8, 10)),
        (range(2, 4), range(6, 8), range(10, 12)),
    ]


def test_names_of_parameters_tell_chunks_apart() -> None:
    first, last = ([piece.parameter for piece in pieces(architecture(True, "llama"), place)] for place in places(1, 2, 1, 3))
    assert [name for name in first if "embedding" in name] == ["chunk0.embedding.word_embeddings.weight"]
    assert [name for name in last if "final_layernorm" in name or "output" in name] == [
        "chunk2.decoder.final_layernorm.weight",
        "chunk2.output_layer.weight",
    ]
    assert len({name for name in first if "linear_proj" in name}) == LAYERS // 2


MIXTURES = {
    "qwen2_moe": Experts(count=12, active=2, ffn=7, normalised=False, shared_ffn=24),
    "qwen3_moe": Experts(count=12, active=2, ffn=7, normalised=True),
    "mixtral": Experts(count=12, active=2, ffn=7, normalised=True),
}
"""With biases and a shared expert, with norms of queries and keys, with neither."""


@settings(max_examples=25, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 3]),
    pipeline=st.sampled_from([1, 3]),
    data=st.integers(1, 4),
    expert=st.sampled_from([1, 2, 3, 4, 6, 12]),
    family=st.sampled_from(list(MIXTURES)),
)
def test_every_expert_is_written_once_and_is_on_its_ranks_only(tensor: int, pipeline: int, data: int, expert: int, family: str) -> None:
    assume(tensor * data % expert == 0)
    a = replace(architecture(False, family), experts=MIXTURES[family])
    whole = {piece.name: piece.shape for piece in pieces(a, alone(LAYERS))}
    written, loaded = ({name: torch.zeros(shape, dtype=torch.long) for name, shape in whole.items()} for _ in range(2))
    for number, place in enumerate(places(tensor, pipeline, data)):
        among = number % (tensor * data)  # of the ranks that hold these layers; Megatron numbers experts' ranks first
        here = replace(place, expert_rank=among % expert, expert_size=expert, expert_copy=among // expert)
        for piece in pieces(a, here):
            assert piece.shape == whole[piece.name]
            loaded[piece.name][piece.region] += 1
            written[piece.name][piece.region] += piece.writes
    assert all((count == 1).all() for count in written.values())
    assert sum(".experts." in name for name in whole) == LAYERS * 12 * 3
    router = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "shared_expert_gate.weight")
    for name, count in loaded.items():
        times = tensor * data // expert if ".experts." in name else data * (tensor if on_every_rank(name) or name.endswith(router) else 1)
        assert (count == times).all(), name


@pytest.mark.parametrize("place", places(3, 4, 1), ids=lambda p: f"{p.chunks[0].start}-{p.tensor_rank}")
def test_the_pieces_of_a_rank_cover_its_parameters_without_overlap(place: Place) -> None:
    a = architecture(False, "qwen2")
    parts: dict[str, int] = Counter()
    for piece in pieces(a, place):
        parts[piece.parameter] += prod(len(range(*s.indices(n))) for s, n in zip(piece.region, piece.shape, strict=True))
    width = a.head_size * (HEADS + 2 * KV_HEADS) // 3
    assert parts["decoder.layers.0.self_attention.linear_qkv.weight"] == width * a.hidden
    assert parts["decoder.layers.2.self_attention.linear_qkv.bias"] == width
    assert parts["decoder.layers.1.mlp.linear_fc1.weight"] == 2 * a.ffn // 3 * a.hidden
    assert ("decoder.layers.3.input_layernorm.weight" in parts) is False
    rows = padded_vocabulary(a, 3) // 3
    assert parts["embedding.word_embeddings.weight"] <= rows * a.hidden * place.first
    assert ("decoder.final_layernorm.weight" in parts) is place.last
