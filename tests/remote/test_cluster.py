"""`kubectl rljob` against a real API server. What an operator would write, the tests write."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.handle import Cluster
from tests.controller.process import install_crd
from tests.remote.twins import EVENTS, PODS, STATUS

from rljob.api import InfrastructureError
from rljob.remote.cluster import NotFound, Target, connect

BIN = Path(sys.executable).parent
SPEC = {
    "model": {"source": {"path": "model"}},
    "data": {"train": {"path": "train.jsonl"}},
    "iterations": 20,
    "rollout": {"replicas": 2},
    "files": {"claim": "data"},
}


@dataclass(frozen=True)
class Place:
    """A namespace with the job `sums`, whose status, pods and events stand as an operator leaves them."""

    server: Cluster
    namespace: str

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        path = f"{BIN}:{self.server.bin('kubectl').parent}:{os.environ['PATH']}"
        return os.environ | {"KUBECONFIG": str(kubeconfig or self.server.kubeconfig), "PATH": path, "COLUMNS": "140"}

    def run(self, *words: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command line, as a person types it."""
        return subprocess.run(words, env=self.environment(kubeconfig), capture_output=True, text=True, timeout=60, check=False)

    def say(self, **status: Any) -> None:
        """What an operator would write into the status."""
        patch = yaml.safe_dump({"status": status})
        self.server.kubectl("patch", "rljob/sums", "--subresource=status", "--type=merge", "-p", patch, "-n", self.namespace)


@pytest.fixture(scope="module")
def server(api_server: Cluster) -> Cluster:
    install_crd(api_server)
    return api_server


@pytest.fixture(scope="module")
def place(server: Cluster) -> Iterator[Place]:
    """For tests that only look."""
    yield from _made(server)


@pytest.fixture
def own(server: Cluster) -> Iterator[Place]:
    """For tests that change the job."""
    yield from _made(server)


def _made(server: Cluster) -> Iterator[Place]:
    with server.namespace("remote") as namespace:
        made = Place(server, namespace)
        job = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "sums"}, "spec": SPEC}
        server.apply(job, namespace=namespace)
        made.say(**STATUS | {"observedGeneration": 1})
        _write_pods(made)
        _write_events(made)
        yield made


def _write_pods(place: Place) -> None:
    pods, states = [], []
    for pod in PODS:
        head: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod["metadata"]["name"]}}
        containers = {kind: [c | {"image": "x"} for c in pod["spec"][kind]] for kind in ("initContainers", "containers")}
        # Of a scheduler that nobody is: no kubelet, where there is one, says anything else of them.
        spec = containers | {"schedulerName": "nobody"}
        pods.append(head | {"metadata": head["metadata"] | {"labels": pod["metadata"]["labels"]}, "spec": spec})
        status: dict[str, Any] = {"phase": pod["status"]["phase"]}
        for kind in ("initContainerStatuses", "containerStatuses"):
            status[kind] = [{"image": "x", "imageID": "x"} | state for state in pod["status"][kind]]
        states.append(head | {"status": status})
    place.server.apply(pods, namespace=place.namespace)
    written = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": states})
    place.server.kubectl("apply", "--server-side", "--subresource=status", "-n", place.namespace, "-f", "-", stdin=written)


def _write_events(place: Place) -> None:
    events = []
    for number, event in enumerate(EVENTS):
        about = event["involvedObject"] | {"namespace": place.namespace}
        events.append(event | {"apiVersion": "v1", "kind": "Event", "metadata": {"name": f"event-{number}"}, "involvedObject": about})
    place.server.apply(events, namespace=place.namespace)


def _steady(line: str) -> bool:
    return not any(word in line for word in (" ago", "team-a", "EVENT"))


def test_status_is_one_screen_and_the_same_by_both_names(place: Place) -> None:
    shown = place.run("kubectl", "rljob", "status", "sums", "-n", place.namespace)
    assert shown.returncode == 0, shown.stderr
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert lines[0].startswith(f"sums  {place.namespace}  Rollout  iteration 7/20  policy version 6  age 0:")
    golden = (Path(__file__).parent / "screens" / "running.txt").read_text().splitlines()
    # All but ages, and the namespace in the advice, is as on the golden screen.
    assert [line for line in golden if _steady(line) and line not in lines] == []
    assert any("Back-off pulling image" in line and "(× 7)" in line for line in lines)
    (failure,) = [line for line in lines if line.startswith("last failure")]
    assert re.search(r"  worker-0, train, ProcessDied, \d+ \w+ ago: the trainer was killed; it goes on from version 5$", failure)
    assert not any("of another job" in line for line in lines)
    same = place.run("rljob", "status", "sums", "-n", place.namespace)
    assert [line for line in same.stdout.splitlines()[1:] if _steady(line)] == [
        line for line in shown.stdout.splitlines()[1:] if _steady(line)
    ]


def test_status_as_json_is_what_the_cluster_holds(place: Place) -> None:
    shown = place.run("kubectl", "rljob", "status", "sums", "-n", place.namespace, "-o", "yaml")
    assert yaml.safe_load(shown.stdout)["heldOut"] == STATUS["heldOut"]


