"""Experts spread over ranks make of the same model and batches what one rank makes: real processes over gloo."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.shapes import STEP, Case, Seen, Size, spec, try_all

from rljob.wire.batch import Batch

pytestmark = pytest.mark.slow

ALONE = Size(1, 1, 1)
SIZES = [Size(1, 1, 2, 2), Size(2, 1, 1, 1), Size(2, 1, 2, 4), Size(1, 2, 2, 2)]
"""Experts over data parallel ranks, on both tensor parallel ranks, over all of them, and beside a pipeline. Each goes on from the
checkpoint that the one before has written."""
FAMILIES = {"qwen2_moe": False, "mixtral": True}
"""With biases and a shared expert and without; whether the output layer is the embedding. `bf16` is a Qwen3, which several nodes share in
fp32 in test_nodes.py."""
CASES = [*FAMILIES, "bf16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path], batch: Callable[..., Batch]) -> Path:
    """What all sizes have left."""
    made = tmp_path_factory.mktemp("experts")
    models = {family: str(make_model(family, tied)) for family, tied in FAMILIES.items()}
    cases = [Case(family, model, spec("fp32")) for family, model in models.items()]
    cases.append(Case("bf16", str(make_model("qwen3_moe")), spec("bf16"), again=True))
    try_all(made, (ALONE, *SIZES), cases, {"rl": [batch(version=v, seed=v) for v in (1, 2)]})
    return made


def seen(folder: Path, size: Size, family: str) -> Seen:
    return Seen(**json.loads((folder / f"{size}.json").read_text())[family])


def weights(folder: Path, size: Size, family: str, version: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / f"{size}.{family}.{version}.float32")
    return found


def furthest(a: list[float], b: list[float]) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_export_is_the_same_to_the_last_bit(size: Size, family: str, folder: Path) -> None:
    expected, found = weights(folder, ALONE, family, 0), weights(folder, size, family, 0)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    alone, here = seen(folder, ALONE, family), seen(folder, size, family)
    assert all(here.checksums[f"0.{dtype}"] == alone.checksums[f"0.{dtype}"] for dtype in ("float32", "bfloat16"))


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logprobs_agree(size: Size, family: str, folder: Path) -> None:
    alone, here = seen(folder, ALONE, family), seen(folder, size, family)
    if family != "bf16":  # where rounding may choose another expert
        assert furthest(here.logprobs, alone.logprobs) < 1e-5
    assert furthest(here.canaries[0], alone.canaries[0]) < 1e-5, "the canary is computed in fp32 whatever training is"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_training_makes_the_same_weights_also_from_the_checkpoint_of_another_size(size: Size, family: str, folder: Path) -> None:
    alone, here = seen(folder, ALONE, family), seen(folder, size, family)
    for task in (0, 1):
        for name in ("loss", "grad_norm", "logprob_gap"):
            assert here.metrics[task][name] == pytest.approx(alone.metrics[task][name], rel=2e-5, abs=1e-6), (task, name)
        before, expected, found = (weights(folder, s, family, v) for s, v in ((ALONE, task), (ALONE, task + 1), (size, task + 1)))
        for name in expected:
            moved = float((expected[name] - before[name]).abs().max())
            assert (found[name] - expected[name]).abs().max() < max(moved / 100, STEP / 10000), (task, name)
        assert sum(not torch.equal(before[name], expected[name]) for name in expected if ".experts." in name) >= 20, "of 24"


@pytest.mark.parametrize("size", [ALONE, *SIZES], ids=str)
def test_the_same_task_twice_makes_the_same_bits(size: Size, folder: Path) -> None:
    checksums = seen(folder, size, "bf16").checksums
    assert checksums["1.float32"] == checksums["1.float32again"] != checksums["0.float32"]


def test_a_rank_holds_its_experts_and_no_others(folder: Path) -> None:
    (whole,) = seen(folder, ALONE, "bf16").held
    experts = 2 * 4 * 3 * 64 * 40  # layers × experts × matrices
    for size, share in ((Size(1, 1, 2, 2), 1 / 2), (Size(2, 1, 2, 4), 1 / 4)):
        held = seen(folder, size, "bf16").held
        rest = (whole - experts) / size.tensor
        assert max(held) < 1.2 * (rest + experts * share)
