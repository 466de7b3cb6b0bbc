"""What every end-to-end test leaves behind: nothing that runs."""

import pytest
from tests.e2e.jobfolder import end_all


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """A test that failed or ran out of its time leaves no job beside those that follow, nor does a fixture."""
    end_all()
