"""Which proxy leads to an API server: the kubeconfig's, else what the environment says, read as kubectl reads it. Pure.

kubectl's rules are those of Go (golang.org/x/net/http/httpproxy).
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def proxy_of(server: str, configured: str | None, environment: Mapping[str, str]) -> str | None:
    """Address of the proxy for a server (`https://HOST:PORT`); None: there is none.

    `configured`, the kubeconfig's `proxy-url`, is for one cluster, so no exception of the environment concerns it.
    """
    if configured:
        return _with_scheme(configured)
    address = urlsplit(server)
    host, port = address.hostname or "", address.port or _PORTS[address.scheme]
    found, exceptions = _either(environment, f"{address.scheme}_proxy"), _either(environment, "no_proxy").lower().split(",")
    if not found or _is_here(host) or any(_excludes(entry.strip(), host, port) for entry in exceptions):
        return None
    return _with_scheme(found)


def _either(environment: Mapping[str, str], name: str) -> str:
    """A variable in capital letters, else in small ones."""
    return environment.get(name.upper()) or environment.get(name) or ""


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy}"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_here(host: str) -> bool:
    """Is it this machine, which no proxy leads to?"""
    ip = _ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def _excludes(entry: str, host: str, port: int) -> bool:
    """Does an entry of NO_PROXY name a host? `*`, `10.0.0.0/8`, `10.1.2.3`, `corp` (and all below), `.corp`, `*.corp` (all below); all but
    the first two may have a `:PORT`."""
    if entry == "*":
        return True
    if "/" in entry:
        ip = _ip(host)
        try:
            return ip is not None and ip in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, wanted = _split(entry)
    if not name or (wanted and wanted != str(port)):
        return False
    if (ip := _ip(name)) is not None:
        return ip == _ip(host)
    below = name.removeprefix("*").removeprefix(".")
    return host.endswith(f".{below}") or (host == below and name == below)


def _split(entry: str) -> tuple[str, str]:
    """Host and port, which may be empty, of an entry; IPv6 addresses with a port stand in brackets."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":")
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""
