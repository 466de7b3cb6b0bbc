"""Does the job's model divide and reach as far as the job asks? For a model whose shape is known before anything starts."""

from rljob.api import RLJob
from rljob.api.parallel import Divisible, engine_misfits, trainer_misfits
from rljob.plan.shape import ModelShape


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
    ]


def _too_long(job: RLJob, context: int) -> list[str]:
    """Where the prompts decide, `prepare` finds it."""
    longest, answer = job.spec.model.max_length, job.spec.rollout.max_tokens
    if context and longest is not None and longest > context:
        return [f"spec.model.maxLength is {longest}, but the model's context is {context}; lower it or leave it out"]
    if context and job.spec.generates and answer >= context:
        return [f"spec.rollout.maxTokens is {answer}, which leaves no room for a prompt in the model's context of {context}; lower it"]
    return []
