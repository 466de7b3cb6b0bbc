"""Addresses of a cluster, all inside one /16 that nobody on the machine uses, and the links between its boxes and the machine."""

import ipaddress
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.box import Box, ClusterError

# Private addresses that cloud networks, Docker (172.17) and kind (172.18) leave alone more often than not; what is in use is left out in
# any case.
CANDIDATES = range(100, 200)


@dataclass(frozen=True)
class Addresses:
    """What lives where in 10.`number`.0.0/16."""

    number: int

    def _at(self, third: int, fourth: int) -> str:
        return f"10.{self.number}.{third}.{fourth}"

    @property
    def all(self) -> str:
        return f"{self._at(0, 0)}/16"

    @property
    def control(self) -> str:
        """The control plane and the cluster's DNS."""
        return self._at(0, 1)

    @property
    def host(self) -> str:
        """This machine, as the cluster sees it."""
        return self._at(0, 254)

    @property
    def pods(self) -> str:
        return f"{self._at(128, 0)}/18"

    @property
    def fake_pods(self) -> str:
        """Addresses of pods that only pretend."""
        return f"{self._at(192, 1)}/19"

    @property
    def services(self) -> str:
        return f"{self._at(240, 0)}/20"

    @property
    def kubernetes(self) -> str:
        """The service `kubernetes`, always the first of the range."""
        return self._at(240, 1)

    def node(self, index: int) -> str:
        return self._at(0, 10 + index)

    def pods_of(self, index: int) -> str:
        return f"{self._at(128 + index, 0)}/24"

    @property
    def device(self) -> str:
        """The machine's end of the link. Device names are unique, so making it claims the number."""
        return f"rljob{self.number}"


def free_numbers(taken: Iterable[str], candidates: Iterable[int] = CANDIDATES) -> list[int]:
    """The numbers whose /16 overlaps none of the networks `taken`."""
    networks = [ipaddress.ip_network(each, strict=False) for each in taken]
    own = {number: ipaddress.ip_network(f"10.{number}.0.0/16") for number in candidates}
    # A default route takes nothing.
    return [
        number
        for number, network in own.items()
        if not any(each.prefixlen and each.version == 4 and each.overlaps(network) for each in networks)
    ]


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)


def _taken() -> list[str]:
    """Destinations of the machine's routes, in every table."""
    done = _ip("-json", "-4", "route", "show", "table", "all")
    if done.returncode != 0:
        raise ClusterError(f"ip route failed: {done.stderr.strip()}")
    return [route["dst"] for route in json.loads(done.stdout or "[]") if route["dst"] != "default"]


def connect_host(control: Box, owner: str) -> Addresses:
    """Chooses a free /16, links the control box to the machine, and gives the machine a route. Raises `ClusterError` if none is free."""
    refusals: list[str] = []
    for number in free_numbers(_taken()):
        addresses = Addresses(number)
        done = _ip("link", "add", addresses.device, "type", "veth", "peer", "name", "host", "netns", str(control.first.pid))
        if done.returncode == 0:
            _lay_bridge(control, addresses)
            for words in (
                ("link", "set", addresses.device, "alias", owner),
                ("addr", "add", f"{addresses.host}/24", "dev", addresses.device),
                ("link", "set", addresses.device, "up"),
                ("route", "add", addresses.all, "via", addresses.control),
            ):
                done = _ip(*words)
                if done.returncode != 0:
                    raise ClusterError(f"ip {' '.join(words)}: {done.stderr.strip()}")
            return addresses
        refusals.append(done.stderr.strip())
        if "exists" not in done.stderr:
            break
    raise ClusterError(
        f"no link into the cluster could be made: {refusals[-1] if refusals else 'each of 10.100.0.0/16 to 10.199.0.0/16 is in use here'}"
    )


def disconnect_host(number: int, owner: str) -> None:
    """Removes the machine's end of the link, if it is still the one that was made for `owner`.

    It goes with its box, but some time later, and not while another process looks into the box.
    """
    device = Addresses(number).device
    try:
        alias = Path("/sys/class/net", device, "ifalias").read_text().strip()
    except FileNotFoundError:
        return
    if alias == owner:
        _ip("link", "delete", device)


def _lay_bridge(control: Box, addresses: Addresses) -> None:
    """A bridge in the control box; the machine and every node hang on it."""
    control.run(["ip", "link", "add", "nodes", "type", "bridge"])
    control.run(["ip", "addr", "add", f"{addresses.control}/24", "dev", "nodes"])
    control.run(["ip", "link", "set", "nodes", "up"])
    control.run(["ip", "link", "set", "host", "master", "nodes", "up"])
    control.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])


def connect_node(control: Box, node: Box, addresses: Addresses, index: int) -> None:
    """Hangs a node on the bridge, and tells the control box which pods live there. The first node also answers for services."""
    name = f"node-{index}"
    done = _ip("link", "add", name, "netns", str(control.first.pid), "type", "veth", "peer", "name", "eth0", "netns", str(node.first.pid))
    if done.returncode != 0:
        raise ClusterError(f"no link to {name} could be made: {done.stderr.strip()}")
    control.run(["ip", "link", "set", name, "master", "nodes", "up"])
    node.run(["ip", "addr", "add", f"{addresses.node(index)}/24", "dev", "eth0"])
    node.run(["ip", "link", "set", "eth0", "up"])
    node.run(["ip", "route", "add", "default", "via", addresses.control])
    node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    routes = [addresses.pods_of(index), *([addresses.services] if index == 0 else [])]
    for network in routes:
        control.run(["ip", "route", "add", network, "via", addresses.node(index)])
