"""Every parallel size makes of the same model and the same batches what one rank makes: real processes over gloo."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.rollout.engines import JOB, ask, start_zygote
from tests.trainer.scorers import as_scorer, pair_batch
from tests.trainer.shapes import STEP, Case, Seen, Size, spec, try_all

from rljob.api import RLJob
from rljob.checkpoint_engine.act import attest
from rljob.checkpoint_engine.clients import HttpEngine
from rljob.wire.batch import Batch
from rljob.wire.weights import Manifest

pytestmark = pytest.mark.slow

ALONE = Size(1, 1, 1)
# Between them: with tensor and data parallel ranks, two stages (each the other's next and previous one) and four, and more context parallel
# ranks than key/value heads.
INTERLEAVED = [Size(2, 2, 1, chunks=2), Size(1, 4, 1, chunks=2)]
SHARED_ROWS = [Size(1, 2, 1, context=2), Size(1, 1, 2, context=2), Size(1, 1, 1, context=4)]
SIZES = [Size(2, 1, 1), Size(1, 2, 1), Size(2, 2, 1), Size(1, 2, 2), Size(1, 4, 1), *INTERLEAVED, *SHARED_ROWS]
"""Each goes on from the checkpoint that the one before has written."""
FAMILIES = {"llama-tied": ("llama", True), "qwen3-untied": ("qwen3", False), "qwen2-tied": ("qwen2", True)}
"""(family, the output layer is the embedding). Qwen3's heads have a size of their own and norms, Qwen2's have biases."""
HEAD = 64
"""Size of Qwen3's heads: one that vLLM's attention on CPU computes with, and not what hidden size and heads make."""
TRAINED = [*FAMILIES, "reward-model"]
CASES = [*TRAINED, "bf16"]


class Made:
    """What all sizes have left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = {str(size): json.loads((folder / f"{size}.json").read_text()) for size in (ALONE, *SIZES)}

    def model(self, case: str) -> Path:
        asked = json.loads((self.folder / "asked.json").read_text())
        return next(Path(c["model"]) for c in asked["cases"] if c["name"] == case)

    def seen(self, size: Size, case: str) -> Seen:
        return Seen(**self._seen[str(size)][case])

    def weights(self, size: Size, case: str, version: int, dtype: str = "float32") -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = load_file(self.folder / f"{size}.{case}.{version}.{dtype}")
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path], batch: Callable[..., Batch]) -> Made:
    folder, changes = tmp_path_factory.mktemp("shapes"), {"qwen3": {"head_dim": HEAD}}
    models = {
        name: str(make_model(*family, num_hidden_layers=8, hidden_size=128, max_position_embeddings=1024, **changes.get(family[0], {})))
        for name, family in FAMILIES.items()
    }
    cases = [Case(name, model, spec("fp32"), again=name == "llama-tied") for name, model in models.items()]
    cases.append(Case("bf16", models["qwen3-untied"], spec("bf16"), again=True))
    pairs = {"rewardModel": {"stepsPerIteration": 2, "batchSize": 3, "learningRate": STEP, "warmupSteps": 0}}
    scorer = as_scorer(Path(models["qwen2-tied"]), tmp_path_factory.mktemp("scorer"))
    cases.append(Case("reward-model", str(scorer), spec("fp32") | pairs, task="preference"))
    batches = {kind: [made(version=v, seed=v) for v in (1, 2)] for kind, made in (("rl", batch), ("preference", pair_batch))}
    try_all(folder, (ALONE, *SIZES), cases, batches)
    return Made(folder)


