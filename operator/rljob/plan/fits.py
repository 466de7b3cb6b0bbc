"""Does the job's model divide and reach as far as the job asks? For a model whose shape is known before anything starts."""

import math

from rljob.api import RLJob
from rljob.api.parallel import Divisible, engine_misfits, trainer_misfits
from rljob.plan.estimate import MiB, engine_bytes, parse_size
from rljob.plan.shape import ModelShape

BLOCK = {"cpu": 32, "nvidia": 16}
"""Tokens of a block of vLLM's KV cache: on CPU as `rljob.rollout.engine` sets it, on a GPU at least."""


def misfits(job: RLJob, shape: ModelShape | None) -> list[str]:
    """One line for each parallel size and length that the model does not allow, with what it does; none for an unknown shape."""
    if shape is None:
        return []
    sizes = shape.layers, shape.heads, shape.kv_heads, shape.shared_ffn if shape.experts else shape.ffn, shape.hidden
    model = Divisible(*sizes, shape.experts, shape.ffn if shape.experts else 0)
    return [
        *trainer_misfits(model, job.spec.trainer, job.spec.world_size),
        *engine_misfits(model, job.spec.rollout, job.spec.accelerator),
        *_too_long(job, shape.context),
        *_too_little_cache(job, shape),
    ]


def _too_long(job: RLJob, context: int) -> list[str]:
    """Where the prompts decide, `prepare` finds it."""
    longest, answer = job.spec.model.max_length, job.spec.rollout.max_tokens
    if context and longest is not None and longest > context:
        return [f"spec.model.maxLength is {longest}, but the model's context is {context}; lower it or leave it out"]
    if context and job.spec.generates and answer >= context:
        return [f"spec.rollout.maxTokens is {answer}, which leaves no room for a prompt in the model's context of {context}; lower it"]
    return []


def _too_little_cache(job: RLJob, shape: ModelShape) -> list[str]:
    """An engine does not start without room for its longest sequence, and one block that it keeps for itself."""
    engine, ranks = job.spec.rollout.engine, job.spec.rollout.tensor_parallel
    if engine.kv_cache_memory is None or not job.spec.generates or engine.extra_args.keys() & {"max-model-len", "kv-cache-dtype"}:
        return []
    block = BLOCK[job.spec.accelerator.type]
    longest = job.spec.model.max_length or job.spec.rollout.max_tokens + 1
    per_token = 2 * shape.layers * max(1, shape.kv_heads // ranks) * shape.head_size * engine_bytes(job)
    needed = (math.ceil(longest / block) + 1) * block * per_token
    if parse_size(engine.kv_cache_memory) >= needed:
        return []
    return [
        f"spec.rollout.engine.kvCacheMemory is {engine.kv_cache_memory}, but one sequence of {longest} tokens takes "
        f"{math.ceil(needed / MiB)}Mi of an engine's process; raise it to what several take, or leave it out"
    ]
