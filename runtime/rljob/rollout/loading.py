"""Put named tensors into a vLLM model, after proving that they are all of it.

vLLM fuses tensors (q, k and v into one parameter), accepts incomplete sets silently, and knows the mapping only in its models'
`load_weights`. So that method is run once with recording loaders: it says which tensors go where without writing anything.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rljob.checkpoint_engine.arena import WeightsRefused
from rljob.rollout import linear

PROOF = {False: 1, True: 2}
"""How often the canary's forward pass calls a linear layer, by whether it is the output layer: for its log-probs, and to sample a token."""
_EXPERTS = {"w13_weight": 2, "w2_weight": 1}
"""Parameters that hold all experts of a layer, one after the other, and how many tensors of each they hold."""
EXPERT_PLACE = "_map_global_expert_id_to_local_expert_id"
"""Method of vLLM's RoutedExperts: where this rank has an expert, -1 if another rank has it."""
Named = Iterable[tuple[str, torch.Tensor]]
Loader = Callable[..., Any]


@dataclass(frozen=True)
class Piece:
    """One tensor on its way into one parameter."""

    tensor: torch.Tensor
    arguments: tuple[Any, ...]
    """All arguments of the parameter's loader: the parameter, the tensor, and perhaps which part it is, such as `"q"`."""
    keywords: dict[str, Any]
    loader: Loader


@dataclass(frozen=True)
class Layout:
    """Shapes and types of a model's parameters as they were when it was built: packing empties some."""

    shapes: dict[str, torch.Size]
    dtypes: dict[str, torch.dtype]

    @staticmethod
    def of(model: torch.nn.Module) -> "Layout":
        parameters = dict(model.named_parameters())
        return Layout({n: p.shape for n, p in parameters.items()}, {n: p.dtype for n, p in parameters.items()})


def record(model: Any, tensors: Named) -> dict[str, list[Piece]]:
    """Which tensors go into which parameter, in the order of loading; nothing is written.

    Raises:
        WeightsRefused: the model does not know a tensor.
    """
    found: dict[str, list[Piece]] = {name: [] for name, _ in model.named_parameters()}
    with _recording(model, found):
        try:
            model.load_weights(iter(tensors))
        except (KeyError, ValueError) as error:
            raise WeightsRefused(f"the engine's model does not know these weights: {error}") from error
    return found


@contextmanager
def _recording(model: torch.nn.Module, found: dict[str, list[Piece]]) -> Iterator[None]:
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    def recorder(name: str, original: Loader) -> Loader:
        place = getattr(model.get_submodule(name.rpartition(".")[0]), EXPERT_PLACE, None)

        def note(*arguments: Any, **keywords: Any) -> bool:
            if place is not None and "expert_id" in keywords and place(keywords["expert_id"]) == -1:
                return False  # with expert parallelism another rank has this expert
            tensor = arguments[1] if len(arguments) > 1 else keywords["loaded_weight"]
            found[name].append(Piece(tensor, arguments, keywords, original))
            return True

        return note

    originals: list[tuple[Any, Loader | None]] = [(p, getattr(p, "weight_loader", None)) for p in model.parameters()]
    named: list[tuple[str, Any]] = list(model.named_parameters())
    for name, parameter in named:
        parameter.weight_loader = recorder(name, getattr(parameter, "weight_loader", default_weight_loader))
    try:
        yield
    finally:
        for parameter, original in originals:
            if original is None:
                del parameter.weight_loader
            else:
                parameter.weight_loader = original


def refuse_incomplete(model: Any, layout: Layout, pieces: dict[str, list[Piece]], world: int) -> None:
    """Check that every parameter is written whole and once.

    With tensor parallelism a rank takes a part of each tensor, so there the number of pieces is compared instead of their size.

    Raises:
        WeightsRefused: names the first parameters that are not.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    vocabulary = {name: rows for name, rows in _vocabularies(model)}
    problems = []
    for name, parts in pieces.items():
        shape = layout.shapes[name]
        if world > 1:
            wanted = (
                _EXPERTS[last] * shape[0] if (last := name.split(".")[-1]) in _EXPERTS else len(fused.get(name.split(".")[-2], (name,)))
            )
            complete = len(parts) == wanted
            have = f"{len(parts)} of {wanted} tensors"
        else:
            rows = vocabulary.get(name, shape[0] if shape else 1)
            total = rows * (shape.numel() // shape[0] if shape and shape[0] else 1)
            count = sum(part.tensor.numel() for part in parts)
            complete = count == total
            have = f"{count} of {total} numbers"
        if not complete:
            problems.append(f"{name} gets {have}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsRefused(f"these weights are not the whole model: {'; '.join(problems[:3])}{more}")


def _vocabularies(model: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Embedding parameters, which vLLM pads, and their number of real rows."""
    for name, module in model.named_modules():
        rows = getattr(module, "org_vocab_size", None)
        if isinstance(rows, int):
            yield f"{name}.weight", rows


