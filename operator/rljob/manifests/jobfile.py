"""What each role is told of the job.

Every process reads `job.json` once, when it starts. A role's file leaves out what that role never reads (it then stands at its default), so
a change of such a field changes neither the file nor the pod, and nothing is restarted. The key in the ConfigMap ends in a hash of the
content: a pod that was made for one content can never be given another, however late its node hears of the change.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rljob.api import RLJob

File = tuple[str, str]
"""Key in the ConfigMap, and content."""

CLUSTER = (
    "suspend",
    "ttlSecondsAfterFinished",
    "queueName",
    "templates",
    "files",
    "credentials",
    "sandbox",
    "rollout.replicas",
    "accelerator.sharing",
    "checkpoint.volume",
)
"""The operator's own: no process reads them."""
_RUN = ("iterations", "evaluation", "backoffLimit", "activeDeadlineSeconds", "checkpoint")
"""How long the loop runs and what it keeps: the master's alone."""
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "master": (*CLUSTER, "reward.workers", "reward.timeoutSeconds"),
    "node": (*CLUSTER, *_RUN, "reward"),
    "reward": (*CLUSTER, *_RUN, "reward.replicas", "switch", "accelerator", "trainer", "rollout.tensorParallel", "rollout.engine"),
}
"""Fields below `spec` that a file leaves out. `node` is for worker and rollout pods."""

AUDIENCE = {"master": "master", "worker": "node", "rollout": "node", "reward": "reward"}
"""Role to file."""


def job_file(job: RLJob, role: str) -> File:
    """The file for a role: a complete RLJob."""
    audience = AUDIENCE[role]
    data = job.model_dump(mode="json", by_alias=True)
    data["metadata"] = {"name": job.metadata.name}
    for path in LEFT_OUT[audience]:
        _remove(data["spec"], path.split("."))
    text = json.dumps(data, indent=1)
    return f"{audience}-{digest(text)[:10]}.json", text


def digest(text: str) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _remove(data: dict[str, Any], path: list[str]) -> None:
    *above, last = path
    for name in above:
        data = data[name]
    data.pop(last)
