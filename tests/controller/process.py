"""The operator as a process, and a kubelet that only says that pods run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from tests.cluster.handle import Cluster

ROOT = Path(__file__).parents[2]


def install_crd(cluster: Cluster, seconds: float = 60) -> None:
    """The CustomResourceDefinition, served. (`kubectl wait` gives up on one that has no conditions yet.)"""
    cluster.apply(ROOT / "crds" / "rljobs.rljob.dev.yaml")
    end = time.monotonic() + seconds
    while True:
        status = cluster.get("crd/rljobs.rljob.dev").get("status") or {}
        if any(c["type"] == "Established" and c["status"] == "True" for c in status.get("conditions") or ()):
            return
        assert time.monotonic() < end, f"the CustomResourceDefinition is not served after {seconds:.0f} s: {status}"
        time.sleep(0.2)


class Process:
    """`python -m rljob.controller` against a cluster, from outside of it."""

    def __init__(self, cluster: Cluster, folder: Path, namespaces: list[str], **settings: Any) -> None:
        self.folder = folder
        self.settings = folder / "settings.yaml"
        lines = ["metricsPort: 0", f"namespaces: [{', '.join(namespaces)}]", *(f"{name}: {value}" for name, value in settings.items())]
        self.settings.write_text("\n".join(lines) + "\n")
        self.kubeconfig = cluster.kubeconfig
        self._child: subprocess.Popen[bytes] | None = None
        self._runs = 0

    @property
    def log(self) -> Path:
        return self.folder / f"operator-{self._runs}.log"

    def start(self) -> None:
        self._runs += 1
        command = [sys.executable, "-m", "rljob.controller", "--settings", str(self.settings), "--dev", str(self.kubeconfig)]
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"})

    def kill(self) -> None:
        """No warning, no last words."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def stop(self) -> int:
        """As a kubelet stops it."""
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def port(self) -> int:
        line = next(line for line in self.log.read_text().splitlines() if "metrics and probes on port" in line)
        return int(line.rpartition(" ")[2])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30, verify=False)
