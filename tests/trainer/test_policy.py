"""Megatron's model computes what transformers' does."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rljob.api import RLJobSpec
from rljob.checkpoint_engine.act import mean_gap
from rljob.trainer.hf_map import Piece
from rljob.trainer.packing import answers_of, bins, needed, row
from rljob.wire.batch import Batch

WEIGHTS_PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
FAMILIES = ["llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral"]
TIED = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False), *((name, name == "qwen3_moe") for name in FAMILIES[3:])]


def transformers_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def of_files(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors shaped like the parameters by the names in files: in memory transformers 5 keeps the experts of a layer in one."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, torch.Tensor] = revert_weight_conversion(model, tensors)
    return found


@pytest.mark.parametrize(("family", "tied"), TIED)
def test_weights_go_to_megatron_and_back_bit_for_bit(
    family: str, tied: bool, make_model: Callable[..., Path], replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    from rljob.trainer import weights

    folder = make_model(family, tied)
    made = replica(folder, spec())
    manifest = weights.export(made, megatron, weights.Arena(), tmp_path / "arena", 0, torch.float32, "worker-0")
    original, back = load_file(folder / "model.safetensors"), load_file(tmp_path / "arena")
    assert manifest is not None
    assert manifest.version == 0
    assert {t.name for t in manifest.tensors} == set(original) == set(back)
    assert all(torch.equal(original[name], back[name]) for name in original)


def test_an_export_builds_no_graph_beside_the_canary(
    make_model: Callable[..., Path], replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    """A view with a graph takes two locks in another order than the canary's pass: now and then both waited for ever."""
    from rljob.trainer import weights

    made = replica(make_model(), spec())
    views: list[torch.Tensor] = []

    def watched(piece: Piece) -> Piece:
        def view(tensor: torch.Tensor) -> torch.Tensor:
            views.append(piece.view(tensor))
            return views[-1]

        return replace(piece, view=view)

    made = replace(made, pieces=tuple(watched(piece) for piece in made.pieces))
    weights.export(made, megatron, weights.Arena(), tmp_path / "arena", 0, torch.float32, "worker-0")
    assert len(views) >= len(made.pieces)
    assert {view.grad_fn for view in views} == {None}


