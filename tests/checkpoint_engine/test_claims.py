"""What an agent expects trainer and engine to take, and of which devices."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint_engine.twins import GiB, Nvml

from rljob.api import ConfigurationError, RLJob
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.checkpoint_engine.__main__ import claims, device_memory, main, storage_seconds
from rljob.checkpoint_engine.gate import IDLE_CARD, Reading
from rljob.checkpoint_engine.state import Owner
from rljob.wire.data import Prepared

PREPARED = Prepared(
    model_type="qwen3_moe", eos_token_ids=(2,), vocab_size=192, context_length=2048, max_length=1024,
    parameters=32 * GiB, train=1, heldout=0, warmstart=0, digest="",
)  # fmt: skip


@dataclass
class Device:
    async def read(self, leaving: Owner) -> Reading:
        return Reading(80 * GiB, 0)

    def total(self) -> int:
        return 80 * GiB


def job(trainer: dict[str, Any] | None = None, extra_args: dict[str, str] | None = None) -> RLJob:
    spec = {
        "model": {"source": {"path": "model"}},
        "data": {"train": {"path": "train.jsonl"}},
        "accelerator": {"type": "nvidia", "perNode": 8},
        "trainer": trainer or {},
        "rollout": {"engine": {"extraArgs": extra_args or {}}},
    }
    return RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "claims"}, "spec": spec})


def claimed(of: RLJob) -> dict[Owner, int]:
    return claims(of, PREPARED, Path("model"), Device())


@pytest.mark.parametrize(("trainer", "gib"), [
    ({}, 512), ({"tensorParallel": 2, "pipelineParallel": 2}, 128), ({"tensorParallel": 2, "expertParallel": 4}, 64),
])  # fmt: skip
def test_a_trainers_claim_is_no_more_than_its_share_of_the_model(trainer: dict[str, int], gib: int) -> None:
    assert claimed(job(trainer))["trainer"] == (gib + 1) * GiB


def test_an_engine_claims_the_share_of_a_device_that_its_arguments_say() -> None:
    assert claimed(job())["engine"] == 68 * GiB
    assert claimed(job(extra_args={"gpu-memory-utilization": "0.5"}))["engine"] == 40 * GiB


def test_a_checkpoint_of_a_big_model_has_the_time_that_slow_storage_takes() -> None:
    assert storage_seconds(PREPARED) == 12 * 32 * GiB / 200e6


@pytest.mark.parametrize("share", ["half", "0", "50"])
def test_a_share_that_is_none_is_refused_with_the_field(share: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"rollout\.engine\.extraArgs\.gpu-memory-utilization is '{share}': say a share"):
        claimed(job(extra_args={"gpu-memory-utilization": share}))


def test_a_worker_whose_shared_memory_cannot_hold_the_weights_ends_before_anything_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(job().model_dump_json(by_alias=True))
    (tmp_path / "prepared.json").write_text(PREPARED.model_copy(update={"parameters": 1 << 50}).model_dump_json())
    folders = {f"RLJOB_DIR_{name}": str(tmp_path) for name in ("DATA", "SHM")}
    monkeypatch.setattr(os, "environ", {"RLJOB_JOB": str(tmp_path / "job.json"), "RLJOB_NODE": "worker-0", **folders})
    assert main() == EXIT_CONFIGURATION
    assert f"error: {tmp_path}/weights.safetensors needs 2097152.0 GiB, {tmp_path} has " in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "RLJOB_NODE", "rollout-0")
    assert main() == EXIT_CONFIGURATION
    assert "RLJOB_DIR_SOCKETS is not set" in capsys.readouterr().err, "the job goes on without a rollout node"


def test_an_agent_reads_the_devices_that_its_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([IDLE_CARD + number * GiB for number in range(10)]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert asyncio.run(device_memory(job(), {}).read("engine")).rest == 7 * GiB, "perNode is 8"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3,GPU-1")
    assert asyncio.run(device_memory(job(), {}).read("engine")).rest == 3 * GiB


def test_an_agent_beside_the_owner_of_the_devices_reads_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"RLJOB_DEVICES": "adopt", "RLJOB_DIR_SOCKETS": str(tmp_path)}
    monkeypatch.setattr(os, "environ", environ)
    (tmp_path / "devices").write_text("GPU-2")
    assert main() == EXIT_CONFIGURATION, "it has no job here"
    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-2"
