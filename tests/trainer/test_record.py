"""What a checkpoint says of itself."""

import json
from pathlib import Path

import pytest

from rljob.api import InfrastructureError
from rljob.trainer.checkpoint import RECORD, Record, read_record


def test_the_record_of_a_newer_version_is_read_as_far_as_this_one_knows_it(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"version": 3, "checksum": "abc", "layout": 2}))
    assert read_record(tmp_path) == Record(version=3, checksum="abc")
    (tmp_path / RECORD).write_text(json.dumps({"version": 3, "layout": 2}))
    with pytest.raises(InfrastructureError, match=rf"{RECORD} is damaged"):
        read_record(tmp_path)
