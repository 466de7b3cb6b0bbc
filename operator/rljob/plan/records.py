"""How many prompts a data file on this machine holds, for the estimate of time. What is wrong with it is for `rljob.prepare` to say."""

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
