"""Clusters come, live side by side, lose servers, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import network, state
from tests.cluster.box import Box, ClusterError, Identity
from tests.cluster.build import binary, cache_folder
from tests.cluster.cluster import CHECKOUT, LocalCluster
from tests.cluster.handle import Cluster, KubectlError
from tests.cluster.plugin import NewCluster

pytestmark = pytest.mark.own_cluster

CONFIG_MAP: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"}}


def left_behind(record: state.Record) -> list[str]:
    """What of a cluster is still on this machine."""
    found = [f"box {name}" for name, first in record.boxes.items() if first.alive()]
    found += [record.folder] if Path(record.folder).exists() else []
    found += [f"record {each.name}" for each in state.all_records() if each.name == record.name]
    found += [str(path) for path in state.CGROUPS.glob(f"**/{record.name}")]
    devices = {path.name for path in Path("/sys/class/net").iterdir()}
    assert record.network is not None
    found += sorted(devices & {network.Addresses(record.network).device})
    mounts = Path("/proc/mounts").read_text()
    return found + (["mounts"] if record.folder in mounts else [])


def test_the_light_one_knows_kubernetes_and_collects_garbage(api_server: Cluster) -> None:
    assert "v1.36.3" in api_server.kubectl("version")
    with api_server.namespace() as namespace:
        api_server.apply(CONFIG_MAP, namespace)
        uid = api_server.get("configmap/x", namespace=namespace)["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": uid}
        api_server.apply({**CONFIG_MAP, "metadata": {"name": "child", "ownerReferences": [owner]}}, namespace)
        api_server.kubectl("delete", "configmap/x", "-n", namespace)
        api_server.wait("configmap/child", "delete", namespace)


def test_a_refusal_carries_what_the_server_said(api_server: Cluster) -> None:
    with api_server.namespace() as namespace, pytest.raises(KubectlError) as refusal:
        api_server.apply({**CONFIG_MAP, "metadata": {"name": "Bad_Name"}}, namespace)
    assert "Bad_Name" in refusal.value.stderr


def test_a_wait_that_fails_tells_what_was_there(api_server: Cluster) -> None:
    with api_server.namespace() as namespace:
        api_server.apply(CONFIG_MAP, namespace)
        with pytest.raises(ClusterError, match=r"(?s)timed out.*--- it was.*a: b.*--- events"):
            api_server.wait("configmap/x", "jsonpath={.data.a}=c", namespace, timeout=0.2)


def test_two_side_by_side_and_nothing_left_of_either(new_cluster: NewCluster) -> None:
    one, other = new_cluster(nodes=0), new_cluster(nodes=0)
    assert one.addresses != other.addresses
    one.apply(CONFIG_MAP, "default")
    with pytest.raises(KubectlError, match="not found"):
        other.get("configmap/x", namespace="default")
    one.stop()
    assert left_behind(one.record) == []
    assert "kube-root-ca.crt" in other.kubectl("get", "configmaps")
    other.stop()
    assert left_behind(other.record) == []


def test_a_server_is_stopped_killed_and_started_again(new_cluster: NewCluster) -> None:
    cluster = new_cluster(nodes=0)
    cluster.apply(CONFIG_MAP, "default")
    server = cluster.process("kube-apiserver")
    server.kill()
    with pytest.raises(KubectlError, match="refused"):
        cluster.get("configmap/x", namespace="default")
    server.start()
    cluster.wait_ready()
    assert cluster.get("configmap/x", namespace="default")["data"] == {"a": "b"}
    assert "etcd" in str(cluster.log("etcd"))
    with pytest.raises(ClusterError, match="no server 'etc'; there are "):
        cluster.process("etc")


def pods(cluster: Cluster, count: int) -> list[dict[str, Any]]:
    container = {"name": "c", "image": cluster.probe, "imagePullPolicy": "Never", "args": ["serve", ":8080", "hello"]}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}},
    }
    spec = {"containers": [container], "topologySpreadConstraints": [spread], "terminationGracePeriodSeconds": 1}
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"x-{i}", "labels": {"app": "x"}}, "spec": spec} for i in range(count)]


def test_two_nodes_speak_to_each_other_and_nothing_is_left_of_them(new_cluster: NewCluster) -> None:
    cluster = new_cluster(nodes=2)
    cluster.apply(pods(cluster, 2), "default")
    for name in ("x-0", "x-1"):
        cluster.wait(f"pod/{name}", "condition=Ready", "default")
    status = [cluster.get(f"pod/{name}", namespace="default") for name in ("x-0", "x-1")]
    assert {each["spec"]["nodeName"] for each in status} == {"node-0", "node-1"}
    for here, there in (("x-0", status[1]), ("x-1", status[0])):
        said = cluster.kubectl("exec", here, "-n", "default", "--", "/probe", "get", f"http://{there['status']['podIP']}:8080")
        assert said == "hello\n"
    cluster.stop()
    assert left_behind(cluster.record) == []


def test_pretended_nodes_run_pods_at_once(new_cluster: NewCluster) -> None:
    cluster = new_cluster(nodes=0)
    cluster.fake_nodes(3)
    toleration = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}
    for each in pods(cluster, 3):
        each["spec"] = {**each["spec"], "tolerations": [toleration]}
        cluster.apply(each, "default")
    for name in ("x-0", "x-1", "x-2"):
        cluster.wait(f"pod/{name}", "condition=Ready", "default")


CRASH = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.cluster.cluster import start
cluster = start(nodes=1)
print(cluster.record.name, flush=True)
sys.stdin.read()
"""


