"""A whole cluster does what RLJob needs of one."""

import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cluster.handle import Cluster
from tests.cluster.images import write_image

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def container(cluster: Cluster, name: str, *args: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": cluster.probe, "imagePullPolicy": "Never", "args": [*args], "securityContext": RESTRICTED, **more}


def pod(name: str, containers: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    body = {"terminationGracePeriodSeconds": 1, "containers": containers, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": body}


def succeeded(cluster: Cluster, name: str, namespace: str) -> None:
    cluster.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded", namespace)


def test_a_native_sidecar_and_a_container_share_memory(cluster: Cluster) -> None:
    mount = {"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}
    sidecar = container(cluster, "writer", "serve", ":8080", "hello", restartPolicy="Always", **mount)
    writes = container(cluster, "first", "write", "/dev/shm/greeting", "from the first", **mount)
    main = container(cluster, "reader", "await", "/dev/shm/greeting", **mount)
    with cluster.namespace() as namespace:
        volume = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}
        cluster.apply(pod("shared", [main], initContainers=[sidecar, writes], volumes=[volume], restartPolicy="Never"), namespace)
        succeeded(cluster, "shared", namespace)
        assert cluster.kubectl("logs", "shared", "--container=reader", f"--namespace={namespace}") == "from the first\n"


@pytest.mark.own_cluster
def test_network_policies_are_enforced_as_long_as_a_test_wants(cluster: Cluster) -> None:
    allowed = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"protocol": "TCP", "port": 8080}]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "friends-only"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": [allowed]},
    }
    with cluster.namespace() as namespace:
        cluster.apply([pod("server", [container(cluster, "server", "serve", ":8080", "fine")]), policy], namespace)
        cluster.wait("pod/server", "condition=Ready", namespace)
        address = cluster.get("pod/server", namespace=namespace)["status"]["podIP"]
        asks = [container(cluster, "asks", "get", f"http://{address}:8080")]
        with cluster.network_policies() as enforced:
            assert enforced
            cluster.apply(pod("stranger", asks, restartPolicy="Never"), namespace)
            cluster.wait("pod/stranger", "condition=Ready", namespace)
            cluster.apply(pod("friend", asks, restartPolicy="Never"), namespace)
            succeeded(cluster, "friend", namespace)
            assert cluster.get("pod/stranger", namespace=namespace)["status"]["phase"] == "Running"
        succeeded(cluster, "stranger", namespace)


def test_a_deployment_is_found_by_its_service_name(cluster: Cluster) -> None:
    labels = {"app": "web"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container(cluster, "web", "serve", ":8080", "found")]},
            },
        },
    }
    ports = [{"port": 80, "targetPort": 8080}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"selector": labels, "ports": ports}}
    with cluster.namespace() as namespace:
        client = pod("client", [container(cluster, "client", "get", f"http://web.{namespace}.svc.cluster.local")], restartPolicy="Never")
        cluster.apply([deployment, service, client], namespace)
        cluster.wait("deployment/web", "condition=Available", namespace)
        succeeded(cluster, "client", namespace)
        # The client asks again as long as nobody answers, and says so.
        assert cluster.kubectl("logs", "client", f"--namespace={namespace}").splitlines()[-1] == "found"


@pytest.mark.own_cluster
def test_this_machine_reaches_pods_and_services(cluster: Cluster) -> None:
    with cluster.namespace() as namespace:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080}]},
        }
        cluster.apply([pod("web", [container(cluster, "web", "serve", ":8080", "found")]), service], namespace)
        cluster.wait("pod/web", "condition=Ready", namespace)
        cluster.kubectl("wait", "endpointslice", "--selector=kubernetes.io/service-name=web", f"--namespace={namespace}", "--for=create")
        addresses = [
            cluster.get("pod/web", namespace=namespace)["status"]["podIP"],
            cluster.get("service/web", namespace=namespace)["spec"]["clusterIP"],
        ]
        with httpx.Client(trust_env=False, timeout=10, transport=httpx.HTTPTransport(retries=5)) as client:
            assert [client.get(f"http://{address}:8080").text for address in addresses] == ["found\n", "found\n"]


@pytest.mark.own_cluster
def test_a_claim_gets_a_folder_that_any_user_may_write_and_that_goes_with_it(cluster: Cluster) -> None:
    resources = {"requests": {"storage": "1Gi"}}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "work"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": resources},
    }
    mount = {"volumeMounts": [{"name": "work", "mountPath": "/work"}]}
    volume = {"name": "work", "persistentVolumeClaim": {"claimName": "work"}}
    writer = pod("writer", [container(cluster, "c", "write", "/work/file", "kept", **mount)], volumes=[volume], restartPolicy="Never")
    reader = pod("reader", [container(cluster, "c", "await", "/work/file", **mount)], volumes=[volume], restartPolicy="Never")
    with cluster.namespace() as namespace:
        cluster.apply([claim, writer, reader], namespace)
        succeeded(cluster, "reader", namespace)
        assert cluster.kubectl("logs", "reader", f"--namespace={namespace}") == "kept\n"
        name = cluster.get("pvc/work", namespace=namespace)["spec"]["volumeName"]
    cluster.kubectl("wait", f"persistentvolume/{name}", "--for=delete", "--timeout=60s", timeout=90)


