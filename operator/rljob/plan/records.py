"""How many prompts a data file on this machine holds, and how large reward models are, for the estimate. What is wrong with them is for
who uses them to say."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path

from rljob.api import RLJob
from rljob.api.sources import DataSource

_GENERATED = 400
"""Bytes that a generated record is taken to have."""
_LOOKED_AT = 100
"""Prompts whose length is looked at."""
_LETTERS, _AROUND = 4, 16
"""Letters of a token, and tokens that a chat template puts around a question."""


def prompt_sets(job: RLJob) -> list[tuple[str, DataSource]]:
    """Every set of prompts that a job names, by its field."""
    found = [("spec.data.train", job.spec.data.train)]
    if job.spec.evaluation is not None:
        found.append(("spec.evaluation.data", job.spec.evaluation.data))
    if job.spec.warm_start is not None and job.spec.warm_start.data is not None:
        found.append(("spec.warmStart.data", job.spec.warm_start.data))
    return found


def count_prompts(job: RLJob, folder: Path | None = None) -> tuple[int, int]:
    """Records of all sets of prompts that the master holds, and bytes of them, as far as they are known: those that a generator makes, and
    those in JSONL files. `folder`: what relative paths start at; None: the files are elsewhere."""
    sets = [data for _, data in prompt_sets(job)]
    if job.spec.warm_start is not None and job.spec.warm_start.data is None:
        sets.append(job.spec.data.train)  # those with a demonstration once more
    records = size = 0
    for data in sets:
        for line in _lengths(data, folder):
            records, size = records + 1, size + line
    return records, size


def _lengths(data: DataSource, folder: Path | None) -> Iterator[int]:
    """Bytes of each record that is used."""
    if data.reasoning_gym is not None:
        yield from islice(repeat(_GENERATED, data.reasoning_gym.size), data.limit)
    if folder is None or data.path is None or not data.path.endswith((".jsonl", ".ndjson")):
        return
    with suppress(OSError), (folder / data.path).open("rb") as lines:
        yield from islice((len(line) for line in lines if line.strip()), data.limit)


def prompt_length(job: RLJob, folder: Path) -> int | None:
    """Tokens that a training prompt has (of a pair: with both answers), by the letters of the first ones; None if they are not in a JSONL
    file on this machine, or are chats. `folder`: as above."""
    data = job.spec.data.train
    if data.path is None or not data.path.endswith((".jsonl", ".ndjson")):
        return None
    fields = ("prompt",) if job.spec.generates else ("prompt", "chosen", "rejected")
    columns = [data.columns.get(field, field) for field in fields]
    try:
        with (folder / data.path).open("rb") as lines:
            records = [json.loads(line) for line in islice(lines, _LOOKED_AT) if line.strip()]
        letters = [len("".join(record[column] for column in columns)) for record in records]
        return _AROUND + (len(job.spec.data.system or "") + sum(letters) // len(letters)) // _LETTERS
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError):
        return None


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