def test_the_plan_of_a_job_in_the_cluster_is_the_one_of_its_file(place: Place, tmp_path: Path) -> None:
    shown = place.run("kubectl", "rljob", "plan", "sums", "-n", place.namespace, "-o", "json")
    assert shown.returncode == 0, shown.stderr
    assert [p["replicas"] for p in json.loads(shown.stdout)["plan"]["pods"] if p["role"] == "rollout"] == [1, 1]
    assert place.run("rljob", "plan", "sums", "-n", place.namespace, "-o", "json").stdout == shown.stdout
    file = tmp_path / "sums.yaml"
    file.write_text(place.server.kubectl("get", "rljob/sums", "-o", "yaml", "-n", place.namespace))
    same = json.loads(place.run("kubectl", "rljob", "plan", str(file), "-o", "json").stdout)
    assert same["plan"]["pods"] == json.loads(shown.stdout)["plan"]["pods"]
    missing = place.run("kubectl", "rljob", "plan", "sum", "-n", place.namespace)
    assert (missing.returncode, "did you mean sums?" in missing.stderr) == (2, True)
    refused = place.run("kubectl", "rljob", "plan", "sums", "--set", "spec.iterations=3", "-n", place.namespace)
    assert (refused.returncode, "--set spec.iterations=3: is for files" in refused.stderr) == (2, True)


def test_without_a_name_every_job_has_a_line(place: Place) -> None:
    shown = place.run("kubectl", "rljob", "status", "-n", place.namespace)
    assert shown.stdout.splitlines()[1].split()[:5] == ["sums", "Rollout", "7/20", "0.430", "▁▁▃▅▆█"]
    assert f"\n{place.namespace} " in place.run("kubectl", "rljob", "status", "-A").stdout
    assert place.run("kubectl", "rljob", "status", "-n", "default").stdout.strip() in ("no RLJobs in namespace default",)


@pytest.mark.parametrize(
    ("name", "namespace", "message"),
    [
        ("sum", None, "did you mean sums?"),
        ("sums", "nowhere", "there is no RLJob 'sums' in namespace nowhere"),
        ("sums", "nowhere", "there is one in namespace remote-"),
    ],
)
def test_a_job_that_is_not_there_is_said_so_with_the_near_one(place: Place, name: str, namespace: str | None, message: str) -> None:
    shown = place.run("kubectl", "rljob", "status", name, "-n", namespace or place.namespace)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_cluster_without_the_definition_is_told_from_one_without_the_job(place: Place) -> None:
    api = connect(Target(place.server.kubeconfig, namespace=place.namespace))
    with pytest.raises(NotFound) as caught:
        api.get("/apis/other.dev/v1/namespaces/x/others/y")
    assert not caught.value.known_path
    with pytest.raises(NotFound) as caught:
        api.get(f"/apis/rljob.dev/v1alpha1/namespaces/{place.namespace}/rljobs/other")
    assert caught.value.known_path


