"""The cluster's fixtures for pytest; `tests/conftest.py` gives them to every test. README.md beside this file is their manual."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from tests.cluster import state
from tests.cluster.build import MODULES, RUNC, binary, build_all
from tests.cluster.cluster import CHECKOUT, LocalCluster, start
from tests.cluster.existing import ExistingCluster, as_found, why_not
from tests.cluster.handle import Cluster

EXISTING = "RLJOB_TEST_KUBECONFIG"
_SERVERS = frozenset({"probe", "kube"})
_NODES = _SERVERS | {"containerd", "coredns", "dra", "kube-router", "registry"}
# The Go modules that a test may need, by fixture.
_MODULES = {
    "api_server": _SERVERS,
    "cluster": _NODES,
    "new_cluster": _NODES | {"kwok"},
    "binaries": frozenset(each.name for each in MODULES),
}
_LEFT_OUT = pytest.StashKey[list[pytest.Item]]()
_IMAGES = pytest.StashKey["subprocess.Popen[bytes]"]()


class NewCluster(Protocol):
    """Starts a cluster that ends with the test."""

    def __call__(self, nodes: int = 1) -> LocalCluster: ...


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With RLJOB_TEST_KUBECONFIG, what is marked `own_cluster` is left out."""
    if not os.environ.get(EXISTING):
        return
    own = [item for item in items if item.get_closest_marker("own_cluster")]
    if own:
        config.hook.pytest_deselected(items=own)
        config.stash[_LEFT_OUT] = own
        items[:] = [item for item in items if item not in own]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Says what was left out, and why."""
    counted = Counter(item.nodeid.partition("::")[0] for item in config.stash.get(_LEFT_OUT, ()))
    if not counted:
        return []
    files = ", ".join(f"{name} ({count})" for name, count in sorted(counted.items()))
    return [f"left out, as they need a cluster that the tests made themselves and {EXISTING} is set: {files}"]


# First: no worker of pytest-xdist begins before all have done this.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is missing before the first test, images beside that and the first tests, and looks at an existing cluster."""
    if session.config.option.collectonly:
        return
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    with ExitStack() as stack:
        capture = session.config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            stack.enter_context(capture.global_and_fixture_disabled())
        # Downloads and copying in the one leave processors to the other.
        _build_images(session.config, {name for item in session.items for mark in item.iter_markers("images") for name in mark.args})
        build_all(_say, _modules(fixtures) | ({RUNC.name} if _has_sandboxes(session.items) else set()))
        if fixtures & {"api_server", "cluster"}:
            _refuse()


def _modules(fixtures: set[str]) -> set[str]:
    """The Go modules that tests with these fixtures need."""
    needed = {name: _SERVERS if os.environ.get(EXISTING) and name in ("api_server", "cluster") else _MODULES[name] for name in _MODULES}
    return set().union(*(needed[name] for name in fixtures & needed.keys()))


def _has_sandboxes(items: Sequence[pytest.Item]) -> bool:
    """Whether sandboxes run in pods of a cluster made here: it must be made after the runc that can give pods users of their own."""
    in_pods = (item for item in items if {"cluster", "new_cluster"} & set(getattr(item, "fixturenames", ())))
    return not os.environ.get(EXISTING) and any("sandbox" in mark.args for item in in_pods for mark in item.iter_markers("images"))


def _say(text: str) -> None:
    # A worker of pytest-xdist has no other way to a person.
    print(f"\n{text}", file=sys.stderr, flush=True)


def _build_images(config: pytest.Config, names: set[str]) -> None:
    """Starts to build images that have changed. One that cannot be built is the failure of the tests that need it: they say why."""
    if names:
        _say(f"images: {', '.join(sorted(names))}; all together take a quarter of an hour, once")
        command = ["sh", "scripts/images.sh", "--only", ",".join(sorted(names))]
        # A session of its own, so that what it has started ends with it.
        config.stash[_IMAGES] = subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Waits for the images before the first test that needs one, outside of its time limit."""
    building = item.config.stash.get(_IMAGES, None)
    if building is not None and item.get_closest_marker("images"):
        building.wait()
    return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whoever goes before the images are there does not wait for them."""
    building = config.stash.get(_IMAGES, None)
    if building is not None and building.poll() is None:
        os.killpg(building.pid, signal.SIGTERM)
        building.wait()


def _refuse() -> None:
    """Ends the session if the existing cluster is somebody's who would miss something."""
    cluster = _existing()
    why = why_not(cluster) if cluster else ""
    if isinstance(cluster, LocalCluster):
        cluster.leave()
    if why:
        raise pytest.UsageError(f"{EXISTING}={os.environ[EXISTING]}: {why}")


def _existing() -> Cluster | None:
    """The cluster of RLJOB_TEST_KUBECONFIG; one of `make cluster` with everything that only clusters of our own can do."""
    name = os.environ.get(EXISTING)
    if not name:
        return None
    kubeconfig = Path(name).resolve()
    own = next((record for record in state.all_records() if Path(record.folder) == kubeconfig.parent), None)
    return LocalCluster.adopt(own) if own else ExistingCluster(kubeconfig)


@pytest.fixture(scope="session")
def existing_cluster() -> Iterator[Cluster | None]:
    """The cluster of RLJOB_TEST_KUBECONFIG, as it was found again afterwards; None if the variable is not set."""
    cluster = _existing()
    if cluster is None:
        yield None
        return
    with as_found(cluster):
        yield cluster
    if isinstance(cluster, LocalCluster):
        cluster.leave()


def _session(existing: Cluster | None, nodes: int) -> Iterator[Cluster]:
    if existing is not None:
        yield existing
        return
    cluster = start(nodes)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def api_server(existing_cluster: Cluster | None) -> Iterator[Cluster]:
    """etcd, API server and controller manager, shared by all tests of the session."""
    yield from _session(existing_cluster, nodes=0)


@pytest.fixture(scope="session")
def cluster(existing_cluster: Cluster | None) -> Iterator[Cluster]:
    """A whole cluster with one node, shared by all tests of the session."""
    yield from _session(existing_cluster, nodes=1)


@pytest.fixture
def new_cluster() -> Iterator[NewCluster]:
    """Starts clusters for this test alone."""
    made: list[LocalCluster] = []

    def make(nodes: int = 1) -> LocalCluster:
        made.append(start(nodes))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            # A test may have stopped it, or killed it.
            if each.record in state.all_records():
                each.stop()


@pytest.fixture(scope="session")
def binaries() -> Callable[[str], Path]:
    """The path of a built program by name."""
    return binary
