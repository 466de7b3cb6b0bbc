"""Ranks on several nodes make what one rank makes, and every node ends up with all of it: real processes over gloo, real connections."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.shapes import Case, Seen, Size, arenas, spec, try_all

from rljob.checkpoint_engine.arena import TensorFile, verify_manifest
from rljob.trainer import checkpoint
from rljob.wire.batch import Batch
from rljob.wire.weights import Manifest

pytestmark = pytest.mark.slow

ALONE = Size(1, 1, 1)
SPREAD = [Size(1, 2, 1, nodes=2), Size(1, 1, 2, nodes=2), Size(1, 1, 2, 2, nodes=2), Size(2, 2, 1, nodes=2), Size(1, 2, 2, 2, nodes=2)]
SPREAD += [Size(1, 2, 2, 2, chunks=2, nodes=2), Size(2, 1, 1, 2, context=2, nodes=2)]
"""Stages, copies, experts on two nodes; stages of two tensor parallel ranks; stages whose experts are spread within a node, also of two
chunks of layers each; rows shared by two nodes, each with two tensor parallel ranks."""
SIZES = [*SPREAD, Size(2, 1, 1)]
"""Each goes on from the checkpoint that the one before has written."""
EXPORTS = ("0.float32", "0.bfloat16", "1.float32", "2.float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path], batch: Callable[..., Batch]) -> Path:
    """What all sizes have left."""
    made = tmp_path_factory.mktemp("nodes")
    case = Case("model", str(make_model("qwen3_moe", True, num_hidden_layers=4, num_key_value_heads=4)), spec("fp32"))
    try_all(made, (ALONE, *SIZES), [case], {"rl": [batch(version=v, seed=v) for v in (1, 2)]})
    return made


def seen(folder: Path, size: Size) -> Seen:
    return Seen(**json.loads((folder / f"{size}.json").read_text())["model"])


@pytest.mark.parametrize("node", ["worker-0", "worker-1"])
@pytest.mark.parametrize("size", SPREAD, ids=str)
def test_every_node_has_the_whole_version(size: Size, node: str, folder: Path) -> None:
    for export in EXPORTS:
        arena = arenas(folder, node) / f"{size}.model.{export}"
        manifest = Manifest.model_validate_json(arena.with_name(f"{arena.name}.manifest").read_text())
        with TensorFile.open(arena) as file:
            verify_manifest(manifest, file)
            assert file.metadata == {"version": export[0], "checksum": manifest.checksum}
        if export.startswith("0"):
            expected, found = load_file(folder / f"{ALONE}.model.{export}"), load_file(arena)
            assert list(found) == list(expected)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert manifest.checksum == seen(folder, ALONE).checksums[export]


@pytest.mark.parametrize("size", SPREAD, ids=str)
def test_all_nodes_return_one_manifest_that_says_who_has_what(size: Size, folder: Path) -> None:
    texts = [(arenas(folder, node) / f"{size}.model.1.float32.manifest").read_text() for node in ("worker-0", "worker-1")]
    assert texts[0] == texts[1]
    homes = {t.name: t.shards[0].node for t in Manifest.model_validate_json(texts[0]).tensors}
    copies = size.pipeline == 1 and size.expert <= size.tensor
    assert set(homes.values()) == ({"worker-0"} if copies else {"worker-0", "worker-1"})
    last = max(name for name in homes if ".experts.3." in name)
    assert homes["model.embed_tokens.weight"] == "worker-0"
    assert homes[last] == ("worker-0" if copies else "worker-1")


@pytest.mark.parametrize("size", SPREAD, ids=str)
def test_a_checkpoint_of_several_nodes_has_a_file_of_each(size: Size, folder: Path) -> None:
    made = folder / f"{size}.model.checkpoint"
    record = checkpoint.read_record(made)
    assert record is not None
    checkpoint.verify(made, record)
    parts = [f"{what}-0000{i}-of-00002.safetensors" for what in ("model", "state") for i in (1, 2)]
    assert sorted(p.name for p in made.rglob("*.safetensors")) == parts
    sizes = [(made / part).stat().st_size for part in parts[:2]]
    if size.pipeline == 1:
        assert max(sizes) < 1.5 * min(sizes), "what both nodes hold is shared out"
    index = json.loads((made / "model.safetensors.index.json").read_text())
    found = {name: load_file(made / part)[name] for name, part in index["weight_map"].items()}
    expected = load_file(folder / f"{size}.model.1.float32")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_node_writes_one_file(folder: Path) -> None:
    for size in (ALONE, SIZES[-1]):
        made = folder / f"{size}.model.checkpoint"
        assert sorted(p.name for p in made.rglob("*.safetensors*")) == ["model.safetensors", "state.safetensors"]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_next_step_from_a_checkpoint_of_another_number_of_nodes_has_the_same_loss(size: Size, folder: Path) -> None:
    alone, here = seen(folder, ALONE), seen(folder, size)
    for task in (0, 1):
        for name in ("loss", "grad_norm", "logprob_gap"):
            assert here.metrics[task][name] == pytest.approx(alone.metrics[task][name], rel=2e-5, abs=1e-6), (task, name)
    assert max(abs(a - b) for a, b in zip(here.canaries[2], alone.canaries[2], strict=True)) < 1e-4
