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
    """Feed-forward size that tensor parallel ranks split; 0 if there is no such part."""


def trainer_misfits(model: Divisible, spec: TrainerSpec) -> list[str]:
    """Why the trainer cannot divide the model like this: one line for each field, with the nearest sizes that work."""
    shared = f"{model.heads} attention heads, {model.kv_heads} key/value heads and a feed-forward size of {model.ffn}"
    tensor = [n for n in range(1, model.kv_heads + 1) if not (model.heads % n or model.kv_heads % n or model.ffn % n)]
    stages = [n for n in range(1, model.layers + 1) if not model.layers % n]
    return [
        *_misfit("trainer.tensorParallel", spec.tensor_parallel, tensor, f"{shared}, all of which must be multiples of it"),
        *_misfit("trainer.pipelineParallel", spec.pipeline_parallel, stages, f"{model.layers} layers, as many in every stage"),
    ]


def engine_misfits(model: Divisible, spec: RolloutSpec) -> list[str]:
    """Why a rollout engine cannot. vLLM repeats key/value heads where there are fewer than ranks."""
    tensor = [n for n in range(1, model.heads + 1) if not (model.heads % n or model.ffn % n or (model.kv_heads % n and n % model.kv_heads))]
    shared = f"{model.heads} attention heads, {model.kv_heads} key/value heads and a feed-forward size of {model.ffn}"
    return _misfit("rollout.tensorParallel", spec.tensor_parallel, tensor, shared)


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
