"""A job on a scratch model whose parts a test changes, and the folders to prepare it in."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob.api import RLJob, RLJobSpec
from rljob.prepare.preparation import Folders, prepare
from rljob.wire.data import Prepared, PromptRecord

SCRATCH = {"scratch": {"hiddenSize": 64, "ffnSize": 96, "layers": 1, "heads": 2, "kvHeads": 1, "contextLength": 128}}


def spec(**changes: Any) -> RLJobSpec:
    """A small job; arguments replace top-level parts of the spec."""
    base: dict[str, Any] = {
        "model": {"source": SCRATCH},
        "data": {"train": {"path": "train.jsonl"}},
        "warmStart": {},
        "rollout": {"maxTokens": 8},
    }
    return RLJobSpec.model_validate(base | changes)


def words(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Records that pass every check."""
    return [{"prompt": f"word{i}", "reference": f"{i}drow", "demonstration": f"{i}drow"} for i in range(start, start + count)]


@dataclass(frozen=True)
class Place:
    """Folders of one job and what was said."""

    folders: Folders
    said: list[str]

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        """A JSONL file beside the job."""
        (self.folders.source / name).write_text("".join(json.dumps(r) + "\n" for r in rows))

    def prepare(self, **changes: Any) -> Prepared:
        """Prepare `spec(**changes)`."""
        return prepare(spec(**changes), self.folders, self.said.append)

    def split(self, name: str) -> list[PromptRecord]:
        """Records of a prepared file."""
        return [PromptRecord.model_validate_json(line) for line in (self.folders.data / f"{name}.jsonl").read_text().splitlines()]


def run_process(folder: Path, spec: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m rljob.prepare` for a job whose files and folders are all in `folder`."""
    job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": spec})
    (folder / "job.json").write_text(job.model_dump_json(by_alias=True))
    given = {
        "RLJOB_JOB": str(folder / "job.json"),
        "RLJOB_SOURCE_DIR": str(folder),
        **{f"RLJOB_DIR_{name.upper()}": str(folder / name) for name in ("model", "data", "cache")},
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RLJOB_", "HF_"))}
    command = [sys.executable, "-m", "rljob.prepare"]
    return subprocess.run(command, env=kept | given | environment, capture_output=True, text=True, timeout=120, check=False)
