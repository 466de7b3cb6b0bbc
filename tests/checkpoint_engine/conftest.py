"""What the tests of the checkpoint-engine share; lets them import `tests.*`, their common twins."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a short name: paths of unix sockets are limited to about 100 characters."""
    folder = Path(tempfile.mkdtemp(prefix="rlj-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)
