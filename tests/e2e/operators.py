"""The operators of a release: which of them acts, and how it is killed."""

import re
import time
import warnings
from collections.abc import Container
from datetime import datetime

from tests.cluster.box import ContainerGone
from tests.cluster.handle import Cluster, KubectlError, Object
from tests.e2e.incluster import Release, names

_LEADING = re.compile(r"^rljob_operator_leading ([\d.]+)$", re.MULTILINE)


class Operators:
    """Replicas of one installation; at most one of them acts."""

    def __init__(self, cluster: Cluster, release: Release) -> None:
        self.cluster, self.release = cluster, release
        self._lease = f"lease/{release.name}-operator"

    def holder(self) -> str:
        """Who the Lease says acts: a pod's name, a dash, and something random; empty for nobody."""
        return str(self._spec().get("holderIdentity") or "")

    def _spec(self) -> Object:
        spec: Object = self.cluster.get(self._lease, namespace=self.release.namespace)["spec"]
        return spec

    def leading(self) -> list[str]:
        """Pods that say themselves that they act; one that does not answer says nothing."""
        selector = f"app.kubernetes.io/instance={self.release.name}"
        found = self.cluster.get("pods", f"--selector={selector}", namespace=self.release.namespace)["items"]
        return [name for name in names(found) if self._says_so(name)]

    def _says_so(self, pod: str) -> bool:
        path = f"/api/v1/namespaces/{self.release.namespace}/pods/{pod}:8080/proxy/metrics"
        try:
            text = self.cluster.kubectl("get", "--raw", path, "--request-timeout=3s")
        except KubectlError:
            return False
        return [float(value) for value in _LEADING.findall(text)] == [1.0]

    def acting(self, besides: Container[str] = (), seconds: float = 90) -> str:
        """Waits until the Lease has a holder that is not among `besides`, and it alone says that it acts; its identity."""
        end = time.monotonic() + seconds
        while True:
            holder = self.holder()
            if holder and holder not in besides:
                leading = self.leading()
                assert len(leading) <= 1, f"two operators act at once: {leading}"
                if leading == [_pod(holder)]:
                    return holder
            assert time.monotonic() < end, f"no operator acts after {seconds:.0f} s; the Lease names {holder!r}"
            time.sleep(0.3)

    def kill(self, besides: Container[str] = ()) -> str:
        """Kills the one that acts, and takes its pod away: it starts no more, so that no back-off adds up. Its identity."""
        holder = self.acting(besides)
        namespace, pod = self.release.namespace, _pod(holder)
        how: tuple[str, ...] = ("--force", "--grace-period=0")
        before = self._spec()
        try:
            killed = self.cluster.kill_container(namespace, pod, "operator")
        except ContainerGone:  # one that could not renew its Lease in time ends by itself
            return self.kill(besides)
        if killed:
            given = given_back(before, self._spec())
            assert not given, "the operator gave its Lease back: it was asked to end, not killed"
        else:
            warnings.warn("this cluster lets no container be killed: operators get SIGTERM, and SIGKILL a second later", stacklevel=2)
            how = ("--grace-period=1",)
        self.cluster.kubectl("delete", "pod", pod, "-n", namespace, "--wait=false", *how)
        return holder


def given_back(before: Object, after: Object) -> bool:
    """Whether the holder of a Lease gave it back; both are specs, `before` of when it still held it.

    On a busy machine the Lease may have run out, and another may have taken it, before one looks again: after its whole time.
    """
    if after.get("holderIdentity") == before["holderIdentity"]:
        return False
    if not after.get("holderIdentity"):
        return True
    renewed, taken = datetime.fromisoformat(before["renewTime"]), datetime.fromisoformat(after["acquireTime"])
    early: bool = (taken - renewed).total_seconds() < before["leaseDurationSeconds"]
    return early


def _pod(holder: str) -> str:
    return holder.rpartition("-")[0]
