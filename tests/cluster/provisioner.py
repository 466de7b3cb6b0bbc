"""Makes a folder for every claim of the StorageClass `local`, and removes it with the claim.

`python -m tests.cluster.provisioner PKI SERVER FOLDER` is the program; it runs beside the control plane.

All nodes of a test cluster are on one machine, so a folder serves every access mode and needs no node affinity. As with most classes of
real clusters, a claim waits for a pod that uses it: a scheduler chooses the pod's node first, and names it in the claim.
"""

import shutil
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

CLASS = "local"
NAME = "rljob.dev/local"
STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": NAME,
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "WaitForFirstConsumer",
}
SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""Annotation of a claim whose first pod has got a node."""
Object = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Volumes to make, and names of volumes to remove with their folders."""

    make: tuple[Object, ...]
    remove: tuple[str, ...]


def volume_for(claim: Object, folder: Path) -> Object:
    """The PersistentVolume for a claim, named after the claim's uid, as external provisioners do it."""
    metadata = claim["metadata"]
    name = f"pvc-{metadata['uid']}"
    reference = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        # The annotation tells the controller manager that deleting is not its work.
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": NAME}},
        "spec": {
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "claimRef": reference,
            "hostPath": {"path": str(folder / name), "type": "Directory"},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": CLASS,
            "volumeMode": "Filesystem",
        },
    }


def decide(claims: list[Object], volumes: list[Object], folder: Path) -> Work:
    """What is missing and what is left over."""
    have = {volume["metadata"]["name"] for volume in volumes}
    wanted = [
        volume_for(claim, folder)
        for claim in claims
        if claim["spec"].get("storageClassName") == CLASS
        and SELECTED_NODE in claim["metadata"].get("annotations", {})
        and not claim["spec"].get("volumeName")
        and not claim["metadata"].get("deletionTimestamp")
    ]
    released = [
        volume["metadata"]["name"]
        for volume in volumes
        if volume["spec"].get("storageClassName") == CLASS and volume.get("status", {}).get("phase") == "Released"
    ]
    return Work(tuple(volume for volume in wanted if volume["metadata"]["name"] not in have), tuple(released))


def _list(client: httpx.Client, kind: str) -> list[Object]:
    answer = client.get(f"/api/v1/{kind}")
    answer.raise_for_status()
    items: list[Object] = answer.json()["items"]
    return items


def _work(client: httpx.Client, folder: Path) -> None:
    work = decide(_list(client, "persistentvolumeclaims"), _list(client, "persistentvolumes"), folder)
    for volume in work.make:
        path = Path(volume["spec"]["hostPath"]["path"])
        path.mkdir(parents=True, exist_ok=True)
        # A volume of a folder knows no fsGroup; any user of a pod may write.
        path.chmod(0o777)
        answer = client.post("/api/v1/persistentvolumes", json=volume)
        if answer.status_code != httpx.codes.CONFLICT:
            answer.raise_for_status()
    for name in work.remove:
        shutil.rmtree(folder / name, ignore_errors=True)
        client.delete(f"/api/v1/persistentvolumes/{name}")


def _watch(client: httpx.Client, kind: str, wake: threading.Event) -> None:
    """Wakes the worker at every change. A watch without a version begins with everything that is there."""
    while True:
        try:
            with client.stream("GET", f"/api/v1/{kind}", params={"watch": "1", "timeoutSeconds": "240"}, timeout=300) as answer:
                for _ in answer.iter_lines():
                    wake.set()
        except httpx.HTTPError as error:
            print(f"watch {kind}: {error}", flush=True)
            time.sleep(0.5)


def main() -> None:
    """Runs until it is killed."""
    pki, server, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    client = httpx.Client(base_url=server, verify=context, trust_env=False)
    wake = threading.Event()
    for kind in ("persistentvolumeclaims", "persistentvolumes"):
        threading.Thread(target=_watch, args=(client, kind, wake), daemon=True).start()
    while True:
        wake.wait()
        wake.clear()
        try:
            _work(client, folder)
        except httpx.HTTPError as error:
            print(error, flush=True)
            time.sleep(0.5)
            wake.set()


if __name__ == "__main__":
    main()