def furthest(a: list[float], b: list[float]) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_export_is_the_same_to_the_last_bit(size: Size, case: str, made: Made) -> None:
    for dtype in ("float32", "bfloat16"):
        expected, found = made.weights(ALONE, case, 0, dtype), made.weights(size, case, 0, dtype)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert made.seen(size, case).checksums[f"0.{dtype}"] == made.seen(ALONE, case).checksums[f"0.{dtype}"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logprobs_agree(size: Size, case: str, made: Made) -> None:
    alone, here = made.seen(ALONE, case), made.seen(size, case)
    assert furthest(here.logprobs, alone.logprobs) < (0.1 if case == "bf16" else 1e-5)
    assert furthest(here.canaries[0], alone.canaries[0]) < 1e-5, "the canary is computed in fp32 whatever training is"


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_training_task_makes_the_same_weights(size: Size, case: str, made: Made) -> None:
    """Two optimizer steps; also where, in version 2, weights and moments are those that another size has written."""
    alone, here = made.seen(ALONE, case), made.seen(size, case)
    for task in (0, 1):
        for name in ("loss", "grad_norm", "logprob_gap"):
            assert here.metrics[task][name] == pytest.approx(alone.metrics[task][name], rel=2e-5), (task, name)
        assert here.metrics[task]["kl"] == pytest.approx(alone.metrics[task]["kl"], rel=1e-3)
        before, expected, found = (made.weights(s, case, v) for s, v in ((ALONE, task), (ALONE, task + 1), (size, task + 1)))
        for name in expected:
            moved = float((expected[name] - before[name]).abs().max())
            assert moved > STEP / 100 or "k_proj.bias" in name, name  # no softmax sees a bias of all keys: its gradient is 0
            assert (found[name] - expected[name]).abs().max() < max(moved / 100, STEP / 10000), (task, name)


@pytest.mark.parametrize("case", ["llama-tied", "bf16"])
@pytest.mark.parametrize("size", [ALONE, *SIZES], ids=str)
def test_the_same_task_twice_makes_the_same_bits(size: Size, case: str, made: Made) -> None:
    checksums = made.seen(size, case).checksums
    assert checksums["1.float32"] == checksums["1.float32again"] != checksums["0.float32"]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_rank_holds_its_part_and_no_more(size: Size, made: Made) -> None:
    (whole,), held = made.seen(ALONE, "qwen3-untied").held, made.seen(size, "qwen3-untied").held
    replicated = 128 * 17 + 8 * 2 * HEAD  # the norms, which tensor parallel ranks all hold
    padding = 128 * 2  # 103 tokens on two ranks
    assert whole <= sum(held) / (size.data * size.context) <= whole + (size.tensor - 1) * (replicated + padding)
    assert max(held) < 1.1 * whole / (size.tensor * size.pipeline)


def test_the_next_step_from_a_checkpoint_of_another_size_has_the_loss_of_an_uninterrupted_job(made: Made) -> None:
    losses = [made.seen(size, "qwen2-tied").metrics[1]["loss"] for size in (ALONE, *SIZES)]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=2e-5)


def test_an_engine_of_two_ranks_loads_what_two_stages_of_two_ranks_exported(made: Made, tmp_path: Path) -> None:
    """Version 2, which that trainer made from another size's checkpoint; the canary tells it from its neighbours."""
    size, case = Size(2, 2, 1), "qwen3-untied"
    arena = made.folder / f"{size}.{case}.2.float32"
    manifest = Manifest.model_validate_json((made.folder / f"{arena.name}.manifest").read_text())
    sizes = {"accelerator": {"perNode": 2}, "rollout": {"tensorParallel": 2, "maxTokens": 64, "engine": {"maxSequences": 2}}}
    job = RLJob.model_validate({**JOB.model_dump(by_alias=True), "spec": JOB.spec.model_dump(by_alias=True, exclude_none=True) | sizes})
    zygote = start_zygote(tmp_path)
    url = zygote.start(made.model(case), job)[1]
    ask(url, lambda e: e.load_weights(manifest, arena))
    ask(url, lambda e: attest(HttpEngine(e), manifest))
    found = ask(url, lambda e: e.logprobs(list(manifest.canary.tokens)))
    assert furthest(found, list(manifest.canary.logprobs)) < 1e-5
    zygote.pipes[0].close()
    assert zygote.process.wait(30) == 0
