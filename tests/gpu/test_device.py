"""What the NVIDIA device asks of CUDA, against a twin of CUDA's run-time: no GPU is needed, and nothing is said of one."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rljob.api import InfrastructureError
from rljob.trainer.device import Cpu, Nvidia, choose, precision
from rljob.trainer.offload import Offloader

MiB = 1 << 20


class Runtime:
    """The calls of libcudart that are used, and what they were called with."""

    def __init__(self, failure: int = 0) -> None:
        self.failure = failure
        self.registered: dict[int, int] = {}
        self.calls: list[str] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert flags == 0
        if not self.failure:
            self.registered[address] = size
        return self.failure

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    twin = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: twin)
    return twin


def test_a_host_buffer_is_registered_once_at_its_exact_size_and_can_be_given_back(runtime: Runtime, tmp_path: Path) -> None:
    device = Nvidia(0)
    size = 3 * MiB + 4096
    buffer = device.host_buffer(size, tmp_path)
    assert (buffer.dtype, buffer.numel()) == (torch.uint8, size)
    assert runtime.registered == {buffer.data_ptr(): size}
    buffer.fill_(7)
    assert int(buffer[-1]) == 7
    assert list(tmp_path.iterdir()) == []
    device.unregister(buffer)
    assert runtime.registered == {}


def test_a_buffer_that_grows_gives_the_smaller_one_back_first(runtime: Runtime, tmp_path: Path) -> None:
    """Registered memory that is unmapped stays pinned, and whatever is mapped there next cannot be registered."""
    held: list[torch.Tensor] = []
    optimizer = SimpleNamespace(megatron=SimpleNamespace(zero_grad=lambda: None), tensors=lambda: iter(held))
    device = Nvidia(0)
    replica = SimpleNamespace(optimizer=optimizer, chunks=(), device=device, parameters=lambda: (), follow_masters=lambda: None)
    device.synchronize = device.release = lambda: None  # type: ignore[method-assign]
    offloader = Offloader(cast(Any, replica), tmp_path)
    for size, registered in ((4096, 4096), (8192, 8192), (4096, 8192)):
        held[:] = [torch.ones(size, dtype=torch.uint8)]
        offloader.offload()
        assert list(runtime.registered.values()) == [registered]
        offloader.onload()
        assert int(held[0].sum()) == size


def test_memory_that_cannot_be_registered_is_a_failure_of_ours_with_the_likely_cause(runtime: Runtime) -> None:
    runtime.failure = 2
    with pytest.raises(
        InfrastructureError, match=r"cudaHostRegister of 4096 bytes failed with error 2: is the pod's memory limit too low\?"
    ):
        Nvidia(0).register(torch.zeros(4096, dtype=torch.uint8))


def test_the_cublas_workspace_is_cleared_before_the_cache_that_it_pins(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: runtime.calls.append("workspaces"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: runtime.calls.append("cache"))
    Nvidia(0).release()
    assert runtime.calls == ["workspaces", "cache"]


def test_each_rank_has_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    device = choose("nvidia", 3)
    assert isinstance(device, Nvidia)
    assert (device.device, device.backend, device.unified) == (torch.device("cuda", 3), "nccl", False)
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device.synchronize()
    assert waited == [torch.device("cuda", 3)]


def test_what_tensors_take_of_the_accelerator_is_measured_from_what_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    device, peaks = Nvidia(3), [90 * MiB]  # of the training before
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 40 * MiB if d == device.device else 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: peaks.append(40 * MiB) if d == device.device else None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda d: peaks[-1] if d == device.device else 0)
    assert device.watch()().accelerator == 0
    taken = device.watch()
    peaks.append(47 * MiB)
    assert taken().accelerator == 7 * MiB


@pytest.mark.parametrize(
    ("wanted", "hardware", "found"), [("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", False, "bf16"), ("fp32", True, "fp32")]
)
def test_precision_is_what_was_asked_for_or_what_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, wanted: str, hardware: bool, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation)
    assert precision(wanted, Nvidia(0)) == found


PREPARE = """
import contextlib, json, os, torch
from rljob.trainer.device import Nvidia
chosen = []
torch.cuda.set_device = chosen.append
device = Nvidia(1)
device.prepare()
with device.megatron(), device.undisturbed():
    threads = torch.get_num_threads()
print(json.dumps({
    "chosen": [str(d) for d in chosen],
    "connections": os.environ["CUDA_DEVICE_MAX_CONNECTIONS"],
    "workspace": os.environ["CUBLAS_WORKSPACE_CONFIG"],
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "cuda": torch.cuda.is_initialized(),
}))
"""


def test_a_trainer_process_is_made_ready_before_megatron_is_imported() -> None:
    """In a process of its own, because it changes how all of torch computes."""
    done = subprocess.run([sys.executable, "-c", PREPARE], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == {
        "chosen": ["cuda:1"],
        "connections": "1",
        "workspace": ":4096:8",
        "deterministic": True,
        "cuda": False,
    }


@pytest.mark.parametrize("method", [name for name in vars(Cpu) if not name.startswith("_")])
def test_both_kinds_of_device_offer_the_same(method: str) -> None:
    assert hasattr(Nvidia(0), method)
