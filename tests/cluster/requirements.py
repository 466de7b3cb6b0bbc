"""What a cluster needs of the machine, checked before anything is made."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.cluster.box import ClusterError
from tests.cluster.node import DISK_KEPT, HIDDEN

# A command and the Debian package it comes from.
COMMANDS = {
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "ipset": "ipset",
    "ip": "iproute2",
    "mount": "mount",
    "setpriv": "util-linux",
    "sysctl": "procps",
}
CNI_PACKAGE = "containernetworking-plugins"
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CNI_PLUGINS = ("ptp", "host-local", "loopback")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path() -> str:
    """PATH with the system's folders at its end; the system administrator's are missing from it more often than not."""
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


def cni_folder(exists: Callable[[Path], bool] = Path.exists) -> Path | None:
    """Where the network plugins are; None if one is missing."""
    return next((folder for folder in CNI_FOLDERS if all(exists(folder / plugin) for plugin in CNI_PLUGINS)), None)


def missing_packages(which: Callable[[str], str | None], cni: Path | None) -> list[str]:
    """The Debian packages that are not there."""
    packages = {package for command, package in COMMANDS.items() if which(command) is None}
    return sorted(packages | (set() if cni else {CNI_PACKAGE}))


def check(folders: Iterable[Path], nodes: int) -> None:
    """Raises `ClusterError`, naming what to do, where a cluster cannot be had.

    A cluster without nodes needs neither runc nor network plugins.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            f"a test cluster makes network devices and namespaces, which needs root, and this is user {os.geteuid()}; run as root, "
            "or set RLJOB_TEST_KUBECONFIG to the kubeconfig of a cluster that the tests may use"
        )
    packages = missing_packages(lambda command: shutil.which(command, path=search_path()), cni_folder())
    if not nodes:
        packages = [package for package in packages if package not in ("runc", "nftables", "iptables", "ipset", CNI_PACKAGE)]
    if packages:
        raise ClusterError(f"a test cluster needs packages of the system: apt-get install --yes {' '.join(packages)}")
    for folder in folders:
        hidden = next((each for each in HIDDEN if folder.resolve().is_relative_to(each)), None)
        if hidden:
            raise ClusterError(
                f"{folder} is below {hidden}, which a cluster's nodes have of their own; set TMPDIR or XDG_CACHE_HOME to another folder"
            )


def check_disk(folder: Path, size: int, what: str) -> None:
    """Raises `ClusterError` where `size` bytes would leave less than what a kubelet wants free: it would end pods, and let none begin."""
    disk = shutil.disk_usage(folder)
    kept = int(disk.total * DISK_KEPT)
    if disk.free < size + kept:
        raise ClusterError(
            f"{what} take up to {size / 1e9:.1f} GB below {folder}, where {disk.free / 1e9:.1f} GB are free, and a kubelet starts no pod "
            f"with less than {kept / 1e9:.1f} GB left; free some, or set TMPDIR to a folder on a larger disk"
        )
