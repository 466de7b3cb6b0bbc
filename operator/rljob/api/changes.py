"""What may change of a job that exists.

A job is one training run: its state, its curve and its report belong to one model, one set of prompts and one way to learn. So what
decides what is learned, to the last bit, and on which pods, devices and volumes, is fixed once the job exists. That holds for parallel
sizes too: a checkpoint fits any, but at others sums are rounded otherwise, and a queue has admitted the job's pods as they are. (A folder
of `rljob run` may go on at others.) What decides how long, how fast and at which cost may change, because people need that while a job
runs for days:

- `iterations`: longer, shorter. `suspend`, `backoffLimit`, the deadlines: how it is run.
- `rollout.replicas` (`kubectl scale`), `reward.replicas`, `reward.workers`, `sandbox`: how many serve it.
- `rollout.engine`, `rollout.weights`, `switch`, `reward.timeoutSeconds`, `templates`, `credentials`: the remedies for what goes wrong in a
  cluster. An engine's settings never change a policy, and every engine is attested against the trainer.
- `evaluation.every`, `checkpoint.keep`, `checkpoint.keepEvery`: what is looked at and kept.

`queueName` may change while the job is suspended, as Kueue asks of every job.
"""

CHANGEABLE = (
    "iterations",
    "suspend",
    "backoffLimit",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "credentials",
    "templates",
    "switch",
    "sandbox",
    "evaluation.every",
    "rollout.replicas",
    "rollout.engine",
    "rollout.weights",
    "reward.replicas",
    "reward.workers",
    "reward.timeoutSeconds",
    "checkpoint.keep",
    "checkpoint.keepEvery",
)
"""Fields of the spec that may change while the job exists, with everything below them."""
WHILE_SUSPENDED = ("queueName",)
"""Fields that may change while `suspend` is set."""


def may_change(path: str) -> bool:
    """Is a field, written as below `spec`, changeable at any time?"""
    return any(path == field or path.startswith(f"{field}.") for field in CHANGEABLE)


def partly_changeable(path: str) -> bool:
    """Does a field that is fixed itself hold one that may change?"""
    return path == "" or any(field.startswith(f"{path}.") for field in CHANGEABLE)
