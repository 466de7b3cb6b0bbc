"""Whether durable state belongs to the job that finds it."""

from collections.abc import Mapping
from typing import Any

from rljob.api import RLJob

FREE = (
    "iterations", "suspend", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "queueName", "templates", "checkpoint",
    "files", "credentials", "switch", "accelerator", "sandbox", "rollout.replicas", "rollout.tensorParallel", "rollout.engine",
    "rollout.weights", "evaluation.every", "trainer.nodes", "trainer.tensorParallel", "trainer.pipelineParallel", "trainer.expertParallel",
    "trainer.virtualPipelineParallel",
    "trainer.contextParallel", "trainer.microBatchTokens", "trainer.recompute", "reward.replicas", "reward.workers",
    "reward.timeoutSeconds",
)  # fmt: skip
"""Fields that a resumed job may change: how long, how fast and on what it runs, not what it learns."""
SOURCES = ("model", "data", "warmStart.data", "evaluation.data")
"""Fields that only say where model and prompts come from; the digest says what they hold."""


def identity(job: RLJob, digest: str) -> dict[str, Any]:
    """What is stored with the state: name, digest of model and prompts, and the whole spec as flat `path: value`."""
    spec = job.model_dump(mode="json", by_alias=True)["spec"]
    return {"name": job.metadata.name, "digest": digest, "spec": _flat(spec, "")}


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes the stored state another job's; empty if it is this one's."""
    found = []
    if stored["name"] != current["name"]:
        found.append(f"metadata.name was {stored['name']}, is {current['name']}")
    moved = stored["digest"] != current["digest"]
    before, after = stored["spec"], current["spec"]
    for path in sorted(before.keys() | after.keys()):
        source = _under(path, SOURCES)
        if _under(path, FREE) or before.get(path) == after.get(path) or (source and not moved):
            continue
        found.append(f"spec.{path} was {before.get(path)!r}, is {after.get(path)!r}")
    if moved and not any(_under(line.split()[0].removeprefix("spec."), SOURCES) for line in found):
        found.append("the contents of the model or of the prompts (their digest differs)")
    return tuple(found)


def _under(path: str, topics: tuple[str, ...]) -> bool:
    return any(path == topic or path.startswith(f"{topic}.") for topic in topics)


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    """Nested objects as dotted paths; lists and None stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {path: leaf for key, part in value.items() for path, leaf in _flat(part, f"{prefix}.{key}" if prefix else key).items()}
