"""A real operator with the chart's rights, and no others, takes jobs through their lives: the API server never says no."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.chart.rendering import Chart, Json, settings_of
from tests.cluster.handle import Cluster, KubectlError
from tests.controller.process import install_crd


def job(name: str, **spec: object) -> Json:
    """A job that needs no files, and whose pods stay where the test can say what becomes of them: no scheduler knows them."""
    made: Json = {
        "model": {"source": {"path": "/models/x"}},
        "data": {"train": {"reasoningGym": {"dataset": "chain_sum", "size": 16}}},
        "iterations": 3,
        "rollout": {"maxTokens": 8},
        "templates": {role: {"spec": {"schedulerName": "nobody"}} for role in ("master", "worker", "rollout", "reward")},
    }
    return {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": name}, "spec": made | spec}


@dataclass(frozen=True)
class Operator:
    """A running one."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """Of its metrics: a free one that it took and told."""
        return int(re.findall(r"metrics and probes on port (\d+)", self.log.read_text())[0])

    def requests(self) -> dict[tuple[str, str, str], float]:
        """(verb, kind, code) of what it asked the API server, and how often."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        rows = re.findall(r'rljob_operator_api_requests_total\{code="(\d+)",kind="(\w*)",verb="(\w+)"\} ([\d.e+]+)', text)
        return {(verb, kind, code): float(count) for code, kind, verb, count in rows}


@contextmanager
def operator(cluster: Cluster, objects: list[Json], namespace: str, folder: Path) -> Iterator[Operator]:
    """The operator with the rendered settings, as the rendered account. Only the port and the place of the process are the test's."""
    (account,) = [item["metadata"]["name"] for item in objects if item["kind"] == "ServiceAccount"]
    token = cluster.kubectl("create", "token", account, "-n", namespace).strip()
    kubeconfig = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--flatten", "--minify"))
    kubeconfig["users"][0]["user"] = {"token": token}
    kubeconfig["contexts"][0]["context"]["namespace"] = namespace
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    settings = yaml.safe_load(settings_of(objects)) | {"metricsPort": 0}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "rljob.controller", "--settings", str(folder / "settings.yaml"), "--dev", str(folder / "kubeconfig")]
    said = folder / "operator.log"
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield Operator(process, said)
    finally:
        process.terminate()
        process.wait(30)
        print(said.read_text())


