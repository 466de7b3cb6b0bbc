"""What the API can say and this version cannot do yet.

The fields stay in the API, so that a job written for a later version is still an RLJob and the CustomResourceDefinition need not change
when they work. `rljob validate`, which says what the API server says, warns; `rljob plan` notes it; `rljob run` and, in a cluster, the init
container `prepare` refuse the job before anything is downloaded.
"""

from rljob.api.job import RLJobSpec

_ONLY_ONE = (
    (
        "contextParallel",
        "context_parallel",
        "Megatron-core splits sequences in Transformer Engine's attention only; let them fit with trainer.recompute or a larger "
        "trainer.tensorParallel",
    ),
)


def unsupported(spec: RLJobSpec) -> list[str]:
    """One line for each field whose value nothing can run yet: field, value, remedy."""
    return [
        f"spec.trainer.{name} is {value}, but only 1 is supported so far; set it to 1: {instead}"
        for name, attribute, instead in _ONLY_ONE
        if (value := getattr(spec.trainer, attribute)) != 1
    ]
