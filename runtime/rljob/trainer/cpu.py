"""What must be patched for Megatron-core 0.19.2 to run on a machine without CUDA and without Triton. The only file that patches.

Every patch names the upstream line that needs it. `install` is idempotent, changes nothing where CUDA or Triton is there, and must run
before Megatron is imported; `CudaMeansCpu` goes around calls into Megatron's optimizer and schedule. This is what tensor, pipeline, data
and expert parallelism need, and no more: sequence parallelism and the distributed optimizer have further needs.
"""

import importlib
import importlib.util
import sys
import types
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

STUB = "megatron.core.transformer.moe.ops.paged_stash"
_CUDA_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}


def install() -> None:
    """Apply every patch that this machine needs."""
    stub_triton()
    if not torch.cuda.is_available():
        _patch_torch_cuda()
        _import_uncompiled()
        _patch_random()
        _patch_dispatcher()


def stub_triton() -> None:
    """megatron/core/transformer/moe/ops/paged_stash.py:4 imports triton unguarded, on the path of every `import megatron.core`
    (pipeline_parallel/schedules.py:27). It serves a mixture-of-experts option that nothing here turns on."""
    if importlib.util.find_spec("triton") is not None or STUB in sys.modules:
        return
    stub = types.ModuleType(STUB)
    for name in ("GLOBAL_BLOCK_SIZE", "paged_stash_copy_kernel", "paged_stash_pop_kernel"):
        setattr(stub, name, None)
    sys.modules[STUB] = stub


def _import_uncompiled() -> None:
    """jit.py:25: some functions are decorated with `torch.compile`, which loads the compiler at once (a third of the time that the imports
    take) and would need a C++ compiler when they are called. They stay what they are written as."""
    compiler: Any = torch.compile
    torch.compile = lambda model=None, **options: model if model is not None else lambda each: each  # type: ignore[assignment]
    try:
        importlib.import_module("megatron.core")
    finally:
        torch.compile = compiler


def _patch_torch_cuda() -> None:
    """torch.cuda calls without a device.

    current_device: `device=torch.cuda.current_device()` in distributed/param_and_grad_buffer.py:1180,1186, utils.py:715.
    current_stream: distributed/param_and_grad_buffer.py:632.
    stream: transformer/moe/token_dispatcher.py:925.
    synchronize: pipeline_parallel/p2p_communication.py:263,419.
    get_rng_state, manual_seed: tensor_parallel/random.py:303-345, reached from recomputation.
    """
    cuda: Any = torch.cuda
    cuda.current_device = lambda: "cpu"
    cuda.current_stream = lambda *_: _NoStream()
    cuda.stream = lambda *_: nullcontext()
    cuda.synchronize = lambda *_: None
    cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    cuda.manual_seed = torch.manual_seed


def _patch_random() -> None:
    """tensor_parallel/random.py:490 and `checkpoint`: state of the CUDA generator, read and set through two private functions."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)


def _patch_dispatcher() -> None:
    """Mixture of experts, transformer/moe/token_dispatcher.py: the all-to-all dispatcher copies the numbers of tokens to the host on a
    stream of its own (`cuda_dtoh_stream`, made in its constructor), and moe_utils.py:1184 makes them numbers only if they are on a GPU;
    gloo's all_to_all_single takes nothing else."""
    from megatron.core.transformer.moe import token_dispatcher

    def as_numbers(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    token_dispatcher.maybe_move_tensor_to_cpu = as_numbers
    token_dispatcher.MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = _NoStream()


class _NoStream:
    """A stream, and an event of it, on which nothing is ever waited for."""

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def record_event(self) -> "_NoStream":
        return self

    def synchronize(self) -> None: ...


class CudaMeansCpu(TorchFunctionMode):
    """Literal devices and type names, while it is entered.

    `device='cuda'`: optimizer/optimizer.py:315,698,702, optimizer/clip_grads.py:96-180, pipeline_parallel/schedules.py:749.
    `param.type() == 'torch.cuda.FloatTensor'`: optimizer/optimizer.py:1009,1028, optimizer/clip_grads.py:174.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs = {**kwargs, "device": "cpu"}
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and len(args) == 1:
            return _CUDA_NAMES.get(result, result)
        return result
