"""The init container as a process: exit status and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.prepare.support import SCRATCH, run_process, words


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in words(4)))
    return {"model": {"source": SCRATCH}, "data": {"train": {"path": "train.jsonl"}}, "warmStart": {}, "rollout": {"maxTokens": 8}}


def test_a_good_job_ends_with_status_0_and_says_how_far_it_is(tmp_path: Path, job: dict[str, Any]) -> None:
    done = run_process(tmp_path, job)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[:2] == ["prepare: data: reading spec.data.train", "prepare: model: new random weights"]
    assert done.stderr.splitlines()[-1] == "prepare: data: 4 prompts, 0 held out, 4 demonstrations, at most 17 tokens"
    assert json.loads((tmp_path / "data" / "prepared.json").read_text())["train"] == 4


def test_bad_input_ends_with_status_2_and_one_line(tmp_path: Path, job: dict[str, Any]) -> None:
    done = run_process(tmp_path, job | {"data": {"train": {"path": "nothing.jsonl"}}})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: spec.data.train.path: ")
    assert "Traceback" not in done.stderr


def test_a_file_in_the_way_is_explained(tmp_path: Path, job: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    done = run_process(tmp_path, job, RLJOB_DIR_MODEL=str(tmp_path / "file" / "model"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: preparing the job: a file is in the way at ")
    assert "Traceback" not in done.stderr
