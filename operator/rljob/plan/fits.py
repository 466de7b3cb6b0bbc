"""Does the job's model divide as the job asks? For a model whose shape is known before anything starts."""

from rljob.api import RLJob
from rljob.api.parallel import Divisible, engine_misfits, trainer_misfits
from rljob.plan.shape import ModelShape


def misfits(job: RLJob, shape: ModelShape | None) -> list[str]:
    """One line for each parallel size that the model does not allow, with the nearest that it does; none for an unknown shape."""
    if shape is None:
        return []
    model = Divisible(shape.layers, shape.heads, shape.kv_heads, shape.ffn)
    return [*trainer_misfits(model, job.spec.trainer), *engine_misfits(model, job.spec.rollout)]