def test_after_a_crash_no_process_is_left_and_the_next_start_removes_the_rest() -> None:
    command = [sys.executable, "-c", CRASH, str(CHECKOUT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        record = next(each for each in state.all_records() if each.name == name)
        cluster = LocalCluster.adopt(record)
        cluster.apply(pods(cluster, 1), "default")
        cluster.wait("pod/x-0", "condition=Ready", "default")
        cluster.leave()
        process.send_signal(signal.SIGKILL)
    state.until(lambda: not any(first.alive() for first in record.boxes.values()), "a box outlived its owner")
    assert Path(record.folder).exists()
    assert name in state.reap()
    assert left_behind(record) == []


def command(*words: str) -> str:
    """What `python -m tests.cluster` printed; a server that held the pipe would exceed the time."""
    argv = [sys.executable, "-m", "tests.cluster", *words]
    return subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=90, check=True).stdout


def test_a_person_gets_a_cluster_and_removes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a cache folder of its own, so a cluster that this person uses just now is left alone; the built programs are the same."""
    for built in cache_folder().glob("go-*"):
        (tmp_path / "rljob").mkdir(exist_ok=True)
        (tmp_path / "rljob" / built.name).symlink_to(built)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    export, _path = command("up", "--nodes=0").splitlines()
    (record,) = state.all_records()
    try:
        assert export == f"export KUBECONFIG={record.folder}/admin.conf"
        assert command("up").splitlines()[0] == export, "a second `up` finds the first"
    finally:
        command("down")
    assert left_behind(record) == []


def test_only_what_was_started_is_killed() -> None:
    """A process that took over the id of one that is gone is left alone."""
    me = Identity.of(os.getpid())
    assert me is not None
    Identity(me.pid, me.started - 1).kill(signal.SIGKILL)
    assert me.alive()


def test_a_box_has_its_own_processes_network_and_mounts() -> None:
    box = Box.make([binary("probe"), "pause"], detached=False)
    try:
        assert box.run(["ip", "-brief", "link"]).split()[0] == "lo"
        assert box.run(["cat", "/proc/1/cmdline"]).endswith("probe\0pause\0")
        box.run(["mount", "-t", "tmpfs", "only-in-the-box", "/mnt"])
        assert "only-in-the-box" not in Path("/proc/mounts").read_text()
        assert "only-in-the-box" in Box.enter(box.first).run(["cat", "/proc/mounts"])
        with pytest.raises(ClusterError, match="ended with 1"):
            box.run(["false"])
    finally:
        box.close()
    assert not box.first.alive()
    with pytest.raises(ClusterError, match="is gone"):
        Box.enter(box.first)
