"""What makes an engine's start cheap does not change what it gets; that engines work with it is tested in test_engine.py."""

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
