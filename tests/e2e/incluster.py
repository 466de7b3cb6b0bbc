"""Installs the operator into a cluster as a user would, and looks at jobs there."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.cluster.cluster import LocalCluster
from tests.cluster.existing import ExistingCluster
from tests.cluster.handle import Cluster, KubectlError, Object

from rljob.rollout.client import parse_metrics

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
IMAGES = ("operator", "master", "reward", "trainer", "rollout")
LEASE_SECONDS = 6
KINDS = "pods,deployments,services,configmaps,persistentvolumeclaims,serviceaccounts,networkpolicies,poddisruptionbudgets"
"""Of the objects that are made for a job."""


@dataclass(frozen=True)
class Release:
    """An installation of the operator."""

    namespace: str
    name: str


def build_images(archive: Path, *more: str) -> None:
    """Builds what is missing of IMAGES and more, and writes all of them into one archive (shared layers once)."""
    command = [sys.executable, "images/build.py", "--only", ",".join((*IMAGES, *more)), "--archive", str(archive)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]


def helm(cluster: Cluster, *arguments: str, timeout: float = 240) -> str:
    """What helm printed."""
    command = [str(cluster.bin("helm")), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr[-4000:]}\n{_looks(cluster)}"
    return done.stdout


def _looks(cluster: Cluster) -> str:
    """Nodes and pods of a cluster in which something did not start, and what has happened there."""
    nodes = [
        f"{node['metadata']['name']}: {each['type']}={each['status']} ({each.get('message', '')})"
        for node in cluster.get("nodes")["items"]
        for each in node["status"].get("conditions", ())
    ]
    pods = cluster.kubectl("get", "pods", "--all-namespaces", "--output=wide")
    events = cluster.kubectl("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp").splitlines()
    return "\n".join([*nodes, pods, *events[-40:]])


def install(cluster: Cluster, release: Release) -> None:
    """The chart with two operators, and small settings for a small machine."""
    values: Object = {
        "images": {"tag": "latest"},
        # A killed operator's Lease holds its successor up for so long.
        "settings": {"imagePullPolicy": "IfNotPresent", "progressSeconds": 1, "leaderElection": {"seconds": LEASE_SECONDS}},
        "resources": {"requests": {"cpu": "100m"}},
    }
    if isinstance(cluster, ExistingCluster):
        # Few storage classes can do more.
        values["settings"]["accessMode"] = "ReadWriteOnce"
    words = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    # Other tests may have made the CustomResourceDefinition: the release takes it over.
    words += ["--take-ownership", "--force-conflicts", "--server-side=true"]
    helm(cluster, "install", release.name, "charts/rljob", "--namespace", release.namespace, "--wait", "--timeout", "180s", *words)


def uninstall(cluster: Cluster, release: Release) -> None:
    """Takes the operator away: it would go on to act on whatever other tests put into the cluster."""
    helm(cluster, "uninstall", release.name, "--namespace", release.namespace, "--ignore-not-found", "--wait", "--timeout", "120s")


def prompts() -> Object:
    """The tiny example's prompts as users put them into a cluster: a ConfigMap."""
    return _prompts({name: (TINY / name).read_text() for name in ("train.jsonl", "heldout.jsonl")})


def programs() -> Object:
    """The same words, with a program for an answer that is told how long the word is: half of the demonstrations are wrong."""

    def asked(line: str, program: str) -> str:
        word = json.loads(line)["prompt"]
        test = {"call": {"function": "f", "arguments": [word], "expected": len(word)}}
        return json.dumps({"prompt": word, "reference": {"tests": [test]}, "demonstration": f"```\nf={program}\n```"}) + "\n"

    def file(name: str, lines: int) -> str:
        words = (TINY / name).read_text().splitlines()[:lines]
        return "".join(asked(line, ("len", "str")[index % 2]) for index, line in enumerate(words))

    return _prompts({"train.jsonl": file("train.jsonl", 512), "heldout.jsonl": file("heldout.jsonl", 16)})


