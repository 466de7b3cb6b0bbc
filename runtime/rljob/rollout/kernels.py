"""What makes vLLM 0.32.0 faster on CPU without changing what it computes; installed in the zygote, so that every engine has it.

Two tenths of a generation step of a small model go into things that need not be: RMS norms as six torch calls although vLLM ships a C++
kernel for CPUs (kernels/vllm_c.py declares it for GPUs only), and the rank of every sampled token in the vocabulary, which
`v1/sample/sampler.py` computes for the log-probs' `rank` field that nobody here reads (without a compiler: two passes over all logits).
"""

import importlib
from typing import Any

import torch

PROVIDER = "rljob"
"""Name of our implementations of vLLM's operators."""


def install() -> None:
    """Use them in this process and in its forks. Must run before an engine is configured; repeated: nothing."""
    operators: Any = importlib.import_module("vllm.ir").ops
    if PROVIDER in operators.rms_norm.impls:
        return
    operators.rms_norm.register_impl(PROVIDER, supports_args=_norm_fits)(_rms_norm)
    operators.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_add_norm_fits, inplace=True)(_fused_add_rms_norm)
    platform: Any = importlib.import_module("vllm.platforms.cpu").CpuPlatform
    platform.get_default_ir_op_priority = classmethod(_priority)
    sampler: Any = importlib.import_module("vllm.v1.sample.sampler")
    sampler.batched_count_greater_than = _no_ranks


def _priority(_platform: Any, _config: Any) -> Any:
    config: Any = importlib.import_module("vllm.config.kernel").IrOpPriorityConfig
    return config.with_default(["native"], rms_norm=[PROVIDER, "native"], fused_add_rms_norm=[PROVIDER, "native"])


def _norm_fits(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> torch.Tensor:
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def _add_norm_fits(
    x: torch.Tensor, x_residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _norm_fits(x, weight, epsilon, variance_size) and x_residual.is_contiguous() and x_residual.dtype == x.dtype


def _fused_add_rms_norm(
    x: torch.Tensor, x_residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _no_ranks(logprobs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Every rank is 0: unknown."""
    return torch.zeros(logprobs.shape[0], dtype=torch.int64, device=logprobs.device)
