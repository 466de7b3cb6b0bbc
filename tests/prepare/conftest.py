"""What the tests of the preparation share; lets them import `tests.*`, their common parts."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.prepare.servers import QuietFolder, serving  # noqa: E402 - needs the path above
from tests.prepare.support import SCRATCH, Place, words  # noqa: E402

from rljob.api.sources import ScratchSource  # noqa: E402
from rljob.prepare import scratch  # noqa: E402
from rljob.prepare.preparation import Folders  # noqa: E402


@pytest.fixture
def place(tmp_path: Path) -> Place:
    source = tmp_path / "source"
    source.mkdir()
    made = Place(Folders(tmp_path / "model", tmp_path / "data", tmp_path / "cache", source), [])
    made.write("train.jsonl", words(5))
    return made


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes copies of a small Hugging Face folder."""

    def make(seed: int = 0, **sizes: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        scratch.create(ScratchSource.model_validate(SCRATCH["scratch"] | sizes), seed, folder)
        return folder

    return make


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server of a folder: its address and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(partial(QuietFolder, directory=str(folder))) as address:
        yield address, folder