def _prompts(files: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prompts"}, "data": files}


def job(name: str, **spec: Any) -> Object:
    """The tiny example, asking for little CPU so that two jobs fit on two cores."""
    found: Object = yaml.safe_load((TINY / "rljob.yaml").read_text())
    found["metadata"]["name"] = name
    found["spec"] |= {"files": {"configMap": "prompts"}, "templates": _little(), **spec}
    return found


def _little() -> Object:
    return {
        "master": {"spec": {"initContainers": _ask("prepare"), "containers": _ask("master")}},
        "worker": {"spec": {"initContainers": _ask("megatron", "vllm"), "containers": _ask("checkpoint-engine")}},
        "rollout": {"spec": {"initContainers": _ask("vllm"), "containers": _ask("checkpoint-engine")}},
        "reward": {"spec": {"containers": _ask("reward")}},
    }


def _ask(*containers: str) -> list[Object]:
    return [{"name": each, "resources": {"requests": {"cpu": "50m"}}} for each in containers]


def judged_by_programs(manifest: Object, cluster: LocalCluster) -> Object:
    """The job with `programs` for its prompts, and a sandbox that runs the answers; its nodes are prepared as docs/sandbox.md says."""
    cluster.add_seccomp_profile("rljob/sandbox.json", ROOT / "charts/rljob/files/sandbox-seccomp.json")
    spec = manifest["spec"]
    spec |= {"reward": {"verifier": "code"}, "sandbox": {"slots": 1}}
    spec["rollout"]["maxTokens"] = 16
    # The runtime is what the test cluster's other pods do without.
    spec["templates"]["sandbox"] = {"spec": {"runtimeClassName": cluster.user_namespaces(), "containers": _ask("sandbox")}}
    return manifest


_METRICS = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8082/metrics', timeout=5).read().decode())"
_VERDICTS = re.compile(r'^rljob_sandbox_verdicts_total\{[^}]*verdict="(?!sandbox_error)[^}]*\} ([\d.e+]+)$', re.MULTILINE)


def programs_judged(cluster: Cluster, namespace: str, pod: str) -> int:
    """Submissions that a sandbox pod has judged, as it says itself when it is asked from inside: nobody else gets in. 0 if it is going."""
    try:
        text = cluster.kubectl("exec", pod, "--namespace", namespace, "--", "python", "-c", _METRICS)
    except KubectlError:
        return 0
    return int(sum(float(count) for count in _VERDICTS.findall(text)))


class Watched:
    """A job in a cluster."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    @property
    def object(self) -> Object:
        """The RLJob as it is."""
        return self.cluster.get(f"rljob/{self.name}", namespace=self.namespace)

    @property
    def status(self) -> Object:
        """Its status; {} before the first."""
        found: Object = self.object.get("status") or {}
        return found

    def live(self) -> Object:
        """What the master says now; {} while it does not answer. The status of the RLJob is up to a minute older in what changes always."""
        found: Object = json.loads(self._ask("master:8080", "v1/status") or "{}")
        return found

    def generating(self, node: str) -> int:
        """Answers that the engine of a pod is writing, as it says itself; 0 if it does not answer."""
        return parse_metrics(self._ask(f"{node}:8000", "metrics")).running

    def _ask(self, node: str, path: str) -> str:
        place = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}-{node}/proxy/{path}"
        try:
            return self.cluster.kubectl("get", "--raw", place, "--request-timeout=3s")
        except KubectlError:
            return ""

    def pods(self) -> list[Object]:
        """Its pods that are not on their way out."""
        found = self.cluster.get("pods", "--selector", f"rljob.dev/job={self.name}", namespace=self.namespace)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def until(self, done: Callable[[Object], bool], seconds: float, what: str) -> Object:
        """Waits for a status. Fails at once when the job has failed, or stands still until somebody mends it."""
        end = time.monotonic() + seconds
        status: Object = {}
        while time.monotonic() < end:
            status = self.status
            if done(status):
                return status
            over = status.get("phase") == "Failed" or condition(status, "Stalled") == "True"
            assert not over, f"{what}: the job goes on no more: {json.dumps(status.get('conditions'))}\n{self.told()}"
            time.sleep(1)
        raise AssertionError(f"{what}: not within {seconds:.0f} s; status {json.dumps(status)[:3000]}\n{self.told()}")

    def events(self) -> list[Object]:
        """What the operator has told about it."""
        found = self.cluster.get("events", "--field-selector=involvedObject.kind=RLJob", namespace=self.namespace)["items"]
        return [event for event in found if event["involvedObject"]["name"] == self.name]

    def soon(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits for something that may last for less than a second."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s; {json.dumps(self.live())[:3000]}\n{self.told()}"
            time.sleep(0.1)

    def children(self) -> dict[str, str]:
        """Kind and name of what was made for it, with uids."""
        found = self.cluster.get(KINDS, f"--selector=rljob.dev/job={self.name}", namespace=self.namespace)["items"]
        return {f"{each['kind']} {each['metadata']['name']}": each["metadata"]["uid"] for each in found}

    def told(self) -> str:
        """Pods, events and the ends of the logs, for a failed test."""
        words = [("get", "pods", "-o", "wide"), ("events",)]
        for pod in self.pods():
            words += [("logs", pod["metadata"]["name"], "--all-containers", "--prefix", "--tail=25")]
        said = []
        for command in words:
            try:
                said.append(self.cluster.kubectl(*command, "-n", self.namespace)[-5000:])
            except KubectlError as error:
                said.append(str(error))
        return "\n".join(said)


class Onlooker:
    """A pod that is no job's."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.name = "onlooker"
        container = {
            "name": "onlooker",
            "image": "rljob/master:latest",
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
        }
        spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}, namespace)
        cluster.wait(f"pod/{self.name}", "condition=Ready", namespace, timeout=270)


