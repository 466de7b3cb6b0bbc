"""The operator's process while the API server is down, or answers too late: it goes on, and nothing is there twice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cluster.handle import Cluster, KubectlError
from tests.cluster.plugin import NewCluster
from tests.controller.process import Process, install_crd
from tests.controller.proxy import Proxy, proxied
from tests.controller.test_real import complete, eventually, job, own

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c")
MADE = 'rljob_operator_api_requests_total{code="201",kind="%s",verb="POST"}'


@contextmanager
def running(server: Cluster, folder: Path, namespaces: list[str], lease: str, kubeconfig: Path | None = None) -> Iterator[Process]:
    """An operator that follows its streams; it ends with the block."""
    operator = Process(server, folder, namespaces, leaderElection=lease)
    operator.kubeconfig = kubeconfig or server.kubeconfig
    operator.start()
    try:
        eventually(lambda: "are known after" in operator.log.read_text())
        yield operator
    finally:
        if operator.running():
            operator.stop()


def made(operator: Process, kind: str) -> float:
    """Objects that the API server let the operator make."""
    lines = operator.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(MADE % kind))


def told(server: Cluster, namespace: str, reason: str) -> list[str]:
    """Jobs about which an event says this, once for each."""
    found = server.get("events", "--field-selector", f"reason={reason},involvedObject.kind=RLJob", namespace=namespace)["items"]
    return sorted(event["involvedObject"]["name"] for event in found)


def nothing_twice(server: Cluster, namespace: str, operator: Process, jobs: int = len(NAMES)) -> None:
    """Each pod and each Deployment was made once, and told of once. (An answer that was lost is not counted.)"""
    assert made(operator, "Pod") <= 2 * jobs
    assert made(operator, "Deployment") <= jobs
    assert 'verb="DELETE"' not in operator.get("/metrics").text
    started = told(server, namespace, "Started")
    assert len(started) == len(set(started))
    assert not [told(server, namespace, reason) for reason in ("PodLost", "Remade", "Repaired") if told(server, namespace, reason)]


def test_an_api_server_that_is_down_for_a_while(new_cluster: NewCluster, tmp_path: Path) -> None:
    server, namespace = new_cluster(nodes=0), "default"
    install_crd(server)
    with running(server, tmp_path, [], "{enabled: false}") as operator:
        server.apply([job(name) for name in NAMES], namespace=namespace)
        # In the middle of making what the jobs need.
        server.process("kube-apiserver").kill()
        time.sleep(15)
        assert operator.running()
        server.process("kube-apiserver").start()
        for name in NAMES:
            eventually(lambda name=name: answers(server) and complete(server, namespace, name), 120)  # type: ignore[misc]
        nothing_twice(server, namespace, operator)
        # The streams go on: of RLJobs, and of children.
        server.kubectl("scale", "rljob/a", "--replicas=1", "-n", namespace)
        eventually(lambda: complete(server, namespace, "a", 16))
        server.kubectl("delete", "service/b-master", "-n", namespace)
        eventually(lambda: complete(server, namespace, "b"))
        assert operator.get("/healthz").status_code == 200
        assert operator.stop() == 0


def answers(server: Cluster) -> bool:
    try:
        server.kubectl("get", "--raw=/readyz")
    except KubectlError:
        return False
    return True


@pytest.fixture
def server(api_server: Cluster) -> Cluster:
    install_crd(api_server)
    return api_server


@pytest.fixture
def proxy(server: Cluster, tmp_path: Path) -> Iterator[tuple[Proxy, Path]]:
    with proxied(server.kubeconfig, tmp_path) as found:
        yield found


@pytest.fixture
def namespace(server: Cluster) -> Iterator[str]:
    with server.namespace("outage") as name:
        yield name


# An answer must be on its way when all are held up.
@pytest.mark.alone
def test_answers_that_come_too_late(server: Cluster, namespace: str, proxy: tuple[Proxy, Path], tmp_path: Path) -> None:
    """What was asked for is done, and the operator hears of it only at its second try, after more than the 20 s it waits."""
    between, kubeconfig = proxy
    with running(server, tmp_path, [namespace], "{enabled: false}", kubeconfig) as operator:
        names = [*NAMES, *(f"more-{i}" for i in range(12))]  # so many that some are still being made when the first has been seen
        server.apply([job(name) for name in names], namespace=namespace)
        eventually(lambda: bool(server.get("configmaps", "-l", "app.kubernetes.io/managed-by=rljob", namespace=namespace)["items"]))
        between.mute()
        time.sleep(25)
        assert operator.running()
        between.mend()
        for name in names:
            eventually(lambda name=name: complete(server, namespace, name))  # type: ignore[misc]
        assert 'code="0"' in operator.get("/metrics").text, "no request was given up"
        nothing_twice(server, namespace, operator, len(names))
        assert operator.stop() == 0


def test_who_loses_the_lease_in_an_outage_ends_and_waits_for_it_when_started_again(
    server: Cluster, namespace: str, proxy: tuple[Proxy, Path], tmp_path: Path
) -> None:
    between, kubeconfig = proxy
    with running(server, tmp_path, [namespace], f"{{lease: {namespace}, seconds: 5}}", kubeconfig) as operator:
        server.apply(job("a"), namespace=namespace)
        eventually(lambda: complete(server, namespace, "a"))
        before = own(server, namespace, "a")
        between.cut()
        eventually(lambda: not operator.running())
        assert "could not be renewed" in operator.log.read_text()
        operator.start()
        eventually(lambda: "the API server did not answer" in operator.log.read_text())
        time.sleep(10)
        assert operator.running()
        assert "acts" not in operator.log.read_text()
        assert operator.get("/readyz").status_code == 200
        server.kubectl("scale", "rljob/a", "--replicas=1", "-n", namespace)
        between.mend()
        eventually(lambda: complete(server, namespace, "a", 16))
        assert before.items() <= own(server, namespace, "a").items()