@pytest.mark.parametrize(("family", "tied"), TIED)
def test_in_bf16_attestation_sees_gross_faults_and_the_checksum_an_update(
    family: str, tied: bool, make_model: Callable[..., Path], replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    """transformers stands for the engine: it computes in bf16 with what was exported in bf16. What docs/weights.md says of the bound."""
    from rljob.trainer import weights

    folder, arena = make_model(family, tied), weights.Arena()
    made = replica(folder, spec())
    manifest = weights.export(made, megatron, arena, tmp_path / "arena", 0, torch.bfloat16, "worker-0")
    assert manifest is not None
    canary = manifest.canary
    shutil.copy(tmp_path / "arena", folder / "model.safetensors")
    model = transformers_model(folder, torch.bfloat16)
    layers, embedding = model.model.layers, model.get_input_embeddings().weight

    @torch.no_grad()
    def gap() -> float:
        ids = torch.tensor([canary.tokens])
        found = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return mean_gap(found.tolist(), canary.logprobs)

    assert 0 < gap() < 0.02 < canary.tolerance / 10, "rounding alone"
    layers.insert(0, layers.pop(1))
    assert gap() > canary.tolerance, "two layers have changed places"
    layers.insert(0, layers.pop(1))
    with torch.no_grad():
        embedding.copy_(embedding.roll(1, 0))
    assert gap() > canary.tolerance, "the embedding is a row off"
    with torch.no_grad():  # as far as Adam goes in a step of 1e-3
        for master in made.masters().values():
            master.add_(torch.randn_like(master).sign(), alpha=1e-3)
    after = weights.export(made, megatron, arena, tmp_path / "arena", 1, torch.bfloat16, "worker-0")
    assert after is not None
    assert 0 < mean_gap(canary.logprobs, after.canary.logprobs) < canary.tolerance, "an update is less than rounding may be"
    assert after.checksum != manifest.checksum


def test_the_bounds_of_attestation_are_those_in_the_docs() -> None:
    from rljob.trainer.weights import TOLERANCE

    rows = re.findall(r"^\| (float32|bfloat16) \| ([\d.]+) \|", WEIGHTS_PAGE.read_text(), re.MULTILINE)
    assert {getattr(torch, dtype): float(bound) for dtype, bound in rows} == TOLERANCE


@pytest.mark.parametrize(("family", "tied"), TIED)
def test_logprobs_of_packed_rows_are_those_of_separate_sequences(
    family: str,
    tied: bool,
    make_model: Callable[..., Path],
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    reference_logprobs: Callable[..., torch.Tensor],
) -> None:
    from rljob.trainer.training import logprobs, per_sample

    folder, data = make_model(family, tied), batch()
    made = replica(folder, spec())
    expected = reference_logprobs(transformers_model(folder), data)
    for members in bins(needed(answers_of(data), regularised=True), 64, 1):
        packed = row(members)
        found = per_sample(packed, logprobs(made, packed))
        assert (found - expected[packed.indices]).abs().max() < 1e-5


def test_llama_3_frequency_scaling_is_that_of_transformers(
    make_model: Callable[..., Path],
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    reference_logprobs: Callable[..., torch.Tensor],
) -> None:
    from rljob.trainer.training import logprobs, per_sample

    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    folder, data = make_model(rope_parameters=scaling), batch()
    packed = row(needed(answers_of(data), regularised=True))
    found = per_sample(packed, logprobs(replica(folder, spec()), packed))
    assert (found - reference_logprobs(transformers_model(folder), data)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_packed_rows_are_those_of_separate_sequences(
    family: str,
    make_model: Callable[..., Path],
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    reference_logprobs: Callable[..., torch.Tensor],
) -> None:
    from rljob.trainer.training import per_sample

    folder, data = make_model(family), batch(groups=4, answers=5)
    made, model = replica(folder, spec()), transformers_model(folder)
    weight = torch.linspace(-1, 1, 20)
    torch.autograd.backward((reference_logprobs(model, data) * weight).sum())
    made.chunks[0].ddp.zero_grad_buffer()
    for members in bins(needed(answers_of(data), regularised=True), 64, 1):
        packed = row(members)
        torch.autograd.backward((per_sample(packed, made.chunks[0].ddp(packed)) * weight[packed.indices]).sum())
    gradients = {name: p.main_grad for name, p in made.parameters()}
    expected = of_files(model, {name: p.grad for name, p in model.named_parameters()})
    for piece in made.pieces:
        mine, theirs = piece.of(gradients[piece.parameter], expected[piece.name])
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max(), piece.name


def test_long_blocks_take_the_fused_kernel_and_agree(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rljob.trainer import attention
    from rljob.trainer.training import logprobs

    made, packed = replica(llama, spec()), row(needed(answers_of(batch()), regularised=True))
    plain = logprobs(made, packed)
    monkeypatch.setattr(attention, "SCORES_BYTES", 0)
    assert (logprobs(made, packed) - plain).abs().max() < 1e-5


def test_blocks_without_masks_as_a_gpu_has_them_agree_also_in_their_gradients(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rljob.trainer import attention

    made, packed = replica(llama, spec()), row(needed(answers_of(batch(groups=4, answers=5)), regularised=True))

    def found() -> list[torch.Tensor]:
        made.chunks[0].ddp.zero_grad_buffer()
        logprobs = made.chunks[0].ddp(packed)
        torch.autograd.backward(logprobs.sum())
        return [logprobs.detach(), *(p.main_grad.clone() for _, p in made.parameters())]

    masked = found()
    monkeypatch.setattr(attention, "has_masks", lambda device: False)
    assert all(block.allowed is None for block in attention.plan(packed, 4, 2, torch.device("cpu")).blocks)
    for without, expected in zip(found(), masked, strict=True):
        assert (without - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_mask_is_as_large_whatever_the_number_of_heads() -> None:
    from rljob.trainer.attention import plan
    from rljob.trainer.packing import sequence_row

    one, many = (plan(sequence_row(range(200)), heads, 2, torch.device("cpu")) for heads in (2, 16))
    sizes = [sum(block.allowed.nbytes for block in made.blocks if block.allowed is not None) for made in (one, many)]
    assert sizes == [1 + 198 * 199] * 2


def test_logits_kept_and_logits_computed_again_give_the_same_gradients(megatron: Any) -> None:
    from rljob.trainer.logprobs import token_logprobs

    torch.manual_seed(0)
    group = megatron.control
    hidden, weight = torch.randn(40, 16, dtype=torch.float64), torch.randn(12, 16, dtype=torch.float64)
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 11, 40))
    results = []
    for budget in (2**20, 11 * 8 * 7):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found = token_logprobs(h, w, targets, first=0, vocabulary=11, group=group, budget=budget)
        torch.autograd.backward((found * torch.arange(40)).sum())
        results.append((found.detach(), h.grad, w.grad))
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = (h @ w[:11].t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.autograd.backward((expected * torch.arange(40)).sum())
    for found, h_grad, w_grad in results:
        assert (found - expected).abs().max() < 1e-12
        assert h_grad is not None
        assert h.grad is not None
        assert (h_grad - h.grad).abs().max() < 1e-10
        assert w_grad is not None
        assert w.grad is not None
        assert (w_grad - w.grad).abs().max() < 1e-10


def test_tokens_that_are_nearly_certain_keep_their_gradient_in_bf16(megatron: Any) -> None:
    """Above 0.998 the next number of bf16 is 1: there 1 - p must not be the difference of two of them."""
    from rljob.trainer.logprobs import token_logprobs

    torch.manual_seed(0)
    weight = torch.randn(500, 64).bfloat16()
    targets = torch.randint(0, 500, (200,))
    hidden = (weight[targets].float() * 0.3 + 0.3 * torch.randn(200, 64)).bfloat16()
    h, exact = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    found = token_logprobs(h, weight, targets, first=0, vocabulary=500, group=megatron.control)
    torch.autograd.backward(found.sum())
    logits = exact @ weight.double().t()
    logits.data.copy_(hidden @ weight.t())  # rounded as the others are: what is looked at is what follows from them
    torch.autograd.backward(logits.log_softmax(-1).gather(1, targets[:, None]).sum())
    sure = found.detach().exp() > 0.99
    assert sure.sum() > 100
    assert h.grad is not None
    assert exact.grad is not None
    assert (h.grad[sure] - exact.grad[sure]).norm() < 0.02 * exact.grad[sure].norm()
