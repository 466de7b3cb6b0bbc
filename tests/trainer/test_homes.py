"""Who has which tensor, and what nodes that do not agree come to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.test_hf_map import architecture, places

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.arena import TensorFile, TensorSpec
from rljob.trainer.hf_map import pieces
from rljob.trainer.homes import Homes, agreed, find_homes
from rljob.trainer.ranks import Ranks


@dataclass(frozen=True)
class First(Ranks):
    """Rank 0 of two, each on a node of its own; the other one says `other`, whatever it is asked."""

    other: Mapping[str, Any] | None = None

    @property
    def rank(self) -> int:
        return 0

    def collect(self, data: bytes) -> list[bytes]:
        return [data, json.dumps(self.other).encode()]

    def every(self, answer: bool) -> bool:
        return answer


def first(other: Mapping[str, Any]) -> First:
    return First(None, ("worker-0", "worker-1"), other)  # type: ignore[arg-type]


def sizes(place: Any) -> dict[str, int]:
    """What a rank says of its pieces."""
    found: dict[str, int] = {}
    for piece in pieces(architecture(False, "qwen2"), place):
        parts = [len(range(*part.indices(size))) for part, size in zip(piece.region, piece.shape, strict=True)]
        found[piece.name] = torch.Size(parts).numel()
    return found


def replica(place: Any) -> Any:
    a = architecture(False, "qwen2")
    return SimpleNamespace(architecture=a, pieces=tuple(pieces(a, place)))


def test_stages_on_two_nodes_are_at_home_where_they_are() -> None:
    here, there = places(1, 2, 1)
    homes = find_homes(replica(here), first(sizes(there))).first(("worker-0", "worker-1"))
    assert homes["model.embed_tokens.weight"] == homes["model.layers.5.mlp.up_proj.weight"] == "worker-0"
    assert homes["lm_head.weight"] == homes["model.layers.6.mlp.up_proj.weight"] == "worker-1"


def test_tensor_parallel_ranks_on_several_nodes_are_refused() -> None:
    here, there = places(2, 1, 1)
    with pytest.raises(ConfigurationError, match=r"embed_tokens.* lies on worker-0 in part only; spec.trainer.tensorParallel must divide"):
        find_homes(replica(here), first(sizes(there)))


def test_a_tensor_that_nobody_holds_is_named() -> None:
    here, _ = places(1, 2, 1)
    with pytest.raises(InfrastructureError, match=r"no rank of the trainer holds tensor lm_head.weight"):
        find_homes(replica(here), first({}))


@pytest.fixture
def file(tmp_path: Path) -> TensorFile:
    made = TensorFile.create(tmp_path / "w", [TensorSpec("a", torch.float32, (2,)), TensorSpec("b", torch.float32, (2,))], {})
    made.write_all({"a": torch.ones(2), "b": torch.zeros(2)})
    return made


def test_checksums_of_all_nodes_come_together_and_missing_ones_are_read(file: TensorFile) -> None:
    theirs = ("of b", "of its first part", "of its second")
    assert agreed(first({"b": theirs}), file, {}, ["a"]) == {"a": (file.checksum("a"),), "b": theirs}


def test_nodes_that_hold_different_numbers_of_a_tensor_are_found_out(file: TensorFile) -> None:
    with pytest.raises(InfrastructureError, match="come apart: a is not the same on all of them"):
        agreed(first({**file.sums(["b"]), "a": ["another"]}), file, file.sums(["a"]), ["a", "b"])


@settings(max_examples=50, deadline=None)
@given(held=st.lists(st.tuples(st.integers(1, 100), st.sets(st.integers(0, 2), min_size=1)), min_size=1))
def test_what_several_nodes_hold_is_shared_out_among_them(held: list[tuple[int, set[int]]]) -> None:
    by_node = tuple(frozenset(str(i) for i, (_, nodes) in enumerate(held) if node in nodes) for node in range(3))
    homes = Homes({str(i): size for i, (size, _) in enumerate(held)}, by_node)
    owners = homes.shared_out()
    assert all(owners[str(i)] in nodes for i, (_, nodes) in enumerate(held))
    if all(nodes == {0, 1, 2} for _, nodes in held):
        load = [sum(size for i, (size, _) in enumerate(held) if owners[str(i)] == node) for node in range(3)]
        assert max(load) - min(load) <= max(size for size, _ in held)
