"""What the file system refuses, in the words of a person."""

import errno
import os

import pytest

from rljob.api.errors import exit_status, explained


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "no space left at /x: free some, then run the same again; what was committed is kept"),
        (errno.EACCES, "no permission for /x (Permission denied); change its owner or mode, or use another folder"),
        (errno.EROFS, "no permission for /x (Read-only file system); change its owner or mode, or use another folder"),
        (errno.EIO, "[Errno 5] Input/output error: '/x'"),
    ],
)
def test_a_refusal_names_the_file_and_the_remedy_where_there_is_one(number: int, line: str) -> None:
    assert explained(OSError(number, os.strerror(number), "/x")) == line


def test_a_refusal_without_a_file_is_still_a_sentence() -> None:
    assert explained(OSError(errno.ENOSPC, "full")).startswith("no space left at the file system: free some")


def test_a_command_that_the_file_system_refuses_something_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(errno.ENOSPC, "full", "/x")

    assert exit_status(work) == 1
    assert capsys.readouterr().err == "error: no space left at /x: free some, then run the same again; what was committed is kept\n"
