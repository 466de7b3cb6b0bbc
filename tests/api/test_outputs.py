"""Where a command may write is known before its work begins."""

from pathlib import Path

import pytest

from rljob.api import ConfigurationError
from rljob.api.outputs import check_outputs


def test_the_folder_of_what_is_written_is_made(tmp_path: Path) -> None:
    check_outputs([tmp_path / "a" / "b" / "out.jsonl"], [tmp_path / "in.jsonl"])
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("in.jsonl", "in.jsonl is read, and would be replaced; name another file to write"),
        ("folder/../link.jsonl", "link.jsonl is read, and would be replaced"),
        ("folder", "folder is a folder; name a file to write"),
        ("in.jsonl/out.jsonl", "File exists: "),
    ],
)
def test_what_cannot_be_written_or_would_replace_what_is_read_is_refused(out: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "in.jsonl").write_text("mine")
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    with pytest.raises(ConfigurationError, match=r"^OUT: ") as caught:
        check_outputs([tmp_path / "fine.jsonl", tmp_path / out], [tmp_path / "in.jsonl"])
    assert message in str(caught.value)
    assert (tmp_path / "in.jsonl").read_text() == "mine"
