"""Linear layers on CPU that can take new weights: the one place where vLLM is patched there (vLLM 0.32.0).

vLLM's CPU back-end packs every linear weight into a oneDNN handle when a model is loaded and leaves `layer.weight` empty
(model_executor/layers/utils.py, dispatch_cpu_unquantized_gemm with remove_weight=True), so that new weights have nowhere to go, and a tied
lm_head silently keeps its old handle. `install` makes it keep the weights, as on a GPU; `use` then gives a layer the same packed oneDNN
kernel, whenever its weights change.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger("vllm.rljob")


def install() -> None:
    """Keep linear weights after loading. Must run before the model is built; repeated: nothing.

    Both switches only choose the kernel: with neither oneDNN nor the AMX kernel, vLLM calls torch's linear on the live weight, until `use`
    replaces that call.
    """
    ops: Any = importlib.import_module("vllm._custom_ops")
    layers: Any = importlib.import_module("vllm.model_executor.layers.utils")
    ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = _never


def installed() -> bool:
    """Whether `install` has run in this process or in the one it was forked from."""
    return bool(importlib.import_module("vllm.model_executor.layers.utils").check_cpu_sgl_kernel is _never)


def _never(n: int, k: int, dtype: torch.dtype) -> bool:
    return False


_PLAIN = object()
"""In place of a handler: packing is impossible."""


class PackedLinear:
    """`layer.cpu_linear` of one layer: reads the weight where it lies at first, then packs it for oneDNN.

    Packing costs about as much as reading the weight ten times and makes small batches twice as fast. Doing it later lets an engine prove
    which weights it holds (one forward pass) before it spends that time.
    """

    def __init__(self, weight: torch.Tensor, unpacked: int, proven: Callable[[], None]) -> None:
        self._handler: Any = None
        self._unpacked = unpacked
        self._proven = proven
        if not unpacked:
            self._pack(weight)

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._handler is None:
            if self._unpacked:
                self._unpacked -= 1
                product = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
                if not self._unpacked:
                    self._proven()
                return product
            self._pack(weight)
        if self._handler is _PLAIN:
            return torch.nn.functional.linear(x, weight, bias)
        return _ops().onednn_mm(self._handler, x, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        try:
            self._handler = _ops().create_onednn_mm(weight.t(), 32)
        except RuntimeError as error:  # oneDNN has no kernel for this shape, type and machine; vLLM falls back in the same way
            log.warning("oneDNN cannot pack a %s weight of shape %s, torch's kernel is used: %s", weight.dtype, list(weight.shape), error)
            self._handler = _PLAIN


def set_threads(count: int) -> None:
    """Compute with so many threads from now on. vLLM's CPU worker puts a function that does nothing in the place of `torch.set_num_threads`
    (v1/worker/cpu_worker.py) for the sake of threads that it has bound to cores; here none is (VLLM_CPU_OMP_THREADS_BIND=nobind)."""
    torch._C.set_num_threads(count)


def is_linear(layer: torch.nn.Module) -> bool:
    """Whether vLLM calls `layer.cpu_linear` with this layer's weight."""
    return hasattr(layer, "cpu_linear")


def _go_on() -> None:
    """Nothing has to be done after the last call that reads the weight where it lies."""


def use(layer: torch.nn.Module, weight: torch.Tensor, unpacked: int, proven: Callable[[], None] = _go_on) -> None:
    """Give `layer` the packed kernel for `weight`, which is packed after so many calls; until then it is read where it lies. `proven` is
    called after the last of them."""
    kernel: Any = PackedLinear(weight, unpacked, proven)
    layer.cpu_linear = kernel


def _ops() -> Any:
    return importlib.import_module("vllm._custom_ops")