def in_place(model: Any, tensors: Named) -> None:
    """Copy into the parameters where they are: addresses stay, so CUDA graphs stay valid."""
    with torch.no_grad():
        model.load_weights(iter(tensors))


def adopt(model: torch.nn.Module, layout: Layout, pieces: dict[str, list[Piece]], share: bool, threads: int | None = None) -> None:
    """CPU: make parameters of memory that is read where it lies, wherever a parameter's pieces lie side by side there.

    Args:
        share: keep reading that memory. False: pack and copy now, after which it may change.
        threads: if given, the next forward pass computes on one thread and what comes after it on so many.
    """
    adopted: set[str] = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            whole = _side_by_side(pieces[name], layout.shapes[name], layout.dtypes[name])
            if whole is None:
                parameter.data = torch.zeros(layout.shapes[name], dtype=layout.dtypes[name])
                for piece in pieces[name]:
                    piece.loader(*piece.arguments, **piece.keywords)
            else:
                parameter.data = whole
                adopted.add(name)
        packed = _use_packed(model, share, threads)
        if not share:
            for name, parameter in model.named_parameters():
                if parameter in packed:
                    parameter.data = torch.empty(0, dtype=parameter.dtype)
                elif name in adopted:
                    parameter.data = parameter.data.clone()


def _use_packed(model: torch.nn.Module, lazy: bool, threads: int | None = None) -> set[torch.nn.Parameter]:
    """Give every linear layer its kernel; the weights that nobody else reads once they are packed. `threads` as in `adopt`: the output
    layer, which is called last, ends the pass on one thread, so that no kernel finds another number than it was prepared for."""
    packed: set[torch.nn.Parameter] = set()
    proven = {} if threads is None else {"proven": partial(linear.set_threads, threads)}
    for module in model.modules():
        if linear.is_linear(module) and not getattr(module, "_cpu_skip_gemm_dispatch", False):
            embedding = hasattr(module, "org_vocab_size")  # looked up by row too, and perhaps never multiplied with
            weight: Any = module.weight
            linear.use(module, weight, PROOF[embedding] if lazy or embedding else 0, **(proven if embedding else {}))
            if not embedding:
                packed.add(weight)
            elif threads is not None:
                linear.set_threads(1)
    return packed


def _side_by_side(pieces: list[Piece], shape: torch.Size, dtype: torch.dtype) -> torch.Tensor | None:
    """The pieces as one tensor without copying, if they lie one after the other in memory and make up `shape`."""
    first = pieces[0].tensor
    at, rows = first.data_ptr(), 0
    for piece in pieces:
        tensor = piece.tensor
        fits = tensor.dtype == dtype and tensor.is_contiguous() and tensor.shape[1:] == shape[1:] and tensor.data_ptr() == at
        if not fits:
            return None
        at += tensor.nbytes
        rows += tensor.shape[0]
    if rows != shape[0]:
        return None
    strides = torch.empty(shape, device="meta").stride()
    return torch.as_strided(first, shape, strides)


def layerwise(model: Any, model_config: Any, layout: Layout, tensors: list[tuple[str, torch.Tensor]], world: int) -> None:
    """vLLM's own reload, for models whose weights are transformed after loading (mixture of experts, quantisation).

    On CPU two things are put right that vLLM 0.32 leaves stale: the kernel of a tied lm_head, and packed experts
    (unquantized_fused_moe_method.py skips them on updates).
    """
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}
    initialize_layerwise_reload(model)  # which takes a tied lm_head for a parameter of its own, until the end
    try:
        found = record(model, tensors)
        refuse_incomplete(model, Layout.of(model), {name: parts for name, parts in found.items() if name not in tied}, world)
        model.load_weights(iter(tensors))
    finally:  # with nothing loaded this puts the old weights back
        finalize_layerwise_reload(model, model_config)
    if next(model.parameters()).device.type == "cpu":
        _use_packed(model, lazy=False)
        for module in model.modules():
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            if kernel is not None:
                kernel.fused_experts.process_weights_after_loading(module)


def is_transformed(model: torch.nn.Module, model_config: Any) -> bool:
    """Whether parameters hold something else than what was loaded, so that only vLLM's own reload can write them."""
    return getattr(model_config, "quantization", None) is not None or any(hasattr(m, "w13_weight") for m in model.modules())
