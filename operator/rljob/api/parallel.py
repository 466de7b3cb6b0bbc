"""Parallel sizes and models: what can be divided by what. The API alone cannot know, since a job only names its model; whoever has read
the model asks here: `rljob validate`, `plan` and `run`, the init container `prepare`, and the trainer itself.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rljob.api.algorithm import RolloutSpec, TrainerSpec
from rljob.api.platform import AcceleratorSpec


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


_MOST_PER_NODE = 64
"""`accelerator.perNode` can be no more."""
_DIVIDES_THE_REST = {"tensor_parallel": "context_parallel", "pipeline_parallel": "virtual_pipeline_parallel"}
"""Sizes, and those that divide what they leave."""


def trainer_misfits(model: Divisible, spec: TrainerSpec, ranks: int) -> list[str]:
    """Why a trainer of so many ranks cannot divide the model like this: one line for each field, with the nearest sizes that work while
    the others stay as they are."""
    why = dict(_unshared(model, spec, ranks))
    return [_line(TrainerSpec, field, getattr(spec, field), why[field], _trainer_remedy(model, spec, ranks, field, why)) for field in why]


def _unshared(model: Divisible, spec: TrainerSpec, ranks: int) -> Iterator[tuple[str, str]]:
    """Fields whose sizes do not divide what the model has, and what that is."""
    tensor, stages, context, expert = spec.tensor_parallel, spec.pipeline_parallel, spec.context_parallel, spec.expert_parallel
    heads, kv_heads, of_stage = model.heads // tensor, model.kv_heads // tensor, ranks // stages
    if model.heads % tensor or model.kv_heads % tensor or model.ffn % tensor:
        shared = _heads(model) + (f" and a feed-forward size of {model.ffn}" if model.ffn else "")
        yield "tensor_parallel", f"{shared}, all of which must be multiples of it"
    elif heads % context or (kv_heads % context and context % kv_heads):
        of_rank = f"of which a tensor parallel rank has {heads} and {kv_heads}"
        yield "context_parallel", f"{_heads(model)}, {of_rank}, to be shared out evenly"
    if model.layers % stages:
        yield "pipeline_parallel", f"{model.layers} layers, as many in every stage"
    elif model.layers % (stages * spec.virtual_pipeline_parallel) or spec.virtual_pipeline_parallel > 1 == stages:
        yield "virtual_pipeline_parallel", f"{model.layers} layers, as many in every chunk of every stage"
    if not model.experts and expert > 1:
        yield "expert_parallel", "no experts"
    elif model.experts and (model.experts % expert or of_stage % expert):
        shared = f"{of_stage} ranks (tensor × context × data parallel size)"
        yield "expert_parallel", f"{model.experts} experts in a layer, for {shared}, both of which must be multiples of it"


def _trainer_remedy(model: Divisible, spec: TrainerSpec, ranks: int, field: str, misfits: Iterable[str]) -> str:
    others = {*misfits} - {field}
    works, elsewhere = list[int](), dict[int, str]()
    for size in range(1, max(model.layers, model.heads, model.experts) + 1):
        changed = spec.model_copy(update={field: size})
        per_node = _per_node(changed)
        if per_node <= _MOST_PER_NODE and dict(_unshared(model, changed, per_node * spec.nodes)).keys() <= others:
            elsewhere[size] = f"a multiple of {per_node}"
            if ranks // spec.nodes % per_node == 0:
                works.append(size)
    if not elsewhere:
        return f"set it and {_named(TrainerSpec, _DIVIDES_THE_REST[field])} to 1"
    return f"set it to {_sizes(getattr(spec, field), works, elsewhere)}"


def _per_node(spec: TrainerSpec) -> int:
    """What `accelerator.perNode` must be a multiple of."""
    stages = spec.pipeline_parallel
    ranks = math.lcm(spec.tensor_parallel * stages * spec.context_parallel, stages * spec.expert_parallel)
    return math.lcm(ranks // math.gcd(ranks, spec.nodes), spec.tensor_parallel)


_CPU_BLOCK = 32
"""vLLM 0.32, fused_moe/experts/cpu_moe.py. It fills the experts that it starts with up to a multiple, and then takes no others."""


def engine_misfits(model: Divisible, spec: RolloutSpec, accelerator: AcceleratorSpec) -> list[str]:
    """Why a rollout engine cannot. vLLM repeats key/value heads where there are fewer than ranks, and splits every expert; if its CPU
    build has no kernels for them, it says so itself only when the trainer is up already."""
    size, per_node = spec.tensor_parallel, accelerator.per_node
    widths = [width for width in (model.ffn, model.expert_ffn) if width]
    heads = [n for n in range(1, model.heads + 1) if not (model.heads % n or (model.kv_heads % n and n % model.kv_heads))]
    divides = [n for n in heads if not any(width % n for width in widths)]
    runs = [n for n in divides if accelerator.type != "cpu" or not model.experts or not _cpu_rest(model, n)]
    nodes = {n: per_node * math.ceil(n / per_node) for n in runs or divides}  # multiples, so that the trainer's sizes stay possible
    elsewhere = {n: str(more) for n, more in nodes.items() if more <= _MOST_PER_NODE}
    sizes = _sizes(size, [n for n in elsewhere if n <= per_node], elsewhere)
    lines = []
    if size not in divides:
        shared = f"{_heads(model)} and a feed-forward size of {' and '.join(map(str, widths))}"
        lines.append(_line(RolloutSpec, "tensor_parallel", size, shared, f"set it to {sizes}"))
    if size not in runs and (size in divides or not runs):
        remedy = f"set {_named(RolloutSpec, 'tensor_parallel')} to {sizes}, " if runs else ""
        here = f"experts of size {model.expert_ffn // size} on each of {size} rollout ranks"
        lines.append(
            f"the model has a hidden size of {model.hidden} and {here}, but vLLM's experts on CPU need multiples of {_CPU_BLOCK}; "
            f"{remedy}take another model, or set spec.accelerator.type to nvidia"
        )
    return lines


def _cpu_rest(model: Divisible, ranks: int) -> int:
    return model.hidden % _CPU_BLOCK or model.expert_ffn // ranks % _CPU_BLOCK


def _heads(model: Divisible) -> str:
    return f"{model.heads} attention heads, {model.kv_heads} key/value heads"


def _named(part: type[TrainerSpec] | type[RolloutSpec], field: str) -> str:
    return f"spec.{'trainer' if part is TrainerSpec else 'rollout'}.{part.model_fields[field].alias}"


def _line(part: type[TrainerSpec] | type[RolloutSpec], field: str, size: int, why: str, remedy: str) -> str:
    return f"{_named(part, field)} is {size}, but the model has {why}; {remedy}"


def _sizes(size: int, works: Sequence[int], elsewhere: Mapping[int, str]) -> str:
    """The nearest that work; if that is 1 alone, also one that would with the `accelerator.perNode` that stands beside it."""
    more = nearest(size, [n for n in elsewhere if n > 1])
    if any(n > 1 for n in works) or not more:
        return " or ".join(map(str, nearest(size, works or elsewhere)))
    other = f"{more[0]} with spec.accelerator.perNode at {elsewhere[more[0]]}"
    return f"1, or to {other}" if works else other


def nearest(size: int, works: Iterable[int]) -> list[int]:
    """`size` if it works, else the largest below it and the smallest above it that do."""
    known = list(works)
    if size in known:
        return [size]
    below, above = [n for n in known if n < size], [n for n in known if n > size]
    return [*sorted(below)[-1:], *sorted(above)[:1]]