@pytest.mark.parametrize("where", ["all namespaces", "one namespace"])
def test_with_the_charts_rights_jobs_live_and_die(api_server: Cluster, chart: Chart, tmp_path: Path, where: str) -> None:
    with api_server.namespace("rights") as home, api_server.namespace("jobs") as namespace:
        device_class = f"{namespace}.example.com"
        values: Json = {
            "namespaces": [] if where == "all namespaces" else [namespace],
            "settings": {"devices": {"nvidia": {"deviceClass": device_class}}},
            "crds": {"install": False},
        }
        objects = _moved(chart.objects(values), home)
        made = [item for item in objects if item["kind"] not in ("Deployment", "PodDisruptionBudget")]
        cluster_wide = [item for item in made if item["kind"].startswith("ClusterRole")]
        install_crd(api_server)
        _no_job_is_left(api_server)
        api_server.apply({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": device_class}, "spec": {}})
        try:
            api_server.apply(made)
            with operator(api_server, objects, home, tmp_path) as running:
                _life(api_server, namespace)
                requests = _with_a_renewed_lease(running)
                assert running.process.poll() is None
        finally:
            api_server.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=yaml.safe_dump_all(cluster_wide))
            api_server.kubectl("delete", "deviceclass", device_class)
    assert {code for _, _, code in requests if code in ("401", "403")} == set()
    assert {("PATCH", "RLJob", "200"), ("PUT", "Lease", "200"), ("POST", "Event", "201"), ("DELETE", "Pod", "200")} <= requests.keys()


def _no_job_is_left(cluster: Cluster, seconds: float = 120) -> None:
    """In a namespace that is being deleted nobody may make anything: an operator of all namespaces would be told no there."""
    end = time.monotonic() + seconds
    while left := cluster.get("rljobs", "--all-namespaces")["items"]:
        names = [f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in left]
        assert time.monotonic() < end, f"jobs of other tests are there after {seconds:.0f} s: {names}"
        time.sleep(0.5)


def _with_a_renewed_lease(running: Operator) -> dict[tuple[str, str, str], float]:
    """What it asked, once it has also renewed its Lease: on a quick machine a job's life is over before that."""
    end = time.monotonic() + 20
    while ("PUT", "Lease", "200") not in (requests := running.requests()) and time.monotonic() < end:
        time.sleep(0.2)
    return requests


def _life(cluster: Cluster, namespace: str) -> None:
    """Made, scaled, changed by hand, suspended, resumed, finished, removed."""
    cluster.apply(job("one", ttlSecondsAfterFinished=0), namespace)
    cluster.apply(job("gpu", accelerator={"type": "nvidia", "sharing": "claim"}), namespace)
    for pod in ("one-master", "one-worker-0", "gpu-worker-0"):
        cluster.wait(f"pod/{pod}", "create", namespace)
    assert cluster.get("resourceclaimtemplates", namespace=namespace)["items"]
    cluster.kubectl("scale", "rljob/one", "--replicas=1", "-n", namespace)
    cluster.wait("pod/one-rollout-0", "create", namespace)
    cluster.kubectl(
        "patch", "service/one-master", "-n", namespace, "--type=merge", "-p", '{"spec":{"selector":{"rljob.dev/role":"nobody"}}}'
    )
    cluster.wait("service/one-master", "jsonpath={.spec.selector.rljob\\.dev/role}=master", namespace)
    # As Kueue leaves both pods of a group that ends together.
    for pod in ("one-master", "one-worker-0"):
        cluster.kubectl(
            "patch", f"pod/{pod}", "-n", namespace, "--type=merge", "-p", '{"metadata":{"finalizers":["kueue.x-k8s.io/managed"]}}'
        )
    _suspend(cluster, namespace, True)
    cluster.wait("rljob/one", "condition=Suspended", namespace)
    cluster.wait("pod/one-worker-0", "delete", namespace)
    _suspend(cluster, namespace, False)
    cluster.wait("pod/one-master", "create", namespace)
    done = '{"status":{"phase":"Succeeded"}}'
    cluster.kubectl("patch", "pod/one-master", "-n", namespace, "--subresource=status", "--type=merge", "-p", done)
    # ttlSecondsAfterFinished is 0: the operator removes the job as soon as it has succeeded.
    cluster.wait("rljob/one", "delete", namespace)


def _suspend(cluster: Cluster, namespace: str, yes: bool) -> None:
    cluster.kubectl("patch", "rljob/one", "-n", namespace, "--type=merge", "-p", f'{{"spec":{{"suspend":{str(yes).lower()}}}}}')


def _moved(objects: list[Json], home: str) -> list[Json]:
    """Objects of the release in another namespace, with cluster-wide names of their own."""
    text = yaml.safe_dump_all(objects).replace("rljob-system", home).replace("name: rljob-operator", f"name: {home}-operator")
    return list(yaml.safe_load_all(text.replace(f"name: {home}-operator-lease", "name: rljob-operator-lease")))


def test_what_the_operator_has_no_need_for_is_denied(api_server: Cluster, chart: Chart) -> None:
    with api_server.namespace("rights") as home, api_server.namespace("jobs") as namespace:
        objects = _moved(chart.objects({"crds": {"install": False}}), home)
        roles = [i for i in objects if i["kind"] in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount")]
        try:
            api_server.apply(roles)
            (account,) = [i["metadata"]["name"] for i in objects if i["kind"] == "ServiceAccount"]
            user = f"system:serviceaccount:{home}:{account}"
            for verb, what in DENIED:
                assert _may(api_server, user, namespace, verb, what) == "no", (verb, what)
            assert _may(api_server, user, namespace, "create", "pods") == "yes"
        finally:
            wide = [i for i in roles if i["kind"].startswith("ClusterRole")]
            api_server.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=yaml.safe_dump_all(wide))


DENIED = (
    ("get", "secrets"),
    ("list", "secrets"),
    ("create", "pods/exec"),
    ("get", "pods/log"),
    ("create", "serviceaccounts/token"),
    ("create", "rljobs.rljob.dev"),
    ("patch", "rljobs.rljob.dev"),
    ("update", "rljobs.rljob.dev/status"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("impersonate", "users"),
    ("get", "nodes"),
    ("list", "namespaces"),
    ("update", "leases.coordination.k8s.io"),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io"),
)


def _may(cluster: Cluster, user: str, namespace: str, verb: str, what: str) -> str:
    resource, _, sub = what.partition("/")
    try:
        return cluster.kubectl("auth", "can-i", verb, resource, f"--subresource={sub}", "--as", user, "-n", namespace).strip()
    except KubectlError:
        # kubectl says no with status 1 as well.
        return "no"