_CONNECTS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
except OSError as error:
    sys.exit(f"OSError: {error}")
"""


def connects(cluster: Cluster, namespace: str, pod: str, address: str, port: int) -> bool:
    """Whether a pod gets through to an address."""
    try:
        cluster.kubectl("exec", pod, "--namespace", namespace, "--", "python", "-c", _CONNECTS, address, str(port))
    except KubectlError as error:
        if "OSError: " not in error.stderr:
            raise
        return False
    return True


_TRIES = """
import json, socket, sys, time
until, tries = time.time() + float(sys.argv[3]), []
while time.time() < until:
    began = time.time()
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
        through = True
    except OSError:
        through = False
    tries.append((began, time.time(), through))
    time.sleep(0.1)
print(json.dumps(tries))
"""
Try = tuple[float, float, bool]
"""To connect: when it began, when it ended, and whether it got through."""


def tries(cluster: Cluster, namespace: str, pod: str, address: str, port: int, seconds: float) -> list[Try]:
    """What a pod that tries to get through to an address again and again, each time for a second, meets for so long."""
    return [
        (began, ended, through)
        for began, ended, through in json.loads(
            cluster.kubectl("exec", pod, "--namespace", namespace, "--", "python", "-c", _TRIES, address, str(port), str(seconds))
        )
    ]


def within(one: Try, others: Sequence[Try]) -> bool:
    """Whether the others got through last before this try, first after it, and all along."""
    before = [through for _, ended, through in others if ended <= one[0]]
    during = [through for began, ended, through in others if ended > one[0] and began < one[1]]
    after = [through for began, _, through in others if began >= one[1]]
    return bool(before) and bool(after) and before[-1] and after[0] and all(during)


class Volume:
    """A job's volume, looked at through a pod that has it mounted."""

    def __init__(self, cluster: Cluster, namespace: str, claim: str) -> None:
        self._cluster, self._namespace, self._pod = cluster, namespace, f"reads-{claim}"
        container = {
            "name": "reader",
            "image": "rljob/master:latest",
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "volumeMounts": [{"name": "work", "mountPath": "/work", "readOnly": True}],
        }
        volumes = [{"name": "work", "persistentVolumeClaim": {"claimName": claim}}]
        spec = {"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": volumes}
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self._pod}, "spec": spec}, namespace)
        cluster.wait(f"pod/{self._pod}", "condition=Ready", namespace, timeout=90)

    def copy(self, what: str, target: Path) -> None:
        """A folder of it, into a folder here."""
        subprocess.run(
            ["tar", "-C", str(target), "-xf", "-"], input=self._run("tar", "-C", "/work", "-cf", "-", what), check=True, timeout=120
        )

    def digests(self) -> dict[str, str]:
        """Path -> SHA-256 of every file."""
        lines = self._run("sh", "-c", "cd /work && find . -type f -exec sha256sum {} +").decode().splitlines()
        return {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}

    def let_go(self) -> None:
        """The claim is not deleted as long as a pod uses it."""
        self._cluster.kubectl("delete", "pod", self._pod, "-n", self._namespace, "--wait=false")

    def _run(self, *words: str) -> bytes:
        kubectl = [str(self._cluster.bin("kubectl")), "--kubeconfig", str(self._cluster.kubeconfig)]
        command = [*kubectl, "exec", self._pod, "--namespace", self._namespace, "--", *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=120, check=True).stdout


def condition(status: Object, kind: str) -> str:
    """`True`, `False` or `` of a condition."""
    return next((each["status"] for each in status.get("conditions") or () if each["type"] == kind), "")


def names(objects: Sequence[Object]) -> list[str]:
    """Names of objects."""
    return sorted(each["metadata"]["name"] for each in objects)
