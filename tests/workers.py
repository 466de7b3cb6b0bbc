"""How the suite is shared out among pytest-xdist's workers (`make test`): by groups that stay together.

All that needs a Kubernetes is one group: its clusters are made once, and tests that count what clusters leave behind see no others.
It mostly waits, so it goes first, beside what computes. Of everything else a file is a group. A test marked `alone` has the machine for
itself. Without workers, only the list below is looked at.
"""

import fcntl
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

KUBERNETES = frozenset(
    {
        "tests/api/test_api_server.py",
        "tests/api/test_crd.py",
        "tests/chart/test_rights.py",
        "tests/chart/test_server.py",
        "tests/cluster/test_full.py",
        "tests/cluster/test_life.py",
        "tests/controller/test_apiserver.py",
        "tests/controller/test_claim.py",
        "tests/controller/test_outage.py",
        "tests/controller/test_real.py",
        "tests/e2e/test_cluster.py",
        "tests/e2e/test_cluster_nodes.py",
        "tests/manifests/test_api_server.py",
        "tests/manifests/test_on_a_node.py",
        "tests/remote/test_cluster.py",
        "tests/remote/test_real_logs.py",
        "tests/sandbox/test_in_a_pod.py",
    }
)
"""Files whose tests have clusters. Whoever shares out knows names alone, so they are written down; a file that is missing is refused."""
LONGEST = ("tests/e2e/test_kills.py", "tests/e2e/test_tiny.py", "tests/e2e/test_smollm2.py", "tests/e2e/test_rollout_replicas.py")
"""Of whole jobs on this machine these go first: begun last, one worker would be left with them."""
_CLUSTERS = frozenset({"api_server", "cluster", "new_cluster"})


def file_of(nodeid: str) -> str:
    """The file of a test."""
    return nodeid.partition("::")[0]


def group_of(nodeid: str) -> str:
    """Tests of one group run one after another in one worker."""
    file = file_of(nodeid)
    return "kubernetes" if file in KUBERNETES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist=loadscope`, groups are what stays together. (`--dist=loadgroup` of xdist 3.8 knows no groups under pytest 9.)"""
    if config.getvalue("dist") != "loadscope":
        return None
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group_of
    return scheduler


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Looks for what is missing in the list; in a worker, puts the groups into their order."""
    clusters = {file_of(item.nodeid) for item in items if _CLUSTERS & set(getattr(item, "fixturenames", ()))}
    if missing := clusters - KUBERNETES:
        raise pytest.UsageError(f"tests/workers.py: {', '.join(sorted(missing))} has tests with a cluster; add it to KUBERNETES")
    if hasattr(config, "workerinput"):
        slow, images = ({file_of(item.nodeid) for item in items if item.get_closest_marker(name)} for name in ("slow", "images"))
        items.sort(key=lambda item: order(file := file_of(item.nodeid), file in slow, file in images))


def order(file: str, slow: bool, images: bool) -> tuple[bool, bool, bool, bool, bool]:
    """Pods first, beside quick tests; then servers alone, beside whole jobs on this machine: each has processors when it needs them."""
    waits = file in KUBERNETES
    return not waits, waits and not images, file.startswith("tests/e2e/"), slow, slow and file not in LONGEST


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """In a worker: waits for its turn, outside of the test's time limit."""
    run = getattr(item.config, "workerinput", {}).get("testrunuid")
    if run is None:
        return (yield)
    with turn(Path(tempfile.gettempdir()) / f"rljob-tests-{run}", item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def turn(name: Path, alone: bool) -> Iterator[None]:
    """Held by any number of processes at a time, or by one that is `alone`. Files of this name are made.

    Whoever waits to be alone holds the door, so that nobody new goes in before.
    """
    with name.with_suffix(".door").open("w") as door, name.with_suffix(".room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whoever shares out is the last to go."""
    if (run := getattr(session.config, "workerinput", {}).get("testrunuid")) is None:
        return
    for file in Path(tempfile.gettempdir()).glob(f"rljob-tests-{run}.*"):
        file.unlink(missing_ok=True)