def test_watch_shows_what_is_new_and_ends_with_the_job(own: Place) -> None:
    command = ["kubectl", "rljob", "watch", "sums", "-n", own.namespace, "--every", "0.2"]
    with subprocess.Popen(command, env=own.environment(), stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = iter(watching.stdout)
        assert next(lines) == "sums: Rollout\n"
        assert [next(lines).partition(":")[0] for _ in range(6)] == [f"iteration {n}/20" for n in range(1, 7)]
        own.say(rewards=[*STATUS["rewards"], 0.5], phase="Succeeded")
        rest = "".join(lines)
    assert "sums: Succeeded" in rest
    assert "iteration 7/20: mean reward 0.500" in rest
    assert watching.returncode == 0
    own.say(phase="Failed")
    assert own.run(*command).returncode == 1


def test_scale_suspend_and_resume_change_the_spec_and_nothing_else(own: Place) -> None:
    before = own.server.get("rljob/sums", namespace=own.namespace)["spec"]
    assert own.run("kubectl", "rljob", "scale", "sums", "4", "-n", own.namespace).stdout == "sums: rollout replicas 2 -> 4\n"
    assert own.run("kubectl", "rljob", "suspend", "sums", "-n", own.namespace).stdout == "sums: suspended\n"
    assert own.run("kubectl", "rljob", "suspend", "sums", "-n", own.namespace).stdout == "sums: is suspended already\n"
    after = own.server.get("rljob/sums", namespace=own.namespace)["spec"]
    assert after == before | {"suspend": True, "rollout": before["rollout"] | {"replicas": 4}}
    assert own.run("kubectl", "rljob", "resume", "sums", "-n", own.namespace).stdout == "sums: resumed\n"
    assert own.server.get("rljob/sums", namespace=own.namespace)["spec"]["suspend"] is False


def kubeconfig(place: Place, folder: Path, user: dict[str, Any]) -> Path:
    """The cluster's kubeconfig with other credentials and the job's namespace."""
    config = yaml.safe_load(place.server.kubectl("config", "view", "--raw", "--minify"))
    config["users"][0]["user"] = user
    config["contexts"][0]["context"]["namespace"] = place.namespace
    file = folder / "config"
    file.write_text(yaml.safe_dump(config))
    return file


def token(place: Place, *, role: str) -> str:
    """Of a service account with a role in the namespace."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": role}}
    rules = [{"apiGroups": ["rljob.dev"], "resources": ["rljobs"], "verbs": ["get", "list"]}]
    rules += [{"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["get", "list"]}] if role == "reader" else []
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    subject = {"kind": "ServiceAccount", "name": role, "namespace": place.namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}
    place.server.apply(
        [
            account,
            kind | {"kind": "Role", "metadata": {"name": role}, "rules": rules},
            kind | {"kind": "RoleBinding", "metadata": {"name": role}, "subjects": [subject], "roleRef": reference},
        ],
        namespace=place.namespace,
    )
    return place.server.kubectl("create", "token", role, "-n", place.namespace).strip()


def test_a_token_works_and_the_contexts_namespace_is_the_default(place: Place, tmp_path: Path) -> None:
    file = kubeconfig(place, tmp_path, {"token": token(place, role="reader")})
    shown = place.run("kubectl", "rljob", "status", "sums", kubeconfig=file)
    assert shown.stdout.startswith(f"sums  {place.namespace}  Rollout"), shown.stderr
    missing = place.run("kubectl", "rljob", "status", "other", kubeconfig=file)
    assert "there are: sums" in missing.stderr, "who may look at one namespace only gets an answer too"


def test_an_exec_plugin_works(place: Place, tmp_path: Path) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": token(place, role="reader")},
    }
    (tmp_path / "credential.json").write_text(yaml.safe_dump(credential, default_flow_style=True, width=100000))
    plugin = tmp_path / "plugin"
    plugin.write_text(
        f"#!{sys.executable}\nimport json, yaml\nprint(json.dumps(yaml.safe_load(open({str(tmp_path / 'credential.json')!r}))))\n"
    )
    plugin.chmod(0o755)
    how = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    shown = place.run("kubectl", "rljob", "status", "sums", kubeconfig=kubeconfig(place, tmp_path, {"exec": how}))
    assert shown.stdout.startswith(f"sums  {place.namespace}  Rollout"), shown.stderr


def test_who_may_not_is_told_what_is_missing(place: Place, tmp_path: Path) -> None:
    shown = place.run("kubectl", "rljob", "status", "sums", kubeconfig=kubeconfig(place, tmp_path, {"token": token(place, role="half")}))
    assert shown.returncode == 2
    assert 'cannot list resource "pods"' in shown.stderr
    wrong = place.run("kubectl", "rljob", "status", "sums", kubeconfig=kubeconfig(place, tmp_path, {"token": "wrong"}))
    assert "does not accept the credentials" in wrong.stderr


def test_a_cluster_that_does_not_answer_is_worth_another_try(place: Place, tmp_path: Path) -> None:
    config = yaml.safe_load(place.server.kubectl("config", "view", "--raw", "--minify"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    with pytest.raises(InfrastructureError, match=r"the cluster does not answer .*127\.0\.0\.1:1"):
        connect(Target(tmp_path / "config")).get("/version")
    assert place.run("kubectl", "rljob", "status", "x", kubeconfig=tmp_path / "config").returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "sums", "--context", "nowhere"), "the kubeconfig cannot be used"),
        (("status", "sums", "--kubeconfig", "/nowhere/config"), "--kubeconfig /nowhere/config: there is no such file"),
        (("status", "sums", "--kubeconfig", "/etc"), "--kubeconfig /etc: is a folder"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_said_so(place: Place, words: tuple[str, ...], message: str) -> None:
    shown = place.run("kubectl", "rljob", *words)
    assert (shown.returncode, message in shown.stderr, shown.stderr.count("\n")) == (2, True, 1), shown.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("clusters: [", "is not YAML: line 1, column 12"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: ''}}]\n",
            "the server of context x is ''; it must be an address",
        ),
    ],
)
def test_a_kubeconfig_that_is_broken_is_said_so(place: Place, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config").write_text(content)
    shown = place.run("kubectl", "rljob", "status", "sums", kubeconfig=tmp_path / "config")
    assert (shown.returncode, words in shown.stderr, shown.stderr.count("\n")) == (2, True, 1), shown.stderr


def test_without_any_kubeconfig_the_remedy_is_named(place: Place, tmp_path: Path) -> None:
    shown = place.run("kubectl", "rljob", "status", "sums", kubeconfig=tmp_path / "none")
    assert shown.returncode == 2
    assert "set KUBECONFIG or give --kubeconfig FILE" in shown.stderr


def test_a_folder_is_a_run_of_this_machine_and_a_namespace_makes_it_a_cluster(place: Place) -> None:
    shown = place.run("rljob", "status", "sums")
    assert "sums is not a job folder" in shown.stderr
    assert "or -n NAMESPACE with the name of a job in a cluster" in shown.stderr


def test_kubectl_completes_names_of_jobs(place: Place) -> None:
    offered = place.run("kubectl", "__complete", "rljob", "status", "-n", place.namespace, "s")
    assert offered.stdout.splitlines()[0] == "sums", offered.stderr
