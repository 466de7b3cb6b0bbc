"""What the tests of the checkpoint-engine share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a short name: paths of unix sockets are limited to about 100 characters."""
    folder = Path(tempfile.mkdtemp(prefix="rlj-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)
