"""Does the job's model divide as the job asks? For a model whose shape is known before anything starts."""

from rljob.api import RLJob
from rljob.api.parallel import Divisible, cpu_engine_misfits, engine_misfits, trainer_misfits
from rljob.plan.shape import ModelShape


def misfits(job: RLJob, shape: ModelShape | None) -> list[str]:
    """One line for each parallel size that the model does not allow, with the nearest that it does; none for an unknown shape."""
    if shape is None:
        return []
    sizes = shape.layers, shape.heads, shape.kv_heads, shape.shared_ffn if shape.experts else shape.ffn, shape.hidden
    model = Divisible(*sizes, shape.experts, shape.ffn if shape.experts else 0)
    on_cpu = job.spec.accelerator.type == "cpu"
    return [
        *trainer_misfits(model, job.spec.trainer, job.spec.world_size),
        *engine_misfits(model, job.spec.rollout),
        *(cpu_engine_misfits(model, job.spec.rollout) if on_cpu else []),
    ]
