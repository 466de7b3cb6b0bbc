"""What all tests share: they import each other's helpers as `tests.*`, and know the fixtures of a Kubernetes cluster."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# The last waits first: for images before its turn, so that nobody waits for its turn meanwhile.
pytest_plugins = ["tests.hangs", "tests.workers", "tests.cluster.plugin"]
