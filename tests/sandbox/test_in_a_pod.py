"""A real kubelet starts the sandbox's pods as they are rendered, and programs run in them isolated."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.cluster.cluster import LocalCluster
from tests.cluster.handle import Cluster
from tests.manifests.jobs import ROOT, find, tiny

from rljob.api import RLJob
from rljob.manifests import Cluster as Offer
from rljob.manifests import Manifest, Owner, Settings, render
from rljob.plan import plan
from rljob.sandbox.protections import missing

pytestmark = [pytest.mark.slow, pytest.mark.own_cluster, pytest.mark.images("sandbox"), pytest.mark.timeout(600)]

PROFILE = ROOT / "charts" / "rljob" / "files" / "sandbox-seccomp.json"


def image(archive: Path) -> Path:
    """The image, built if it is not there, as an archive."""
    command = [sys.executable, "images/build.py", "--only", "sandbox", "--archive", str(archive)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return archive


def job(runtime: str) -> RLJob:
    """One slot, and little CPU asked for; the runtime is what the test cluster's other pods do without."""
    little = "{name: sandbox, resources: {requests: {cpu: 100m, memory: 256Mi}}}"
    return tiny(
        "spec.sandbox.enabled=true",
        "spec.sandbox.slots=1",
        f"spec.templates.sandbox.spec={{runtimeClassName: {runtime}, containers: [{little}]}}",
    )


def of_the_sandbox(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    """Its account, Deployment and Service."""
    return [find(manifests, kind, "tiny-sandbox") for kind in ("ServiceAccount", "Deployment", "Service")]


def test_the_sandboxs_deployment_becomes_ready_and_isolates(cluster: Cluster, tmp_path: Path) -> None:
    assert isinstance(cluster, LocalCluster)
    cluster.load_image(image(tmp_path / "sandbox.tar"))
    cluster.add_seccomp_profile("rljob/sandbox.json", PROFILE)
    with cluster.namespace("sandbox") as namespace:
        made = job(cluster.user_namespaces())
        manifests = render(made, plan(made), Owner("tiny", namespace, uid=None), Settings(), Offer((1, 36), frozenset()))
        cluster.apply(of_the_sandbox(manifests), namespace)
        cluster.wait("deployment/tiny-sandbox", "condition=Available", namespace, timeout=120)
        (pod,) = cluster.get("pods", "--selector=rljob.dev/role=sandbox", namespace=namespace)["items"]
        users = cluster.kubectl("exec", pod["metadata"]["name"], f"--namespace={namespace}", "--", "cat", "/proc/self/uid_map").split()
        assert users[0] == "0"
        assert users[1] != "0", "the pod's root is the machine's"
        with httpx.Client(base_url=f"http://{pod['status']['podIP']}:8082", trust_env=False, timeout=60) as client:
            on = client.get("/v1/languages").json()["protections"]
            ran = client.post("/v1/run", json={"language": "python", "code": "print(int(input()) ** 2)", "stdin": "12"}).json()
            asked = "import socket; socket.create_connection(('10.100.0.1', 443), 2)"
            outside = client.post("/v1/run", json={"language": "python", "code": asked}).json()
        assert (ran["status"], ran["run"]["stdout"]) == ("ok", "144\n")
        assert outside["status"] == "runtime_error"
        assert "Operation not permitted" in outside["run"]["stderr"]
        assert missing(on, "namespaces") == "", on
