"""Training steps, offload, checkpoints: what must be exact is exact."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rljob.api import ConfigurationError, InfrastructureError, RLJobSpec
from rljob.wire.batch import Batch, Group, Sample
from rljob.wire.node import TrainMetrics, TrainTask
from rljob.wire.trainer import CheckpointCommand, ExportCommand, LoadCommand

SFT = {"data": {"path": "warm.jsonl"}, "learningRate": 1e-3, "warmupSteps": 2}


def task(version: int = 1, steps: int = 1, kind: str = "rl") -> TrainTask:
    return TrainTask.model_validate({"version": version, "kind": kind, "steps": steps, "iteration": 1})


def run(replica: Any, spec: RLJobSpec, batch: Batch, steps: int = 1, kind: str = "rl") -> TrainMetrics:
    from rljob.trainer.training import train

    return train(replica, spec, task(batch.version, steps, kind), batch, lambda done, total: None)


def state(replica: Any) -> dict[str, torch.Tensor]:
    """Masters, parameters and moments."""
    found = {name: tensor.detach().clone() for name, tensor in replica.masters().items()}
    found |= {f"parameter {name}": p.detach().clone() for name, p in replica.parameters()}
    return found | {f"optimizer {i}": t.clone() for i, t in enumerate(replica.optimizer.tensors())}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_step_is_the_step_that_plain_torch_takes(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], reference_logprobs: Callable[..., torch.Tensor]
) -> None:
    from transformers import AutoModelForCausalLM

    data, job = batch(), spec()
    made = replica(llama, job)
    metrics = run(made, job, data)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    advantages = torch.tensor([s.advantage for g in data.groups for s in g.samples])
    loss = -(advantages * reference_logprobs(model, data)).mean()
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    named, masters = dict(model.named_parameters()), made.masters()
    for piece in made.pieces:
        mine, theirs = piece.of(masters[piece.parameter], named[piece.name])
        assert (mine - theirs).abs().max() < 2e-5, piece.name  # of a step of 1e-3
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-4)
    assert metrics.grad_norm == pytest.approx(float(norm), rel=1e-4)


def with_flat_parts(data: Batch) -> Batch:
    """The same answers, but those to the first prompt and the first one to each have no advantage."""
    return Batch(
        data.version,
        tuple(
            Group(g.prompt, tuple(dataclasses.replace(s, advantage=s.advantage if i and j else 0.0) for j, s in enumerate(g.samples)))
            for i, g in enumerate(data.groups)
        ),
    )


def two_steps_of_plain_torch(
    model: Any, data: Batch, dealt: list[list[int]], tau: float, logprobs: Callable[..., torch.Tensor]
) -> tuple[list[float], float]:
    """The paper's equation 3 by autograd, one optimizer step after the other; losses, and the last step's mean of (log-ratio)^2 / 2."""
    vectors, matrices = ([p for p in model.parameters() if (p.ndim > 1) == several] for several in (False, True))
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 1.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.8, 0.95))
    advantages = torch.tensor([s.advantage for g in data.groups for s in g.samples])
    start, losses, kl = logprobs(model, data).detach(), [], 0.0
    for members in dealt:
        ratio = (logprobs(model, data) - start)[members]
        loss = (tau / 2 * ratio**2 - advantages[members] * (ratio + start[members])).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        kl = float((ratio.detach() ** 2 / 2).mean())
    return losses, kl


def test_two_regularised_steps_are_those_of_plain_torch(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], reference_logprobs: Callable[..., torch.Tensor]
) -> None:
    """A factor that is a tenth off, or log-ratios taken against another policy than the first, would be seen: the control is."""
    from transformers import AutoModelForCausalLM

    from rljob.trainer.packing import answers_of, rl_steps

    data, tau = with_flat_parts(batch(groups=6)), 1.0
    adam = {"learningRate": 1e-3, "beta1": 0.8, "beta2": 0.95, "weightDecay": 1.0}
    job = spec(algorithm={"tau": tau, "stepsPerIteration": 2}, trainer={"precision": "fp32", "microBatchTokens": 64, "optimizer": adam})
    made = replica(llama, job)
    metrics = run(made, job, data, steps=2)
    dealt = [[a.index for part in step for a in part.answers] for step in rl_steps(answers_of(data), 2, (job.seed, data.version))]

    def worst(factor: float) -> tuple[float, list[float], float]:
        model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        losses, kl = two_steps_of_plain_torch(model, data, dealt, tau * factor, reference_logprobs)
        named, masters = dict(model.named_parameters()), made.masters()
        pairs = [piece.of(masters[piece.parameter], named[piece.name]) for piece in made.pieces]
        return max(float((mine - theirs).abs().max()) for mine, theirs in pairs), losses, kl

    difference, losses, kl = worst(1.0)
    assert difference < 4e-5  # of two steps of 1e-3
    assert metrics.loss == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert metrics.kl == pytest.approx(kl, rel=1e-3)
    assert worst(1.1)[0] > 3e-4


def test_the_first_step_computes_only_what_has_a_gradient_and_later_ones_all_that_is_regularised(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    from rljob.trainer.training import plan_steps

    data = with_flat_parts(batch(groups=6))
    flat = {i for i, s in enumerate(s for g in data.groups for s in g.samples) if s.advantage == 0}
    job = spec(algorithm={"tau": 0.1, "stepsPerIteration": 2})
    first, second = plan_steps(replica(llama, job), job, task(steps=2), data)
    computed = [{int(i) for row in step.rows for i in row.indices} for step in (first, second)]
    assert len(flat) == 9
    assert not computed[0] & flat
    assert computed[1] & flat
    assert first.samples + second.samples == 24
    assert len(computed[1]) == second.samples


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_batch_gives_the_same_weights_bit_for_bit(
    precision: str, llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    job = spec(trainer={"precision": precision, "microBatchTokens": 64}, algorithm={"tau": 0.1, "stepsPerIteration": 2})
    results = []
    for _ in range(2):
        made = replica(llama, job)
        metrics = [run(made, job, batch(version=v, seed=v), steps=2) for v in (1, 2)]
        results.append((state(made), [m.model_copy(update={"seconds": 0.0}) for m in metrics]))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_small_steps_are_not_lost_in_bf16(llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]) -> None:
    """A step of 1e-5 is far below bf16's resolution of these weights: only fp32 masters keep it."""
    job = spec(trainer={"precision": "bf16", "optimizer": {"learningRate": 1e-5}})
    made = replica(llama, job)
    before = {name: t.detach().clone() for name, t in made.masters().items()}
    for version in range(1, 4):
        run(made, job, batch(version=version))
    for name, master in made.masters().items():
        assert master.dtype == torch.float32
        moved = (master - before[name]).abs()
        assert moved.max() <= 3.1e-5
        if "embedding" not in name:  # most tokens of the vocabulary do not occur
            assert moved.median() > 1e-5, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_after_three_updates_transformers_says_what_the_canary_says(
    precision: str,
    llama: Path,
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    megatron: Any,
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    from rljob.trainer import weights

    job = spec(trainer={"precision": precision, "optimizer": {"learningRate": 1e-3}})
    made, model = replica(llama, job), AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for version in (1, 2, 3):
        run(made, job, batch(version=version, seed=version))
    manifest = weights.export(made, megatron, weights.Arena(), tmp_path / "arena", 3, torch.float32, "worker-0")
    assert manifest is not None
    canary = manifest.canary

    def difference() -> float:
        ids = torch.tensor([canary.tokens])
        found = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return float((found - torch.tensor(canary.logprobs)).abs().max())

    assert difference() > canary.tolerance, "the old weights are found out"
    model.load_state_dict(load_file(tmp_path / "arena"), strict=False)
    assert difference() < 1e-5


def test_more_steps_regularise_towards_the_start(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    found = {}
    for tau in (0.0, 5.0):
        job = spec(algorithm={"tau": tau, "stepsPerIteration": 3, "promptsPerIteration": 6})
        found[tau] = run(replica(llama, job), job, batch(groups=6), steps=3)
    assert found[5.0].kl < found[0.0].kl
    assert run(replica(llama, spec()), spec(), batch()).kl == 0.0


def with_changed(data: Batch, **change: Callable[[Sample], Any]) -> Batch:
    def changed(sample: Sample) -> Sample:
        return dataclasses.replace(sample, **{name: make(sample) for name, make in change.items()})

    return dataclasses.replace(data, groups=tuple(Group(g.prompt, tuple(map(changed, g.samples))) for g in data.groups))


def test_what_an_older_version_wrote_is_trained_on_and_says_nothing_of_the_gap(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    fresh = np.arange(12) == 0
    stale = with_changed(batch(), logprobs=lambda s: np.where(fresh[: len(s.tokens)], s.logprobs, np.nan).astype(np.float32))
    masked = with_changed(batch(), loss_mask=lambda s: s.loss_mask * fresh[: len(s.tokens)])
    replicas = [replica(llama, spec()) for _ in range(3)]
    whole, mixed, alone = (run(r, spec(), b) for r, b in zip(replicas, (batch(), stale, masked), strict=True))
    assert mixed.logprob_gap == pytest.approx(alone.logprob_gap, rel=1e-5)
    assert mixed.logprob_gap != pytest.approx(whole.logprob_gap, rel=1e-2)
    assert same(state(replicas[0]), state(replicas[1])), "the gap is a report"
    steps = {"algorithm": {"tau": 0.0, "stepsPerIteration": 3, "promptsPerIteration": 6}}
    assert 0 < run(replica(llama, spec(**steps)), spec(**steps), stale, steps=3).kl < 1e3


def test_the_gap_is_the_distance_to_the_engine_before_the_first_step(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], reference_logprobs: Callable[..., torch.Tensor]
) -> None:
    from transformers import AutoModelForCausalLM

    from rljob.trainer.packing import answers_of, rl_steps

    data = with_changed(batch(groups=4), loss_mask=lambda s: s.loss_mask * (np.arange(len(s.tokens)) == 0))
    job = spec(algorithm={"stepsPerIteration": 2, "promptsPerIteration": 4})
    first = [a.index for part in rl_steps(answers_of(data), 2, (job.seed, data.version))[0] for a in part.answers]
    with torch.no_grad():
        ours = reference_logprobs(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), data)
    engines = torch.tensor([float(s.logprobs[0]) for g in data.groups for s in g.samples])
    gap = float((ours - engines).abs()[first].mean())
    assert run(replica(llama, job), job, data, steps=2).logprob_gap == pytest.approx(gap, rel=1e-4)


def test_the_engine_stands_in_for_samples_that_no_forward_pass_has_seen(megatron: Any, batch: Callable[..., Batch]) -> None:
    from rljob.trainer.packing import answers_of, row
    from rljob.trainer.training import Reference

    packed = row(answers_of(batch(groups=1, answers=2)))
    assert Reference({1: -3.0}).of(packed, torch.zeros(2), torch.tensor([-5.0, -7.0])).tolist() == [-5.0, -3.0]


def test_a_copy_that_keeps_ranks_in_step_adds_nothing(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    from rljob.trainer.objectives.sft import negative_log_likelihood
    from rljob.trainer.training import Reference, plan_steps, run_step

    job = spec(trainer={"precision": "fp32", "microBatchTokens": 1024})
    found = []
    for copies in (0, 1):
        made = replica(llama, job)
        (step,) = plan_steps(made, job, task(), batch())
        (row,) = step.rows
        whole = dataclasses.replace(step, rows=[row] + [dataclasses.replace(row, counted=False)] * copies)
        found.append((*run_step(made, whole, negative_log_likelihood, Reference(), first=True, report=lambda _: None), state(made)))
    (alone, norm, after), (*both, after_both) = found
    assert both == [alone, norm]
    assert same(after, after_both)


def test_moments_of_an_earlier_training_are_in_no_step(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    fresh, used = (replica(llama, spec()) for _ in range(2))
    for master in used.masters().values():
        used.optimizer.state(master)["exp_avg"].fill_(1.0)
    for made in (fresh, used):
        run(made, spec(), batch())
    assert same(state(fresh), state(used))


def test_the_learning_rate_of_demonstrations_warms_up_and_none_is_looked_at_before_its_step(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    from rljob.trainer.training import plan_steps, train

    job, made, told = spec(warmStart=SFT, algorithm={"tau": 1.0}), replica(llama, spec()), list[tuple[int, int]]()
    steps = plan_steps(made, job, task(steps=3, kind="sft"), batch())
    assert [step.learning_rate for step in steps] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    train(made, job, task(steps=3, kind="sft"), batch(), lambda done, total: told.append((done, total)))
    total = sum(len(step.rows) for step in steps)
    assert told == [(done, total) for done in range(1, total + 1)]
    slow = replica(llama, spec())
    before = {name: master.detach().clone() for name, master in slow.masters().items()}
    train(slow, job, task(kind="sft"), batch(), lambda done, total: None)
    moved = max(float((master - before[name]).abs().max()) for name, master in slow.masters().items())
    assert moved == pytest.approx(1e-3 / 3, rel=0.01), "Adam's first step moves a weight by the learning rate"


def test_supervised_training_learns_demonstrations(llama: Path, replica: Any, spec: Callable[..., RLJobSpec]) -> None:
    job = spec(warmStart=SFT)
    tokens, none = np.array([5, 6, 7, 8], np.int32), np.zeros(4, np.float32)
    demonstration = Group(np.array([1, 2], np.int32), (Sample(tokens, np.ones(4, np.uint8), none, 0.0),))
    made = replica(llama, job)
    first = run(made, job, Batch(1, (demonstration,) * 8), steps=1, kind="sft")
    last = run(made, job, Batch(2, (demonstration,) * 40), steps=20, kind="sft")
    assert last.loss < first.loss / 2
    assert (last.samples, last.steps, last.learning_rate) == (40, 20, 1e-3)


def test_a_batch_without_any_advantage_changes_nothing(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    flat = Batch(
        1, tuple(Group(g.prompt, tuple(Sample(s.tokens, s.loss_mask, s.logprobs, 0.0) for s in g.samples)) for g in batch().groups)
    )
    made = replica(llama, spec())
    before = state(made)
    assert run(made, spec(), flat).tokens == 0
    assert same(before, state(made))


@pytest.mark.parametrize(("kind", "field"), [("rl", "trainer.optimizer.learningRate"), ("sft", "warmStart.learningRate")])
def test_training_that_diverges_ends_with_the_field_to_change(
    kind: str, field: str, llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    job = spec(warmStart=SFT)
    made = replica(llama, job)
    with torch.no_grad():
        next(iter(made.masters().values())).fill_(torch.inf)
    with pytest.raises(ConfigurationError, match=rf"^spec\.{field}: training of version 3 has diverged in optimizer step 1 of 2 .*\bnan\b"):
        run(made, job, batch(version=3), steps=2, kind=kind)


@pytest.mark.parametrize(("loss", "norm"), [(math.inf, 1.0), (1.0, math.nan)])
def test_a_loss_or_a_gradient_that_is_not_finite_is_enough(loss: float, norm: float, megatron: Any) -> None:
    from rljob.trainer.training import Totals, check

    with pytest.raises(ConfigurationError, match="has diverged in optimizer step 1 of 1"):
        check(task(), 0, Totals(loss), norm)


def test_every_micro_batch_is_told_also_those_before_the_first_step(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears nothing for long takes the trainer for stuck."""
    from rljob.trainer import training

    told: list[tuple[int, int] | str] = []
    run_step = training.run_step

    def told_step(*args: Any, **more: Any) -> Any:
        told.append("step")
        return run_step(*args, **more)

    monkeypatch.setattr(training, "run_step", told_step)
    job = spec(algorithm={"tau": 1.0, "stepsPerIteration": 3, "promptsPerIteration": 6}, trainer={"microBatchTokens": 64})
    training.train(replica(llama, job), job, task(steps=3), batch(groups=6), lambda done, total: told.append((done, total)))
    counts = [one for one in told if not isinstance(one, str)]
    total = len(counts)
    assert counts == [(done, total) for done in range(1, total + 1)]
    assert told.index("step") > 1, "references come first"


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_recomputation_and_the_size_of_micro_batches_change_only_rounding(
    family: str, make_model: Callable[..., Path], replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch]
) -> None:
    model, norms = make_model(family), []
    for trainer in ({"microBatchTokens": 64}, {"microBatchTokens": 512}, {"microBatchTokens": 64, "recompute": True}):
        job = spec(trainer={"precision": "fp32", **trainer})
        norms.append(run(replica(model, job), job, batch()).grad_norm)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def storages(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Addresses of the storages that hold memory."""
    return {s.data_ptr() for s in (t.untyped_storage() for t in tensors) if s.nbytes()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_offload_and_onload_keep_every_bit(
    precision: str, llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], tmp_path: Path
) -> None:
    from rljob.trainer.offload import Offloader

    job = spec(trainer={"precision": precision}, algorithm={"resetOptimizer": False})
    results = []
    for interrupted in (False, True):
        made = replica(llama, job)
        offloader = Offloader(made, tmp_path)
        for version in (1, 2, 3):
            run(made, job, batch(version=version, seed=version))
            if interrupted:
                before = state(made)
                offloader.offload()
                # What remains lies in one file that the kernel may take out of memory: the masters.
                assert len(storages([*(p for _, p in made.parameters()), *made.optimizer.tensors()])) == 1
                assert storages(made.masters().values()) == storages(made.optimizer.tensors())
                assert sum(b.grad_data.untyped_storage().nbytes() for b in made.chunks[0].ddp.buffers) == 0
                offloader.onload()
                assert same(before, state(made))
        results.append(state(made))
    assert same(results[0], results[1])
    assert list(tmp_path.iterdir()) == [], "the offloaded state has no name on disk"


def test_a_disk_that_is_too_small_for_an_offloaded_trainer_is_said_with_the_remedy() -> None:
    from rljob.trainer.device import Cpu

    folder = Path("/dev/shm")
    with pytest.raises(
        ConfigurationError, match=r"MiB for the offloaded trainer in /dev/shm: No space left on device; free space there, or"
    ):
        Cpu().host_buffer(2 * shutil.disk_usage(folder).total, folder)


def test_moments_that_are_reset_after_an_offload_are_free(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], tmp_path: Path
) -> None:
    from rljob.trainer.offload import Offloader

    job = spec(algorithm={"resetOptimizer": False})
    made = replica(llama, job)
    run(made, job, batch())
    offloader = Offloader(made, tmp_path)
    offloader.offload()
    offloader.onload(contents=False)
    moments = [weakref.ref(made.optimizer.state(master)["exp_avg"].untyped_storage()) for master in made.masters().values()]
    assert moments
    made.optimizer.reset()
    assert [moment() for moment in moments] == [None] * len(moments)


@pytest.mark.parametrize(("precision", "reset"), [("fp32", True), ("fp32", False), ("bf16", False)])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    precision: str,
    reset: bool,
    llama: Path,
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    megatron: Any,
    tmp_path: Path,
) -> None:
    from rljob.trainer import checkpoint, weights

    job, folder = spec(trainer={"precision": precision}, algorithm={"resetOptimizer": reset}), tmp_path / "version-000001"
    made = replica(llama, job)
    metrics = run(made, job, batch(version=1))
    record = checkpoint.save(made, megatron, folder, 1, metrics, llama, "me")
    run(made, job, batch(version=2))
    assert record is not None
    assert record == checkpoint.read_record(folder)
    assert (folder / "optimizer").exists() is not reset
    resumed = replica(llama, job)
    weights.load(resumed, folder)
    checkpoint.load_moments(resumed, folder, record)
    run(resumed, job, batch(version=2))
    assert same(state(made), state(resumed))
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_of_an_offloaded_trainer_is_the_same(
    precision: str,
    llama: Path,
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    megatron: Any,
    tmp_path: Path,
) -> None:
    from rljob.trainer import checkpoint
    from rljob.trainer.offload import Offloader

    job = spec(trainer={"precision": precision}, algorithm={"resetOptimizer": False})
    made = replica(llama, job)
    run(made, job, batch())
    offloader = Offloader(made, tmp_path)
    here = checkpoint.save(made, megatron, tmp_path / "here", 1, None, llama, "me", offloader.view)
    offloader.offload()
    away = checkpoint.save(made, megatron, tmp_path / "away", 1, None, llama, "me", offloader.view)
    assert here == away
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "away" / file).read_bytes()


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer/state.safetensors"])
def test_a_damaged_checkpoint_is_refused(
    damaged: str, llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], megatron: Any, tmp_path: Path
) -> None:
    from rljob.trainer import checkpoint

    job = spec(algorithm={"resetOptimizer": False})
    made = replica(llama, job)
    run(made, job, batch())
    record = checkpoint.save(made, megatron, tmp_path / "v", 1, None, llama, "me")
    assert record is not None
    checkpoint.verify(tmp_path / "v", record)
    with (tmp_path / "v" / damaged).open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(InfrastructureError, match=f"{damaged} is damaged"):
        checkpoint.verify(tmp_path / "v", record)


def test_a_checkpoint_has_the_models_description_without_hidden_files(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    """Checkpoints are published; where the model came from is in a hidden file, and may name a secret."""
    from rljob.trainer import checkpoint

    model = shutil.copytree(llama, tmp_path / "model")
    (model / ".source.json").write_text('{"source": {"url": "https://me:secret@host/model.tar"}}')
    checkpoint.save(replica(llama, spec()), megatron, tmp_path / "v", 1, None, model, "me")
    found = {path.name for path in (tmp_path / "v").iterdir()}
    assert "config.json" in found
    assert ".source.json" not in found


def test_what_is_durable_has_its_folders_durable_too(
    llama: Path,
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    megatron: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from rljob.trainer import checkpoint

    job, synced = spec(algorithm={"resetOptimizer": False}), set()
    made = replica(llama, job)
    run(made, job, batch())
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    checkpoint.save(made, megatron, tmp_path / "v", 1, None, llama, "me")
    assert {path.stat().st_ino for path in [tmp_path, tmp_path / "v", *(tmp_path / "v").rglob("*")]} <= synced


KILLED = """
import os, signal, sys
from pathlib import Path
from rljob.trainer import checkpoint
os.rename = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.commit(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_before_the_new_checkpoint_has_its_name_the_old_one_is_whole(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], megatron: Any, tmp_path: Path
) -> None:
    from rljob.trainer import checkpoint

    made, old, draft = replica(llama, spec()), tmp_path / "version-000001", tmp_path / ".version-000002.dead"
    record = checkpoint.save(made, megatron, old, 1, None, llama, "me")
    draft.mkdir()
    (draft / "model.safetensors").write_bytes((old / "model.safetensors").read_bytes())
    killed = subprocess.run([sys.executable, "-c", KILLED, str(draft), str(tmp_path / "version-000002")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "version-000002").exists()
    assert record is not None
    checkpoint.verify(old, record)
    run(made, spec(), batch(version=2))
    checkpoint.save(made, megatron, tmp_path / "version-000002", 2, None, llama, "next")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["version-000001", "version-000002"], "the dead draft is gone"


def test_a_checkpoint_of_the_same_name_is_replaced_whole(
    llama: Path, replica: Any, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], megatron: Any, tmp_path: Path
) -> None:
    from rljob.trainer import checkpoint

    made, folder = replica(llama, spec()), tmp_path / "version-000001"
    first = checkpoint.save(made, megatron, folder, 1, None, llama, "me")
    run(made, spec(), batch())
    second = checkpoint.save(made, megatron, folder, 1, None, llama, "me")
    assert first is not None
    assert second is not None
    assert first.checksum != second.checksum
    checkpoint.verify(folder, second)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert load_file(folder / "model.safetensors").keys() == load_file(llama / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("accelerator", "dtype", "written"),
    [("cpu", "auto", "F32"), ("cpu", "bfloat16", "BF16"), ("nvidia", "auto", "BF16"), ("nvidia", "float32", "F32")],
)
def test_the_arena_holds_the_arithmetic_that_the_engine_is_asked_for(
    accelerator: str, dtype: str, written: str, llama: Path, replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    from rljob.trainer.commands import Export
    from rljob.trainer.loop import Trainer

    job = spec(accelerator={"type": accelerator}, rollout={"engine": {"dtype": dtype}})
    trainer = Trainer(replica(llama, job), megatron, job, model_folder=llama, scratch=tmp_path, node="n", incarnation="i")
    trainer.execute(Export(ExportCommand(version=0, arena=str(tmp_path / "arena"))))
    assert trainer.held.manifest is not None
    assert trainer.held.manifest.dtype == written == {"float32": "F32", "bfloat16": "BF16"}[job.engine_dtype]


@pytest.mark.parametrize("damage", [b"{", b"\xff", b""], ids=["cut off", "no text", "empty"])
def test_a_checkpoint_whose_record_is_damaged_is_written_anew(
    damage: bytes, llama: Path, replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    from rljob.trainer.commands import Checkpoint, Load
    from rljob.trainer.loop import Trainer

    trainer = Trainer(replica(llama, spec()), megatron, spec(), model_folder=llama, scratch=tmp_path, node="n", incarnation="i")
    command = Checkpoint(CheckpointCommand(version=0, path=str(tmp_path / "version-000000")))
    trainer.execute(Load(LoadCommand(version=0, path=str(llama))))
    trainer.execute(command)
    assert trainer.fulfilled(command) is not None
    (tmp_path / "version-000000" / "rljob.json").write_bytes(damage)
    assert trainer.fulfilled(command) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorParallel": 3}, r"tensorParallel is 3, .* 2 key/value heads .* set it to 2$"),
        ({"pipelineParallel": 3}, r"pipelineParallel is 3, .* 2 layers.* set it to 2$"),
        ({"contextParallel": 3}, r"contextParallel is 3, .* 2 key/value heads, of which .* has 4 and 2, .* set it to 2$"),
        ({"expertParallel": 2}, "expertParallel is 2, but the model has no experts; set it to 1$"),
    ],
)
def test_parallel_sizes_that_do_not_fit_are_refused(
    change: dict[str, int], message: str, llama: Path, spec: Callable[..., RLJobSpec], megatron: Any
) -> None:
    from rljob.trainer.architecture import read_architecture
    from rljob.trainer.build import check

    job = spec(trainer=change, accelerator={"perNode": 6})
    with pytest.raises(ConfigurationError, match=message):
        check(job.trainer, read_architecture(llama), job.world_size)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "does not exist"),
        ("{", "not JSON"),
        ('{"model_type": "mamba"}', "family 'mamba' is not supported.*llama, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe"),
        ('{"model_type": "qwen2_moe", "decoder_sparse_step": 2}', "decoder_sparse_step is 2"),
        ('{"model_type": "mixtral", "sliding_window": 4096}', "sliding_window is 4096"),
        ('{"model_type": "llama", "attention_bias": true}', "attention_bias is True"),
        ('{"model_type": "llama", "num_attention_heads": 4}', "is missing"),
    ],
)
def test_model_folders_that_cannot_be_trained_are_refused(config: str | None, message: str, tmp_path: Path) -> None:
    from rljob.trainer.architecture import read_architecture

    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigurationError, match=message):
        read_architecture(tmp_path)


def test_weights_that_do_not_fit_the_configuration_are_refused(
    llama: Path, make_model: Callable[..., Path], replica: Any, spec: Callable[..., RLJobSpec]
) -> None:
    from rljob.trainer import weights

    made = replica(llama, spec())
    with pytest.raises(ConfigurationError, match=r"embed_tokens.weight has shape \[90, 64\]"):
        weights.load(made, make_model(vocab_size=90))
    with pytest.raises(ConfigurationError, match=r"model.layers.1.* is missing"):
        weights.load(made, make_model(num_hidden_layers=1))