@pytest.mark.own_cluster
def test_two_sidecars_of_a_claim_see_the_same_devices_and_others_none(cluster: Cluster) -> None:
    cluster.devices(8)
    request = {"name": "accelerators", "exactly": {"deviceClassName": "fake.rljob.dev", "count": 2}}
    template = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "both"},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }
    claims = {"resources": {"claims": [{"name": "both"}]}}
    sidecars = [container(cluster, name, "env", "FAKE_DEVICES", restartPolicy="Always", **claims) for name in ("megatron", "vllm")]
    names = [{"name": "both", "resourceClaimTemplateName": "both"}]
    with cluster.namespace() as namespace:
        main = container(cluster, "checkpoint-engine", "env", "FAKE_DEVICES")
        cluster.apply([template, pod("node", [main], initContainers=sidecars, resourceClaims=names)], namespace)
        cluster.wait("pod/node", "condition=Ready", namespace)
        seen = {
            name: cluster.kubectl("logs", "node", f"--container={name}", f"--namespace={namespace}").strip()
            for name in ("megatron", "vllm", "checkpoint-engine")
        }
        assert seen["megatron"] == seen["vllm"]
        assert len(seen["vllm"].removeprefix("FAKE_DEVICES=").split(",")) == 2
        assert seen["checkpoint-engine"] == "FAKE_DEVICES="


def push(archive: Path, registry: str, name: str) -> None:
    """Sends an image to a registry (distribution-spec v1.1), as `buildah push` does."""
    with tarfile.open(archive) as layout:
        content = {member.name: file.read() for member in layout if (file := layout.extractfile(member))}
    (entry,) = json.loads(content["index.json"])["manifests"]
    blobs = {path.rpartition("/")[2]: blob for path, blob in content.items() if path.startswith("blobs/")}
    manifest = blobs.pop(entry["digest"].removeprefix("sha256:"))
    with httpx.Client(base_url=f"http://{registry}/v2/{name}", trust_env=False, timeout=30) as client:
        for digest, blob in blobs.items():
            place = client.post("/blobs/uploads/").raise_for_status().headers["location"]
            client.put(httpx.URL(place).copy_add_param("digest", f"sha256:{digest}"), content=blob).raise_for_status()
        client.put("/manifests/1", content=manifest, headers={"content-type": entry["mediaType"]}).raise_for_status()


@pytest.mark.own_cluster
def test_a_pod_pulls_what_was_pushed_to_the_registry(cluster: Cluster, tmp_path: Path) -> None:
    write_image(tmp_path / "image.tar", "any", {"/other": cluster.bin("probe")}, ["/other"], ["pause"])
    registry = cluster.registry()
    push(tmp_path / "image.tar", registry, "tests/other")
    main = {"name": "c", "image": f"{registry}/tests/other:1", "args": ["write", "/dev/termination-log", "pulled"]}
    with cluster.namespace() as namespace:
        cluster.apply(pod("puller", [main], restartPolicy="Never"), namespace)
        succeeded(cluster, "puller", namespace)


def test_an_image_is_loaded_from_an_archive(cluster: Cluster, tmp_path: Path) -> None:
    write_image(tmp_path / "image.tar", "localhost/loaded:1", {"/other": cluster.bin("probe")}, ["/other"], ["pause"])
    cluster.load_image(tmp_path / "image.tar")
    with cluster.namespace() as namespace:
        cluster.apply(pod("loaded", [{"name": "c", "image": "localhost/loaded:1", "imagePullPolicy": "Never"}]), namespace)
        cluster.wait("pod/loaded", "condition=Ready", namespace)


def test_a_pods_last_words_and_status_are_kept(cluster: Cluster) -> None:
    with cluster.namespace() as namespace:
        policy = {"terminationMessagePolicy": "FallbackToLogsOnError"}
        main = container(cluster, "c", "fail", "3", "error: no such model", **policy)
        cluster.apply(pod("fails", [main], restartPolicy="Never"), namespace)
        cluster.wait("pod/fails", "jsonpath={.status.phase}=Failed", namespace)
        ended = cluster.get("pod/fails", namespace=namespace)["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (ended["exitCode"], ended["message"]) == (3, "error: no such model\n")


def test_a_command_runs_in_a_container(cluster: Cluster) -> None:
    with cluster.namespace() as namespace:
        cluster.apply(pod("x", [container(cluster, "c", "pause")]), namespace)
        cluster.wait("pod/x", "condition=Ready", namespace)
        cluster.kubectl("exec", "x", f"--namespace={namespace}", "--", "/probe", "write", "/dev/shm/x", "y")


@pytest.mark.own_cluster
def test_a_killed_container_had_no_say(cluster: Cluster) -> None:
    with cluster.namespace() as namespace:
        cluster.apply(pod("x", [container(cluster, "c", "pause")]), namespace)
        cluster.wait("pod/x", "condition=Ready", namespace)
        assert cluster.kill_container(namespace, "x", "c")
        cluster.wait("pod/x", "jsonpath={.status.containerStatuses[0].restartCount}=1", namespace)
        last = cluster.get("pod/x", namespace=namespace)["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert last["exitCode"] == 137
