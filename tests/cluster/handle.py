"""A cluster as a test sees it: kubectl and a few conveniences. The same for a cluster made here and for one that was there."""

import json
import secrets
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.box import ClusterError
from tests.cluster.build import binary

Object = dict[str, Any]
MADE_HERE = "rljob.dev/made-by-tests"
"""Label of the namespaces that tests make."""


class KubectlError(ClusterError):
    """kubectl refused or failed; what it printed is in `stderr`."""

    def __init__(self, arguments: Sequence[str], status: int, stderr: str) -> None:
        super().__init__(f"kubectl {shlex.join(arguments)} ended with {status}: {stderr.strip()}")
        self.status = status
        self.stderr = stderr


class Server(ABC):
    """One server of a cluster, for tests that stop it."""

    @abstractmethod
    def start(self) -> None:
        """Starts it again, after `stop` or `kill`."""

    @abstractmethod
    def stop(self) -> None:
        """Asks it to end, and waits until it has."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it without asking."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process as this machine sees it, for measuring."""


def _text(what: Object | Sequence[Object] | str) -> str:
    if isinstance(what, str):
        return what
    return json.dumps(what if isinstance(what, dict) else {"apiVersion": "v1", "kind": "List", "items": [*what]})


def _in(namespace: str | None) -> list[str]:
    return [] if namespace is None else ["--namespace", namespace]


class Cluster(ABC):
    """A Kubernetes cluster that tests may use as its administrator."""

    kubeconfig: Path

    def bin(self, name: str) -> Path:
        """A program by name, for example "kubectl" or "helm"."""
        return binary(name)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """What kubectl printed. Raises `KubectlError`."""
        command = [str(self.bin("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(
            command, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode != 0:
            raise KubectlError(arguments, done.returncode, done.stderr)
        return done.stdout

    def get(self, *arguments: str, namespace: str | None = None) -> Object:
        """An object, or with several or none a List, as parsed JSON."""
        found: Object = json.loads(self.kubectl("get", *arguments, "--output=json", *_in(namespace)))
        return found

    def apply(self, what: Object | Sequence[Object] | str | Path, namespace: str | None = None) -> str:
        """Server-side apply of objects, YAML text or a file; conflicts are won."""
        words = ("apply", "--server-side", "--force-conflicts", *_in(namespace))
        if isinstance(what, Path):
            return self.kubectl(*words, "--filename", str(what))
        return self.kubectl(*words, "--filename=-", stdin=_text(what))

    def wait(self, target: str, condition: str, namespace: str | None = None, timeout: float = 60) -> None:
        """Waits until `kubectl wait --for=CONDITION` is content.

        Raises `ClusterError` with what the object looked like and the last events.
        """
        words = ("wait", target, f"--for={condition}", f"--timeout={timeout}s", *_in(namespace))
        try:
            self.kubectl(*words, timeout=timeout + 30)
        except KubectlError as error:
            seen = self.kubectl("get", target, "--ignore-not-found", "--output=yaml", "--show-managed-fields=false", *_in(namespace))
            events = self.kubectl("events", *_in(namespace))
            raise ClusterError(f"{error}\n--- it was\n{seen[-6000:]}\n--- events\n{events[-4000:]}") from error

    @contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """A fresh namespace; deleted afterwards, without waiting for it."""
        name = f"{prefix}-{secrets.token_hex(3)}"
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {MADE_HERE: "true"}}}
        self.kubectl("create", "--filename=-", stdin=json.dumps(made))
        # Pods are refused until their namespace has this account.
        self.wait("serviceaccount/default", "create", namespace=name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    @property
    def probe(self) -> str:
        """The name of an image of one small program, see `go/probe`; on every node."""
        return "localhost/rljob-probe:1"

    @abstractmethod
    def load_image(self, archive: Path) -> None:
        """Gives every node the images of an OCI or Docker archive."""

    @abstractmethod
    def registry(self) -> str:
        """HOST:PORT of a registry that this machine can push to and pods are pulled from, by plain HTTP."""

    @abstractmethod
    def devices(self, count: int = 8) -> None:
        """Publishes `count` fake devices on every node (device class `fake.rljob.dev`), if they are not there."""

    @abstractmethod
    def network_policies(self) -> AbstractContextManager[bool]:
        """Inside of it NetworkPolicies are enforced; false where that is not known."""

    @abstractmethod
    def fake_nodes(self, count: int) -> None:
        """Adds nodes that only pretend (kwok), named fake-0 and so on, with the taint `kwok.x-k8s.io/node=fake:NoSchedule`."""

    @abstractmethod
    def signal_container(self, namespace: str, pod: str, container: str, signal: str) -> bool:
        """Sends a signal, such as `SIGSTOP`, to all processes of a container, from outside of it.

        False, and nothing was done, where they are out of reach. Raises `ContainerGone`.
        """

    def kill_container(self, namespace: str, pod: str, container: str) -> bool:
        """SIGKILL, to which nobody can answer."""
        return self.signal_container(namespace, pod, container, "SIGKILL")

    @abstractmethod
    def process(self, name: str) -> Server:
        """A server by name."""

    @abstractmethod
    def log(self, name: str) -> Path:
        """A server's log."""
