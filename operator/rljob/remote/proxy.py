"""Which proxy leads to an API server, as kubectl chooses it. What NO_PROXY means, the kubernetes client says."""

import ipaddress
import re
from urllib.parse import urlsplit
from urllib.request import getproxies

from kubernetes.client.rest import should_bypass_proxies


def proxy_of(server: str, configured: str | None) -> str | None:
    """Address of the proxy for a server (`https://HOST:PORT`); None: there is none.

    `configured`, the kubeconfig's `proxy-url`, is for one cluster, so no exception of the environment concerns it.
    """
    found = configured or _of_environment(server)
    return found if found is None or "://" in found else f"http://{found}"


def _of_environment(server: str) -> str | None:
    address, variables = urlsplit(server), getproxies()
    exceptions = re.sub(r"\*\.", ".", variables.get("no", ""))  # kubectl also knows `*.corp`
    if _is_here(address.hostname or "") or should_bypass_proxies(server, exceptions):
        return None
    return variables.get(address.scheme) or None


def _is_here(host: str) -> bool:
    """Is it this machine, which no proxy leads to?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
