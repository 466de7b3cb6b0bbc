"""The control plane's commands and files, as values."""

import base64
import json
from pathlib import Path
from typing import Any

from tests.cluster.network import Addresses

PORT = 6443
DNS_READY_PORT = 8181
DOMAIN = "cluster.local"
# Who each kubeconfig speaks as; Kubernetes knows these users by name (rbac bootstrap policy).
USERS = {
    "admin": "admin/system:masters",
    "kube-controller-manager": "system:kube-controller-manager",
    "kube-scheduler": "system:kube-scheduler",
    "kube-proxy": "system:kube-proxy",
    "coredns": "system:coredns/system:masters",
    "kube-router": "kube-router/system:masters",
}
# How the API server shows itself to kubelets.
KUBELET_CLIENT = "apiserver-kubelet-client"


def pki_arguments(folder: Path, addresses: Addresses, nodes: int) -> tuple[str, ...]:
    """The arguments of `probe pki` that make all certificates of a cluster of at most `nodes` nodes."""
    hosts = (
        "127.0.0.1",
        "localhost",
        addresses.control,
        addresses.kubernetes,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    )
    words = ["-server", f"apiserver={','.join(hosts)}", "-key", "service-accounts"]
    users = {**USERS, **{f"node-{index}": f"system:node:node-{index}/system:nodes" for index in range(nodes)}}
    for name, identity in {**users, KUBELET_CLIENT: f"{KUBELET_CLIENT}/system:masters"}.items():
        words += ["-client", f"{name}={identity}"]
    return ("pki", str(folder), *words)


def kubeconfig(pki: Path, user: str, addresses: Addresses) -> str:
    """A kubeconfig with everything inside it, as JSON, which is YAML."""

    def encoded(name: str) -> str:
        return base64.b64encode((pki / name).read_bytes()).decode()

    server = {"server": f"https://{addresses.control}:{PORT}", "certificate-authority-data": encoded("ca.crt")}
    credentials = {"client-certificate-data": encoded(f"{user}.crt"), "client-key-data": encoded(f"{user}.key")}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        },
        indent=1,
    )


def etcd(folder: Path) -> tuple[str, ...]:
    """No fsync: what a test wrote need not survive the machine."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return (
        "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    )


def api_server(folder: Path, addresses: Addresses) -> tuple[str, ...]:
    pki = folder / "pki"
    return (
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={addresses.control}",
        f"--secure-port={PORT}",
        f"--service-cluster-ip-range={addresses.services}",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/{KUBELET_CLIENT}.crt",
        f"--kubelet-client-key={pki}/{KUBELET_CLIENT}.key",
        # Node names are not in any DNS.
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/service-accounts.key",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    )


def controller_manager(folder: Path, addresses: Addresses) -> tuple[str, ...]:
    pki = folder / "pki"
    return (
        "kube-controller-manager",
        f"--kubeconfig={folder}/kube-controller-manager.conf",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        f"--cluster-cidr={addresses.pods}",
        f"--cert-dir={pki}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        f"--flex-volume-plugin-dir={folder}/volume-plugins",
        # Informers and deletions at the pace of a test, not of a shared server.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    )


def scheduler(folder: Path) -> tuple[str, ...]:
    return (
        "kube-scheduler",
        f"--kubeconfig={folder}/kube-scheduler.conf",
        f"--cert-dir={folder}/pki",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    )


def coredns(folder: Path) -> tuple[str, ...]:
    return ("coredns", "-conf", f"{folder}/Corefile")


def corefile(folder: Path, addresses: Addresses) -> str:
    """Names of the cluster and no others; pods ask the control box directly."""
    return f""".:53 {{
    bind {addresses.control}
    errors
    ready {addresses.control}:{DNS_READY_PORT}
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {folder}/coredns.conf
        pods insecure
        ttl 1
    }}
}}
"""


def kwok(folder: Path, addresses: Addresses) -> tuple[str, ...]:
    """Plays the kubelets of nodes that only pretend, as `kwok.yaml` says."""
    return (
        "kwok",
        f"--kubeconfig={folder}/admin.conf",
        f"--config={Path(__file__).with_name('kwok.yaml')}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        f"--cidr={addresses.fake_pods}",
        f"--node-ip={addresses.control}",
        # Without signs of life, a node counts as lost after 50 s and its pods as not ready.
        "--node-lease-duration-seconds=40",
        "--server-address=127.0.0.1:10247",
    )


def fake_node(index: int) -> dict[str, Any]:
    """A node for kwok, with room for many pods."""
    room = {"cpu": "1000", "memory": "4Ti", "pods": "10000", "ephemeral-storage": "10Ti"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"fake-{index}",
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "type": "kwok",
                "kubernetes.io/hostname": f"fake-{index}",
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"allocatable": room, "capacity": room},
    }
