"""The trainer as a process: its HTTP interface end to end, with one rank and with two."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.processes import trainer

from rljob.api import RLJobSpec
from rljob.checkpoint_engine.arena import TensorFile, verify_manifest
from rljob.wire.batch import Batch
from rljob.wire.node import TrainMetrics
from rljob.wire.trainer import TrainerStatus

pytestmark = pytest.mark.slow


def test_one_cycle_over_http(
    tmp_path: Path, llama: Path, spec: Callable[..., RLJobSpec], batch: Callable[..., Batch], free_port: Callable[[], int]
) -> None:
    first, second = batch(version=1), batch(version=2, seed=1)
    with trainer(tmp_path, llama, spec(), free_port()) as (client, _):
        fresh = client.status()
        assert (fresh.version, fresh.resident, fresh.busy, fresh.error) == (None, True, None, None)
        refused = client.post("export", version=0, arena=str(client.shm / "arena"))
        assert refused.status_code == 409
        assert "load it first" in refused.json()["error"]
        assert client.status().error == refused.json()["error"]

        client.do("load", version=0, path=str(llama))
        start = client.export(0)
        with TensorFile.open(client.shm / "arena") as arena:
            verify_manifest(start, arena)
        assert client.train(second).status_code == 409, "version 2 is not made from version 0"
        made = client.train(first)
        metrics = TrainMetrics.model_validate_json(made.content)
        assert (metrics.version, metrics.samples, metrics.steps) == (1, 12, 1)
        assert client.train(first).content == made.content, "a repeated task gives the stored result"
        after = client.export(1)
        assert after.checksum != start.checksum
        difference = np.abs(np.array(after.canary.logprobs) - np.array(start.canary.logprobs)).mean()
        assert difference > after.canary.tolerance, "the canary tells one update"

        folder = client.checkpoints / "version-000001"
        client.do("checkpoint", version=1, path=str(folder))
        written = (folder / "model.safetensors").stat().st_mtime_ns
        status = TrainerStatus.model_validate_json(client.do("checkpoint", version=1, path=str(folder)).content)
        assert (folder / "model.safetensors").stat().st_mtime_ns == written, "a repeated checkpoint writes nothing"
        assert (status.version, status.exported, status.checkpointed, status.trained) == (1, 1, 1, metrics)

        client.do("offload")
        client.do("offload")
        assert not client.status().resident
        assert client.status().freed == 0
        client.do("onload")
        client.do("offload", keep_freed=True)
        client.do("offload", keep_freed=True)
        assert client.status().freed > 0
        client.do("offload")
        assert client.status().freed == 0, "asked back, it is given back"
        assert client.export(1) == after, "the arena still holds it"
        assert client.train(second).status_code == 409
        client.do("onload")
        client.do("onload")
        uninterrupted = client.train(second)
        assert uninterrupted.status_code == 200
        expected = client.export(2).checksum
        assert client.http.post("/v1/unknown").status_code == 404
        assert client.post("load", version=2).status_code == 422

    with trainer(tmp_path, llama, spec(), free_port()) as (client, _):
        client.do("load", version=1, path=str(folder))
        assert client.status().trained == metrics, "the result survives in the checkpoint"
        assert client.export(1).checksum == after.checksum
        client.train(second)
        assert client.export(2).checksum == expected, "a new process makes the same version, bit for bit"

    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())


@pytest.mark.parametrize(("family", "tensor", "pipeline"), [("llama", 2, 1), ("qwen2", 1, 2)], ids=["tensors", "stages"])
def test_two_ranks_do_what_one_does(
    family: str,
    tensor: int,
    pipeline: int,
    tmp_path: Path,
    make_model: Callable[..., Path],
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    free_port: Callable[[], int],
) -> None:
    model = make_model(family)
    algorithm = {"tau": 0.1, "stepsPerIteration": 2, "resetOptimizer": False}
    common = {"precision": "fp32", "microBatchTokens": 64, "optimizer": {"learningRate": 1e-3}}
    alone = spec(algorithm=algorithm, trainer=common)
    both = spec(algorithm=algorithm, trainer={**common, "tensorParallel": tensor, "pipelineParallel": pipeline}, accelerator={"perNode": 2})
    batches = [batch(version=1), batch(version=2, seed=1)]
    with trainer(tmp_path / "one", model, alone, free_port()) as (client, _):
        client.do("load", version=0, path=str(model))
        expected = [TrainMetrics.model_validate_json(client.train(b, steps=2).content) for b in batches]
        canary = client.export(2).canary
    with trainer(tmp_path / "two", model, both, free_port()) as (client, _):
        client.do("load", version=0, path=str(model))
        original, exported = load_file(model / "model.safetensors"), client.export(0)
        arena = load_file(client.shm / "arena")
        assert all(torch.equal(original[name], arena[name]) for name in original)
        found = [TrainMetrics.model_validate_json(client.train(batches[0], steps=2).content)]
        client.do("checkpoint", version=1, path=str(client.checkpoints / "version-000001"))
        client.do("offload")
        client.do("onload")
        found.append(TrainMetrics.model_validate_json(client.train(batches[1], steps=2).content))
        two = client.export(2)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
            assert ours.kl == pytest.approx(theirs.kl, rel=1e-2)
        assert np.abs(np.array(two.canary.logprobs) - np.array(canary.logprobs)).max() < 1e-3
        assert exported.checksum != two.checksum
        wrong = client.post("load", version=3, path=str(client.checkpoints / "version-000001"))
        assert wrong.status_code == 409, wrong.text
    with trainer(tmp_path / "one", model, alone, free_port()) as (client, _):  # another size takes over
        client.do("load", version=1, path=str(tmp_path / "two" / "checkpoints" / "version-000001"))
        resumed = TrainMetrics.model_validate_json(client.train(batches[1], steps=2).content)
        assert resumed.loss == pytest.approx(expected[1].loss, rel=1e-4)
        assert np.abs(np.array(client.export(2).canary.logprobs) - np.array(canary.logprobs)).max() < 1e-3


def test_a_model_of_an_unknown_family_is_refused_with_one_line(
    tmp_path: Path, spec: Callable[..., RLJobSpec], free_port: Callable[[], int]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(AssertionError, match=r"error: .*mamba"), trainer(tmp_path, model, spec(), free_port()):
        pass


def test_when_rank_0_dies_the_others_end(tmp_path: Path, llama: Path, spec: Callable[..., RLJobSpec], free_port: Callable[[], int]) -> None:
    with trainer(tmp_path, llama, spec(accelerator={"perNode": 2}), free_port()) as (_, processes):
        processes[0].kill()
        assert processes[1].wait(timeout=60) != 0
