"""The patches in rljob.trainer.cpu are still needed. A failure here means that upstream changed: remove the patch or follow it."""

import importlib.util
import re
from pathlib import Path

import pytest

CORE = Path(next(iter(importlib.util.find_spec("megatron.core").submodule_search_locations)))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("transformer/moe/ops/paged_stash.py", r"^import triton$"),
        ("transformer/moe/paged_stash.py", r"GLOBAL_BLOCK_SIZE,\s+paged_stash_copy_kernel,\s+paged_stash_pop_kernel,\s+\)"),
        ("distributed/param_and_grad_buffer.py", r"device=torch\.cuda\.current_device\(\)"),
        ("distributed/param_and_grad_buffer.py", r"current_stream = torch\.cuda\.current_stream\(\)"),
        ("tensor_parallel/random.py", r"def _get_cuda_rng_state\("),
        ("tensor_parallel/random.py", r"def _set_cuda_rng_state\("),
        ("tensor_parallel/random.py", r"torch\.cuda\.get_rng_state\("),
        ("optimizer/optimizer.py", r"device='cuda'"),
        ("optimizer/optimizer.py", r"param\.type\(\) == 'torch\.cuda\.FloatTensor'"),
        ("optimizer/clip_grads.py", r"param\.grad\.type\(\) == 'torch\.cuda\.FloatTensor'"),
        ("pipeline_parallel/schedules.py", r"torch\.zeros\(\[\], dtype=torch\.int, device=\"cuda\"\)"),
        (
            "transformer/moe/token_dispatcher.py",
            r"cuda_dtoh_stream is None:\s+MoEAlltoAllTokenDispatcher\.cuda_dtoh_stream = torch\.cuda\.Stream",
        ),
        ("transformer/moe/token_dispatcher.py", r"with torch\.cuda\.stream\(self\.cuda_dtoh_stream\):"),
        ("transformer/moe/moe_utils.py", r"if torch\.is_tensor\(tensor\) and tensor\.is_cuda:"),
        (
            "transformer/moe/moe_layer.py",
            r"self\.training and self\.attn_tp_group\.size\(\) > 1 and not self\.config\.sequence_parallel:\s+raise",
        ),
        ("jit.py", r"jit_fuser = torch\.compile"),
        ("models/hybrid/hybrid_block.py", r"self\.final_norm = TENorm\("),
    ],
)
def test_upstream_still_has_the_line_that_is_worked_around(file: str, line: str) -> None:
    assert re.search(line, (CORE / file).read_text(), re.MULTILINE), f"megatron/core/{file} no longer has {line}"


def test_installing_twice_changes_nothing() -> None:
    import torch

    from rljob.trainer import cpu

    cpu.install()
    first = torch.cuda.current_device()
    cpu.install()
    assert torch.cuda.current_device() == first == "cpu"  # type: ignore[comparison-overlap]


def test_what_megatron_would_compile_stays_as_it_is_written() -> None:
    import torch

    from rljob.trainer import cpu

    compiler = torch.compile
    cpu.install()
    from megatron.core import jit

    function = test_installing_twice_changes_nothing
    assert jit.jit_fuser(function) is function
    assert torch.compile is compiler
