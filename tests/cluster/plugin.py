"""The cluster's fixtures for pytest; `tests/conftest.py` gives them to every test. README.md beside this file is their manual."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from tests.cluster import state
from tests.cluster.build import MODULES, binary, build_all, missing
from tests.cluster.cluster import LocalCluster, start
from tests.cluster.handle import Cluster, ExistingCluster

EXISTING = "RLJOB_TEST_KUBECONFIG"
_SERVERS = frozenset({"probe", "kube"})
_NODES = _SERVERS | {"containerd", "coredns", "dra", "registry"}
# The Go modules that a test may need, by fixture.
_MODULES = {
    "api_server": _SERVERS,
    "cluster": _NODES,
    "new_cluster": _NODES | {"kwok"},
    "binaries": frozenset(each.name for each in MODULES),
}


class NewCluster(Protocol):
    """Starts a cluster that ends with the test."""

    def __call__(self, nodes: int = 1) -> LocalCluster: ...


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is missing before the first test, outside of every test's time limit."""
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    modules: set[str] = set().union(*(_MODULES[name] for name in fixtures & _MODULES.keys()))
    if not modules or session.config.option.collectonly or not missing(modules):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        if capture is not None:
            stack.enter_context(capture.global_and_fixture_disabled())
        build_all(lambda text: print(f"\n{text}", flush=True), modules)


def _existing() -> Cluster | None:
    """The cluster of RLJOB_TEST_KUBECONFIG; one of `make cluster` with everything that only clusters of our own can do."""
    name = os.environ.get(EXISTING)
    if not name:
        return None
    kubeconfig = Path(name).resolve()
    own = next((record for record in state.all_records() if Path(record.folder) == kubeconfig.parent), None)
    return LocalCluster.adopt(own) if own else ExistingCluster(kubeconfig)


def _session(nodes: int) -> Iterator[Cluster]:
    existing = _existing()
    if existing is not None:
        yield existing
        if isinstance(existing, LocalCluster):
            existing.leave()
        return
    cluster = start(nodes)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def api_server() -> Iterator[Cluster]:
    """etcd, API server and controller manager, shared by all tests of the session."""
    yield from _session(nodes=0)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A whole cluster with one node, shared by all tests of the session."""
    yield from _session(nodes=1)


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
