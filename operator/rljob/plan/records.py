"""How many prompts a data file on this machine holds, and how large reward models are, for the estimate. What is wrong with them is for
who uses them to say."""

import json
import math
from pathlib import Path

from rljob.api import RLJob


def count_held_out(job: RLJob, folder: Path) -> int | None:
    """Records of the held-out JSONL file; None if the set is something else or not on this machine. `folder`: what relative paths start
    at."""
    path = job.spec.evaluation.data.path if job.spec.evaluation is not None else None
    if path is None or not path.endswith((".jsonl", ".ndjson")):
        return None
    try:
        with (folder / path).open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError:
        return None


def count_scorers(job: RLJob, folder: Path) -> int:
    """Parameters of the reward models in folders on this machine; those that cannot be read count nothing. `folder`: as above."""
    return sum(_parameters(file) for model in job.spec.reward.model_folders for file in (folder / model).glob("*.safetensors"))


def _parameters(file: Path) -> int:
    """Of a safetensors file, by its header: 8 bytes of length, JSON."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, MemoryError, OverflowError):
        return 0
