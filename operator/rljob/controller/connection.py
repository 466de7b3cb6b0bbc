"""Where the API server is, and how to show who we are: a kubeconfig, or the service account of the pod."""

import os
import ssl
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import kopf

from rljob.api import ConfigurationError
from rljob.api.kubeconfig import read_kubeconfig

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 60.0
"""A mounted token is read again after so long: the kubelet renews it."""


@dataclass
class Connection:
    """An API server."""

    info: kopf.ConnectionInfo
    namespace: str = "default"
    """The operator's own, for its Lease."""
    token_file: Path | None = None
    _token: tuple[float, str] = field(default=(float("-inf"), ""))

    def context(self) -> ssl.SSLContext | None:
        """TLS as the server and the credentials want it; None for plain HTTP (tests).

        Raises:
            ConfigurationError: a certificate or a key cannot be used.
        """
        try:
            return self.info.as_ssl_context() if self.info.server.startswith("https") else None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the certificates for {self.info.server} cannot be used ({error}); is every file there, and all base64 whole?"
            ) from error

    def headers(self) -> dict[str, str]:
        """Credentials of a request, with a token that is fresh."""
        if self.token_file is None:
            return self.info.as_http_headers()
        read, token = self._token
        if time.monotonic() - read > _TOKEN_SECONDS:
            token = self.token_file.read_text().strip()
            self._token = (time.monotonic(), token)
        return {"Authorization": f"Bearer {token}"}

    def login(self) -> kopf.ConnectionInfo:
        """For kopf, which logs in again when the server says that it must."""
        if self.token_file is None:
            return self.info
        return replace(self.info, token=self.token_file.read_text().strip())


def in_cluster() -> Connection:
    """The service account of the pod this runs in.

    Raises:
        ConfigurationError: this is no pod, or it has no token.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    token, authority = SERVICE_ACCOUNT / "token", SERVICE_ACCOUNT / "ca.crt"
    if not host or not token.exists():
        raise ConfigurationError(
            "not in a pod with a service account token, so there is no API server to talk to; outside a cluster, give --dev KUBECONFIG"
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    return Connection(kopf.ConnectionInfo(server=server, ca_path=str(authority)), namespace, token)


def from_kubeconfig(path: Path) -> Connection:
    """The current context of a kubeconfig with certificates or a token.

    Raises:
        ConfigurationError: it cannot be used; the message says what is missing.
    """
    data = read_kubeconfig(path, "--dev")
    try:
        context = _named(data, "contexts", data["current-context"])["context"]
        cluster = _named(data, "clusters", context["cluster"])["cluster"]
        user = _named(data, "users", context["user"])["user"] if context.get("user") else {}
        server = cluster["server"]
    except (KeyError, TypeError, StopIteration) as error:
        raise ConfigurationError(
            f"--dev {path}: no current context with a cluster, server and user ({error!r}); set one with `kubectl config use-context`"
        ) from error
    for way in ("exec", "auth-provider"):
        if way in user:
            raise ConfigurationError(f"--dev {path}: users that log in by `{way}` are not supported; use a service account's token")
    if not isinstance(server, str) or not server.startswith(("http://", "https://")):
        raise ConfigurationError(f"--dev {path}: the server is {server!r}; it must be an address such as https://HOST:6443")
    info = kopf.ConnectionInfo(
        server=server,
        ca_path=_file(path, cluster.get("certificate-authority")),
        ca_data=cluster.get("certificate-authority-data"),
        insecure=cluster.get("insecure-skip-tls-verify"),
        certificate_path=_file(path, user.get("client-certificate")),
        certificate_data=user.get("client-certificate-data"),
        private_key_path=_file(path, user.get("client-key")),
        private_key_data=user.get("client-key-data"),
        token=user.get("token"),
        username=user.get("username"),
        password=user.get("password"),
    )
    token_file = _file(path, user.get("tokenFile"))
    return Connection(info, context.get("namespace") or "default", Path(token_file) if token_file else None)


def _named(data: Any, part: str, name: str) -> Any:
    return next(entry for entry in data[part] if entry["name"] == name)


def _file(kubeconfig: Path, name: str | None) -> str | None:
    return str(kubeconfig.parent / name) if name else None
