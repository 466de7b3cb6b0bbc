"""A cluster that somebody else made (RLJOB_TEST_KUBECONFIG): what it must not hold, and how it is left as it was found."""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from tests.cluster import state
from tests.cluster.box import ClusterError
from tests.cluster.build import binary
from tests.cluster.handle import MADE_HERE, Cluster, Object, Server
from tests.cluster.images import write_image

CRD = "customresourcedefinition/rljobs.rljob.dev"


class ExistingCluster(Cluster):
    """A cluster that somebody else made and manages."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.kubectl("version")

    @cached_property
    def probe(self) -> str:
        name = "localhost/rljob-probe:1"
        with tempfile.TemporaryDirectory(prefix="rljob-probe-") as folder:
            archive = Path(folder) / "probe.tar"
            write_image(archive, name, {"/probe": binary("probe")}, ["/probe"], ["pause"])
            self.load_image(archive)
        return name

    def load_image(self, archive: Path) -> None:
        command = os.environ.get("RLJOB_TEST_LOAD_IMAGE", "")
        if "{}" not in command:
            raise ClusterError(
                f"RLJOB_TEST_LOAD_IMAGE is {command!r}: to load {archive} into the cluster of RLJOB_TEST_KUBECONFIG, set it to a command "
                "with {} for the archive's path, for example 'kind load image-archive {}'"
            )
        subprocess.run([word.replace("{}", str(archive)) for word in shlex.split(command)], check=True, timeout=1800)

    def signal_container(self, namespace: str, pod: str, container: str, signal: str) -> bool:
        return False

    def registry(self) -> str:
        raise self._unable("a registry")

    def devices(self, count: int = 8) -> None:
        raise self._unable("fake devices")

    @contextmanager
    def network_policies(self) -> Iterator[bool]:
        yield False  # its network plugin enforces them always, or never

    def fake_nodes(self, count: int) -> None:
        raise self._unable("fake nodes")

    def process(self, name: str) -> Server:
        raise self._unable(f"the process {name}")

    def log(self, name: str) -> Path:
        raise self._unable(f"the log of {name}")

    def _unable(self, what: str) -> ClusterError:
        return ClusterError(
            f"{what} can only be had from a cluster of the tests' own; unset RLJOB_TEST_KUBECONFIG ({self.kubeconfig}) for this test, "
            "and mark it own_cluster"
        )


def in_use(namespaces: Sequence[Object], operators: Sequence[Object], jobs: Sequence[Object]) -> str:
    """Why the tests must not use a cluster, and what to do; empty if they may. Pure."""

    def names(objects: Sequence[Object]) -> str:
        found = ["/".join(filter(None, (o["metadata"].get("namespace"), o["metadata"]["name"]))) for o in objects]
        return ", ".join(sorted(found)[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")

    system = [o for o in namespaces if o["metadata"]["name"] == "rljob-system"]
    left = [o for o in namespaces if MADE_HERE in o["metadata"].get("labels", {})]
    if left:
        return (
            f"it has namespaces of tests that run just now, or did not end well ({names(left)}); wait for them, or remove what they left: "
            f"kubectl delete namespace --selector {MADE_HERE}"
        )
    if system or operators:
        what = f"namespace {names(system)}" if system else f"Deployment {names(operators)}"
        return f"RLJob's operator is installed in it ({what}), and would act on the tests' jobs; uninstall it, or take another cluster"
    if jobs:
        return f"it holds RLJobs ({names(jobs)}), and the tests' operators would act on them; take another cluster"
    return ""


def why_not(cluster: Cluster) -> str:
    """What speaks against the use of a cluster; empty if nothing does."""
    operators = cluster.get("deployments", "--all-namespaces", "--selector=app.kubernetes.io/name=rljob")["items"]
    jobs = cluster.get("rljobs", "--all-namespaces")["items"] if _definition(cluster) else []
    return in_use(cluster.get("namespaces")["items"], operators, jobs)


def _definition(cluster: Cluster) -> Object | None:
    text = cluster.kubectl("get", CRD, "--ignore-not-found", "--output=json")
    found: Object | None = json.loads(text) if text else None
    return found


@contextmanager
def as_found(cluster: Cluster) -> Iterator[None]:
    """Afterwards no namespace of a test is left, and the CustomResourceDefinition is as it was, or gone if there was none."""
    before = _definition(cluster)
    try:
        yield
    finally:
        state.until(lambda: not cluster.get("namespaces", f"--selector={MADE_HERE}")["items"], "namespaces of tests are still there", 300)
        if before is None:
            cluster.kubectl("delete", CRD, "--ignore-not-found", "--timeout=60s", timeout=90)
        elif (now := _definition(cluster)) is None or now["spec"] != before["spec"]:
            kept = {name: value for name, value in before["metadata"].items() if name in ("name", "labels", "annotations")}
            again = {"apiVersion": before["apiVersion"], "kind": before["kind"], "metadata": kept, "spec": before["spec"]}
            cluster.kubectl("replace" if now else "create", "--filename=-", stdin=json.dumps(again))
