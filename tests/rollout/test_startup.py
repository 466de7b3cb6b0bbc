"""What makes an engine's start cheap does not change what it gets; that engines work with it is tested in test_engine.py."""

import subprocess
import sys

import torch

from rljob.rollout.startup import FRESH, LazyZeros, fresh_zeros


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_fresh_zeros_are_zeros_that_take_no_memory_until_they_are_used() -> None:
    before = resident_bytes()
    zeros = fresh_zeros(256 << 20, torch.int8)
    assert resident_bytes() - before < 32 << 20
    assert (zeros.shape, zeros.dtype) == ((256 << 20,), torch.int8)
    assert not zeros[:: 1 << 20].any()
    zeros[7] = 3
    assert zeros[:8].tolist() == [0] * 7 + [3]


def test_only_large_flat_zeros_on_cpu_are_fresh_and_all_else_is_torch() -> None:
    lazy = LazyZeros("torch")
    assert lazy.int8 is torch.int8
    for size in ((3,), (2, 3), (FRESH,)):
        found = lazy.zeros(*size, dtype=torch.int8, device=torch.device("cpu"))
        assert torch.equal(found, torch.zeros(*size, dtype=torch.int8))
    assert lazy.zeros(4, device="meta").device.type == "meta"


def test_vllm_is_imported_without_the_compiler() -> None:
    program = """
import sys
from rljob.rollout import startup
startup.without_compiler()
import vllm
from vllm.env_override import _apply_constrain_to_fx_strides_patch as patch
patch()
assert "torch" in sys.modules
print("torch._inductor.lowering" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
