"""What makes an engine's start on CPU cheap (vLLM 0.32.0); installed in the zygote, so that every fork has it.

A forked engine used to spend two processor seconds before it answered. Most of that prepared what is thrown away or what every engine does
alike: random dummy weights that the first version replaces, zeros in a KV cache whose pages the kernel hands out zeroed anyway, and a
search through every module for Triton kernels to replace. And `import vllm` loads all of torch's compiler, one processor second in ten,
to mend it (`vllm.env_override`), where nothing is ever compiled.
"""

import importlib
import mmap
import sys
import types
from typing import Any

import torch

FRESH = 16 << 20
"""Bytes from which zeros come from fresh pages."""


def without_compiler() -> None:
    """Do not load torch's compiler. Before vLLM is imported, with TORCHDYNAMO_DISABLE=1."""
    stub: Any = types.ModuleType("vllm.env_override")
    stub._apply_constrain_to_fx_strides_patch = _nothing
    sys.modules.setdefault(stub.__name__, stub)


def install() -> None:
    """Do it in this process and in its forks; repeated: nothing. All modules that an engine needs must have been imported."""
    loader: Any = importlib.import_module("vllm.model_executor.model_loader.dummy_loader")
    worker: Any = importlib.import_module("vllm.v1.worker.utils")
    platform: Any = importlib.import_module("vllm.platforms.cpu").CpuPlatform
    if loader.initialize_single_dummy_weight is _leave:
        return
    loader.initialize_single_dummy_weight = _leave
    worker.torch = LazyZeros("torch")
    platform.register_triton_kernel_overrides()  # finds every copy of a kernel; what is imported later copies the replacement
    platform.register_triton_kernel_overrides = classmethod(_nothing)


def fresh_zeros(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros, [size], of pages that become memory when they are first touched.

    Not huge ones: with memory full of cached files the kernel was seen to spend ten times as long on finding them as they saved.
    """
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype=dtype)


class LazyZeros:
    """`torch` as `vllm.v1.worker.utils` sees it, where it allocates the KV cache: its one large tensor of zeros is not written."""

    def __init__(self, module: str) -> None:
        self._module = importlib.import_module(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def zeros(self, *size: Any, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        count = size[0] if len(size) == 1 else None
        on_cpu = torch.device(device or "cpu").type == "cpu"
        if on_cpu and isinstance(count, int) and count * dtype.itemsize >= FRESH:
            return fresh_zeros(count, dtype)
        return torch.zeros(*size, dtype=dtype, device=device)


def _leave(*_arguments: Any, **_keywords: Any) -> None:
    """In place of drawing random numbers: nobody computes with dummy weights."""


def _nothing(*_arguments: Any) -> None:
    """Done already, or never needed."""
