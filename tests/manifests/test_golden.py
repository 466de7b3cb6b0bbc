"""What is rendered, in full: a change of any line is seen in review. `python tests/manifests/jobs.py` writes the files anew."""

import pytest
from tests.manifests.jobs import GOLDEN, RENDERINGS, golden


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_rendering_is_the_committed_one(name: str) -> None:
    assert (GOLDEN / name).read_text() == golden(name), "if this is meant, run `python tests/manifests/jobs.py`"
