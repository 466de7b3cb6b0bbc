"""Whether durable state belongs to the job that finds it."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from rljob.api import RLJob, RLJobSpec

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
    """What is stored with the state: name, digest of model and prompts, the whole spec as flat `path: value`, and which of these paths
    are not at their defaults."""
    spec, given = (job.model_dump(mode="json", by_alias=True, exclude_defaults=short)["spec"] for short in (False, True))
    return {"name": job.metadata.name, "digest": digest, "spec": _flat(spec, ""), "given": sorted(_flat(given, ""))}


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes the stored state another job's; empty if it is this one's.

    Another release may have stored it: a field that it did not have and that is at its default makes no difference, nor does one that this
    release has no more.
    """
    found = []
    if stored["name"] != current["name"]:
        found.append(f"metadata.name was {stored['name']}, is {current['name']}")
    moved = stored["digest"] != current["digest"]
    before, after = stored["spec"], current["spec"]
    for path in sorted(before.keys() | after.keys()):
        source = _under(path, SOURCES)
        if _under(path, FREE) or before.get(path) == after.get(path) or (source and not moved):
            continue
        if (path not in before and _came_later(path, before, current["given"])) or (path not in after and not _known(path)):
            continue
        found.append(f"spec.{path} was {before.get(path)!r}, is {after.get(path)!r}")
    if moved and not any(_under(line.split()[0].removeprefix("spec."), SOURCES) for line in found):
        found.append("the contents of the model or of the prompts (their digest differs)")
    return tuple(found)


def _came_later(path: str, before: Mapping[str, Any], given: Sequence[str]) -> bool:
    """Whether a path that the stored spec lacks is of a field that was not there yet, and that this job leaves at its default."""
    above = [path[:at] for at, character in enumerate(path) if character == "."]
    if any(part in before for part in above):
        return False  # it was left out, or empty, and now is not
    field = next((part for part in (*above, path) if not any(_under(known, (part,)) for known in before)), None)
    return field is not None and not any(_under(path, (one,)) and _under(one, (field,)) for one in given)


def _known(path: str) -> bool:
    """Whether this release has such a field; what is in a map may be any."""
    model: type[BaseModel] = RLJobSpec
    for name in path.split("."):
        field = next((field for field in model.model_fields.values() if field.alias == name), None)
        if field is None:
            return False
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return True
        model = inner[0]
    return True


def _under(path: str, topics: tuple[str, ...]) -> bool:
    return any(path == topic or path.startswith(f"{topic}.") for topic in topics)


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    """Nested objects as dotted paths; lists and None stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {path: leaf for key, part in value.items() for path, leaf in _flat(part, f"{prefix}.{key}" if prefix else key).items()}
