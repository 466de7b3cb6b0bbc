"""A job on a scratch model whose parts a test changes, and the folders to prepare it in."""

import json
from dataclasses import dataclass
from typing import Any

from rljob.api import RLJobSpec
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
