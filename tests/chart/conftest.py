"""What the chart's tests share; lets them import `tests.*` and `charts.*`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.chart.rendering import Chart  # noqa: E402 - needs the path


@pytest.fixture(scope="session")
def chart(binaries: Callable[[str], Path]) -> Chart:
    """The chart, rendered by a real Helm."""
    return Chart(binaries("helm"))
