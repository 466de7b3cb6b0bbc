"""What is valid but probably not what was meant."""

from rljob.api.job import RLJobSpec


def inert(spec: RLJobSpec) -> list[str]:
    """Fields that are set but change nothing beside the others; each one line with field, value, why and remedy."""
    found = []
    algorithm = spec.algorithm
    if algorithm.tau > 0 and algorithm.steps_per_iteration == 1:
        found.append(
            f"spec.algorithm.tau is {algorithm.tau:g}, but has no effect with stepsPerIteration 1: the regulariser's gradient is 0 in an "
            "iteration's first step; raise spec.algorithm.stepsPerIteration or leave tau out"
        )
    return found
