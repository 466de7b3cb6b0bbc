"""What each role is told of the job.

Every process reads `job.json` once, when it starts. A role's file leaves out what that role never reads (it then stands at its default), so
a change of such a field changes neither the file nor the pod, and nothing is restarted. The key in the ConfigMap ends in a hash of the
content: a pod that was made for one content can never be given another, however late its node hears of the change.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rljob.api import GROUP, KIND, VERSION, RLJob

File = tuple[str, str]
"""Key in the ConfigMap, and content."""

CLUSTER = (
    "suspend",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "queueName",
    "templates",
    "files",
    "credentials",
    "rollout.replicas",
    "accelerator.sharing",
    "checkpoint.volume",
)
"""The operator's own: no process reads them."""
_RUN = ("iterations", "evaluation", "backoffLimit", "checkpoint")
"""How long the loop runs and what it keeps: the master's alone."""
_SANDBOX = tuple(f"sandbox.{name}" for name in ("replicas", "slots", "queue", "minimum", "backend"))
"""How the sandbox runs; whether there is one, and what it gives a program, is what options of `reward` and of records are held against."""
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "master": (*CLUSTER, *_SANDBOX, "reward.workers", "reward.timeoutSeconds", "rollout.weights"),
    "node": (*CLUSTER, *_RUN, "reward", "sandbox"),
    "reward": (
        *(*CLUSTER, *_RUN, *_SANDBOX, "reward.replicas", "sandbox.enabled"),
        *("switch", "accelerator", "trainer", "rollout.tensorParallel", "rollout.engine", "rollout.weights"),
    ),
}
"""Fields below `spec`, at most two levels deep, that a file leaves out. `node` is for worker and rollout pods."""

LATER: Mapping[str, Any] = {"sandbox.memoryPerRun": "1Gi", "data.tooLong": "refuse"}
"""Fields that came later, at most two levels deep, each with the value that stands for what was done before there was such a field. At that
value no file has them: a new operator then leaves the pods of running jobs alone, and images of before, which refuse a field that they do
not know, can read their file. The value is the field's default. A field whose default changes has to leave this list, because a reader of
another release would fill in its own; for the same reason all other fields stand in the files, whatever their value."""

AUDIENCE = {"master": "master", "worker": "node", "rollout": "node", "reward": "reward"}
"""Role to file."""


def job_files(job: RLJob) -> dict[str, File]:
    """Audience to its file: a complete RLJob, a line for each topic of the spec."""
    spec = job.model_dump(mode="json", by_alias=True)["spec"]
    as_before = tuple(path for path, value in LATER.items() if at(spec, path) == value)
    return {audience: _file(job, audience, _without(spec, (*paths, *as_before))) for audience, paths in LEFT_OUT.items()}


def _file(job: RLJob, audience: str, spec: Mapping[str, Any]) -> File:
    # json's own indentation is written in Python, and ten times slower.
    topics = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in spec.items())
    head = f'"apiVersion": "{GROUP}/{VERSION}",\n "kind": "{KIND}",\n "metadata": {{"name": {json.dumps(job.metadata.name)}}}'
    text = f'{{{head},\n "spec": {{\n{topics}\n }}}}\n'
    return f"{audience}-{digest(text)[:10]}.json", text


def digest(text: str) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def at(spec: Mapping[str, Any], path: str) -> Any:
    """Value of a field; None also where nothing stands above it."""
    topic, _, field = path.partition(".")
    value = spec[topic]
    return value[field] if field and value is not None else value


def _without(spec: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A copy of the spec that lacks some fields."""
    found = dict(spec)
    for path in paths:
        topic, _, field = path.partition(".")
        if not field:
            found.pop(topic)
        elif found.get(topic) is not None:
            found[topic] = {name: value for name, value in found[topic].items() if name != field}
    return found
