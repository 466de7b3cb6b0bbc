"""Whether rollout nodes go on generating while the trainer trains.

They write with the policy that is being replaced, for the prompts of the next iteration. What they write is then one version old when it is
trained on, so `rollout.maxStaleness` says whether that is wanted: 0, as in Kimi k1.5, where a segment of an earlier iteration is no longer
part of the loss, or at least 1.
"""

from rljob.api import RLJobSpec
from rljob.wire.node import TrainTask


def runs_ahead(task: TrainTask, spec: RLJobSpec) -> bool:
    """Whether the next iteration's prompts may be begun while this task is worked on."""
    return task.kind == "rl" and task.iteration < spec.iterations and spec.rollout.max_staleness >= 1
