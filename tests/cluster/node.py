"""A node's commands and files, as values, and what its box needs before they start."""

import json
from pathlib import Path
from typing import Any

from tests.cluster.box import Box
from tests.cluster.control import DOMAIN
from tests.cluster.network import Addresses

CONTAINERD = "/run/containerd/containerd.sock"
CDI = "/var/lib/cdi"
KUBELET = "/var/lib/kubelet"
PAUSE_IMAGE = "localhost/rljob-probe:1"
WHOLE_PROC = "/run/whole-proc"
# What a kubelet sets for the whole machine, without being asked, and with other values refuses to start.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
# Folders of the machine that a node must neither see nor write: Kubernetes' own paths are fixed below them.
HIDDEN = ("/run", "/var/lib", "/var/log")


def prepare(box: Box, folder: Path, images: Path) -> None:
    """Gives a node's box folders of its own where Kubernetes has fixed paths, and hides the machine's kernel settings from its kubelet."""
    box.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"])
    for hidden in HIDDEN[1:]:
        own = folder / hidden.removeprefix("/").replace("/", "-")
        own.mkdir(parents=True)
        box.run(["mount", "--bind", own, hidden])
    box.run(["mkdir", "-p", "/run/containerd", "/var/lib/containerd", CDI, KUBELET])
    box.run(["mount", "--bind", images, "/var/lib/containerd"])
    settings = folder / "settings"
    settings.mkdir()
    for name, value in KERNEL_SETTINGS.items():
        if Path("/proc/sys", name).exists():
            file = settings / name.replace("/", "-")
            file.write_text(f"{value}\n")
            box.run(["mount", "--bind", file, f"/proc/sys/{name}"])
    # The kernel lets a pod with users of its own mount a /proc only where there is another one that nothing lies over.
    box.run(["mkdir", WHOLE_PROC])
    box.run(["mount", "-t", "proc", "proc", WHOLE_PROC])


DISK_KEPT = 0.01
"""Share of a disk below which a kubelet starts no pod and ends those that run."""

ROUTER_CHAINS = ("KUBE-ROUTER-INPUT", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT")
"""Of iptables, where all that kube-router refuses begins."""

USER_NAMESPACES = "userns"
"""Handler of a RuntimeClass whose pods may have users of their own (`hostUsers: false`)."""


def containerd_config(plugins: Path, cni: Path, snapshotter: str, registries: Path, runc: Path | None = None) -> str:
    """containerd's configuration (version 3). `runc`: the one of the runtime `userns`, which needs 1.2 or newer; None: no such runtime.

    A missing CAP_SYS_RESOURCE would make runc fail on the negative OOM score of a pod's first process.
    """
    config = f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "{snapshotter}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{registries}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  cdi_spec_dirs = ['{CDI}']
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{plugins}"]
  conf_dir = "{cni}"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""
    if runc is not None:
        runtime = f"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{USER_NAMESPACES}"
        config += f"""{runtime}]
  runtime_type = "io.containerd.runc.v2"
{runtime}.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"""
    return config


def cni_config(addresses: Addresses, index: int) -> str:
    """A link of its own for each pod, everything routed.

    With a bridge, the answers of a service's pod to one on the same node would bypass the translation of addresses.
    """
    ipam = {"type": "host-local", "ranges": [[{"subnet": addresses.pods_of(index)}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]})


def kubelet_config(folder: Path, pki: Path, addresses: Addresses, cgroup: str) -> str:
    """KubeletConfiguration, v1beta1."""
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(pki / "ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "clusterDNS": [addresses.control],
        "clusterDomain": DOMAIN,
        "resolvConf": str(folder / "resolv.conf"),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": f"{DISK_KEPT:.0%}", "imagefs.available": f"{DISK_KEPT:.0%}"},
        # Images that a test loaded cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # An image that came from the registry may also be loaded under another name; there are no secrets to check.
        "imagePullCredentialsVerificationPolicy": "NeverVerify",
        "volumePluginDir": f"{KUBELET}/volume-plugins",
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "4s",
    }
    return json.dumps(config)


def kubelet(folder: Path, addresses: Addresses, index: int) -> tuple[str, ...]:
    name = f"node-{index}"
    return (
        "kubelet",
        f"--config={folder}/kubelet.yaml",
        f"--kubeconfig={folder}/kubelet.conf",
        f"--root-dir={KUBELET}",
        f"--cert-dir={folder}/kubelet-pki",
        f"--hostname-override={name}",
        f"--node-ip={addresses.node(index)}",
    )


def proxy_config(folder: Path, addresses: Addresses, index: int) -> str:
    """KubeProxyConfiguration, v1alpha1. The machine's connection table is not this cluster's to size."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": addresses.pods,
            "clientConnection": {"kubeconfig": f"{folder}/kube-proxy.conf"},
            "conntrack": {"maxPerCore": 0},
            "hostnameOverride": f"node-{index}",
            "linux": {"oomScoreAdj": 0},
            "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        }
    )


def proxy(folder: Path) -> tuple[str, ...]:
    return ("kube-proxy", f"--config={folder}/proxy.yaml")


def router(folder: Path, addresses: Addresses, index: int) -> tuple[str, ...]:
    """Of kube-router only what enforces NetworkPolicies: the addresses of pods are the CNI's, those of services kube-proxy's."""
    return (
        "kube-router",
        f"--kubeconfig={folder}/kube-router.conf",
        f"--hostname-override=node-{index}",
        f"--service-cluster-ip-range={addresses.services}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--enable-cni=false",
        "--health-port=0",
    )


def containerd(folder: Path) -> tuple[str, ...]:
    return ("containerd", "--config", f"{folder}/containerd.toml")


def driver(folder: Path, index: int, count: int) -> tuple[str, ...]:
    """The DRA test driver."""
    return ("dra", f"-kubeconfig={folder}/kubelet.conf", f"-node=node-{index}", f"-kubelet={KUBELET}", f"-cdi={CDI}", f"-devices={count}")
