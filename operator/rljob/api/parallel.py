"""Parallel sizes and models: what can be divided by what. The API alone cannot know, since a job only names its model; whoever has read
the model asks here: `rljob validate`, `plan` and `run`, the init container `prepare`, and the trainer itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rljob.api.algorithm import RolloutSpec, TrainerSpec


@dataclass(frozen=True)
class Divisible:
    """What parallel ranks share out among themselves."""

    layers: int
    heads: int
    kv_heads: int
    ffn: int
    """Feed-forward size that tensor parallel ranks of the trainer split; of a mixture of experts the shared expert's, 0 if it has none."""
    hidden: int
    experts: int = 0
    """Experts of a layer; 0: a dense model."""
    expert_ffn: int = 0
    """Feed-forward size of an expert, which is whole on the trainer's ranks that have it, and which vLLM splits."""


def trainer_misfits(model: Divisible, spec: TrainerSpec, ranks: int) -> list[str]:
    """Why a trainer of so many ranks cannot divide the model like this: one line for each field, with the nearest sizes that work."""
    shared = _heads(model) + (f" and a feed-forward size of {model.ffn}" if model.ffn else "")
    tensor = [n for n in range(1, model.kv_heads + 1) if not (model.heads % n or model.kv_heads % n or model.ffn % n)]
    stages = [n for n in range(1, model.layers + 1) if not model.layers % n]
    return [
        *_misfit("trainer.tensorParallel", spec.tensor_parallel, tensor, f"{shared}, all of which must be multiples of it"),
        *_misfit("trainer.pipelineParallel", spec.pipeline_parallel, stages, f"{model.layers} layers, as many in every stage"),
        *(_chunk_misfits(model, spec) if spec.pipeline_parallel in stages else ()),
        *(_context_misfits(model, spec) if spec.tensor_parallel in tensor else ()),
        *_expert_misfits(model, spec, ranks // spec.pipeline_parallel),
    ]


def _context_misfits(model: Divisible, spec: TrainerSpec) -> list[str]:
    heads, kv_heads = (count // spec.tensor_parallel for count in (model.heads, model.kv_heads))
    works = [n for n in range(1, heads + 1) if not (heads % n or (kv_heads % n and n % kv_heads))]
    why = f"{_heads(model)}, of which a tensor parallel rank has {heads} and {kv_heads}, to be shared out evenly"
    return _misfit("trainer.contextParallel", spec.context_parallel, works, why)


def _chunk_misfits(model: Divisible, spec: TrainerSpec) -> list[str]:
    works = [n for n in range(1, model.layers + 1) if not model.layers % (n * spec.pipeline_parallel)]
    why = f"{model.layers} layers, as many in every chunk of every stage"
    return _misfit("trainer.virtualPipelineParallel", spec.virtual_pipeline_parallel, works, why)


def _expert_misfits(model: Divisible, spec: TrainerSpec, ranks: int) -> list[str]:
    """`ranks`: those of a stage, over which its experts can be spread."""
    if not model.experts:
        return _misfit("trainer.expertParallel", spec.expert_parallel, [1], "no experts")
    works = [n for n in range(1, ranks + 1) if not (model.experts % n or ranks % n)]
    shared = f"{ranks} ranks (tensor × context × data parallel size)"
    why = f"{model.experts} experts in a layer, for {shared}, both of which must be multiples of it"
    return _misfit("trainer.expertParallel", spec.expert_parallel, works, why)


def engine_misfits(model: Divisible, spec: RolloutSpec) -> list[str]:
    """Why a rollout engine cannot. vLLM repeats key/value heads where there are fewer than ranks, and splits every expert."""
    widths = [width for width in (model.ffn, model.expert_ffn) if width]
    heads = [n for n in range(1, model.heads + 1) if not (model.heads % n or (model.kv_heads % n and n % model.kv_heads))]
    tensor = [n for n in heads if not any(width % n for width in widths)]
    shared = f"{_heads(model)} and a feed-forward size of {' and '.join(map(str, widths))}"
    return _misfit("rollout.tensorParallel", spec.tensor_parallel, tensor, shared)


_CPU_BLOCK = 32
"""vLLM 0.32, fused_moe/experts/cpu_moe.py. It fills the experts that it starts with up to a multiple, and then takes no others."""


def cpu_engine_misfits(model: Divisible, spec: RolloutSpec) -> list[str]:
    """Why vLLM's CPU build has no kernels for the model's experts: what it says itself only when the trainer is up already."""
    width = model.expert_ffn // spec.tensor_parallel
    if not model.experts or not (model.hidden % _CPU_BLOCK or width % _CPU_BLOCK):
        return []
    return [
        f"the model has a hidden size of {model.hidden} and experts of size {width} on each of {spec.tensor_parallel} rollout ranks, "
        f"but vLLM's experts on CPU need multiples of {_CPU_BLOCK}; take another model, or set spec.accelerator.type to nvidia"
    ]


def _heads(model: Divisible) -> str:
    return f"{model.heads} attention heads, {model.kv_heads} key/value heads"


def _misfit(field: str, size: int, works: Iterable[int], why: str) -> list[str]:
    near = nearest(size, works)
    return [] if size in near else [f"spec.{field} is {size}, but the model has {why}; set it to {' or '.join(map(str, near))}"]


def nearest(size: int, works: Iterable[int]) -> list[int]:
    """`size` if it works, else the largest below it and the smallest above it that do."""
    known = list(works)
    if size in known:
        return [size]
    below, above = [n for n in known if n < size], [n for n in known if n > size]
    return [*sorted(below)[-1:], *sorted(above)[:1]]
