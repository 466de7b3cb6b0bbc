"""A Kubernetes API server as a kubeconfig names it: plain JSON in, plain JSON out, refusals as sentences."""

import os
import shlex
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException, kube_config, load_incluster_config

from rljob.api import ConfigurationError, InfrastructureError
from rljob.api.kubeconfig import read_kubeconfig
from rljob.remote.proxy import proxy_of

Json = dict[str, Any]
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class NotFound(ConfigurationError):
    """The API server has no such thing. `known_path` is False if it does not even serve that kind."""

    def __init__(self, message: str, known_path: bool) -> None:
        super().__init__(message)
        self.known_path = known_path


class Api(Protocol):
    """What this package asks of a cluster."""

    @property
    def namespace(self) -> str:
        """Namespace of the jobs that are asked for."""

    @property
    def where(self) -> str:
        """The cluster in a person's words."""

    @property
    def options(self) -> str:
        """What was given on the command line to name it, to be put behind a command."""

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        """One object or list.

        Raises:
            NotFound: there is none.
            ConfigurationError: the API server refuses.
            InfrastructureError: it does not answer, or not now.
        """

    def patch(self, path: str, body: Json) -> Json:
        """Merge a change into an object. Raises what `get` raises."""

    def lines(self, path: str, query: Mapping[str, str]) -> Iterator[str]:
        """Lines of a text as they come. Raises what `get` raises."""


@dataclass(frozen=True)
class Target:
    """Which cluster and namespace a person means."""

    kubeconfig: Path | None = None
    """None: what KUBECONFIG names, else `~/.kube/config`, else the pod's own service account."""
    context: str | None = None
    """None: the kubeconfig's current one."""
    namespace: str | None = None
    """None: the context's, else `default`."""

    @property
    def options(self) -> str:
        """Those of kubectl that name the same cluster, each with a space before it."""
        given = {"--context": self.context, "--kubeconfig": self.kubeconfig}
        return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value is not None)


def connect(target: Target) -> "Cluster":
    """Read the kubeconfig: certificates, tokens and exec plugins, as the kubernetes client understands them. Nothing is asked yet.

    Raises:
        ConfigurationError: there is no usable kubeconfig or no such context.
    """
    configuration: Configuration = type.__call__(Configuration)
    configuration.proxy = None  # the environment's, without its exceptions (rljob.remote.proxy)
    file = str(target.kubeconfig) if target.kubeconfig else None
    for path, named in _files(target):
        read_kubeconfig(path, named)
    try:
        contexts, current = kube_config.list_kube_config_contexts(file)
        kube_config.load_kube_config(file, target.context, configuration, persist_config=False)
    except ConfigException as error:
        return _from_pod(configuration, target, error)
    chosen = next(c for c in contexts if c["name"] == target.context) if target.context else current
    if not _is_address(configuration.host):
        raise ConfigurationError(
            f"the kubeconfig cannot be used: the server of context {chosen['name']} is {configuration.host!r}; "
            "it must be an address such as https://HOST:6443"
        )
    namespace = target.namespace or chosen["context"].get("namespace") or "default"
    return Cluster(configuration, namespace, f"context {chosen['name']}, {configuration.host}", target.options)


def _is_address(server: str) -> bool:
    try:
        parts = urlsplit(server)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _files(target: Target) -> list[tuple[Path, str]]:
    """The files that will be read, each with what names it. Of those that nobody named on the command line, some may be missing, as they
    may for kubectl; so may a home folder be unknown, which Path.expanduser does not take."""
    if target.kubeconfig is not None:
        return [(target.kubeconfig, "--kubeconfig")]
    if named := os.environ.get("KUBECONFIG"):
        found = [(Path(os.path.expanduser(part)), "KUBECONFIG") for part in named.split(os.pathsep) if part]
    else:
        found = [(Path(os.path.expanduser("~/.kube/config")), "the kubeconfig")]
    return [(path, source) for path, source in found if path.exists()]


def _from_pod(configuration: Configuration, target: Target, error: ConfigException) -> "Cluster":
    """The service account of the pod that this runs in, where nobody asked for a kubeconfig."""
    if target.kubeconfig or target.context:
        raise ConfigurationError(f"the kubeconfig cannot be used: {error}; `kubectl config get-contexts` lists what there is") from error
    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException:
        raise ConfigurationError(
            f"no cluster is configured ({error}); set KUBECONFIG or give --kubeconfig FILE. For a run on this machine give its folder"
        ) from error
    own = _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "default"
    return Cluster(configuration, target.namespace or own, f"this pod's cluster, {configuration.host}")


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    # Python 3.13 asks for extensions that the certificates of many clusters lack; kubectl does not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _client(configuration: Configuration, tls: ssl.SSLContext) -> httpx.Client:
    proxy = proxy_of(configuration.host, configuration.proxy)
    # What stands before the @ may be a password.
    said = f"the proxy {(proxy or '').rpartition('@')[2]} (of the kubeconfig's proxy-url, HTTPS_PROXY or HTTP_PROXY) cannot be used"
    try:
        return httpx.Client(base_url=configuration.host, verify=tls, timeout=httpx.Timeout(15.0), trust_env=False, proxy=proxy)
    except ImportError as error:
        raise ConfigurationError(f"{said}: SOCKS needs one more package: pip install 'httpx[socks]'") from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigurationError(f"{said}: {error}; it must be an address such as http://HOST:3128") from error


class Cluster:
    """`Api` over HTTP."""

    def __init__(self, configuration: Configuration, namespace: str, where: str, options: str = "") -> None:
        self.namespace = namespace
        self.where = where
        self.options = options
        self._configuration = configuration
        try:
            tls = _tls(configuration)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"the certificates of {where} cannot be used: {error}") from error
        self._client = _client(configuration, tls)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        return self._json("GET", path, query)

    def patch(self, path: str, body: Json) -> Json:
        return self._json("PATCH", path, {"fieldManager": "kubectl-rljob"}, body)

    def lines(self, path: str, query: Mapping[str, str]) -> Iterator[str]:
        # A followed log is silent for as long as its container is.
        quiet = httpx.Timeout(15.0, read=None)
        with self._sending():
            request = self._request("GET", path, query, None, quiet)
            response = self._client.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response)
                yield from _lines(response.iter_bytes())
            finally:
                response.close()

    def _json(self, method: str, path: str, query: Mapping[str, str] | None, body: Json | None = None) -> Json:
        with self._sending():
            response = self._client.send(self._request(method, path, query, body))
        if not response.is_success:
            raise self._refusal(response)
        if (found := _object(response)) is None:
            raise self._stranger()
        return found

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Json | None, timeout: httpx.Timeout | None = None
    ) -> httpx.Request:
        # Asked for anew each time: a plugin's token expires.
        bearer = self._configuration.auth_settings().get("BearerToken")
        headers = {"authorization": str(bearer["value"])} if bearer and bearer["value"] else {}
        if body is not None:
            headers["content-type"] = "application/merge-patch+json"
        name = self._configuration.tls_server_name
        return self._client.build_request(
            method,
            path,
            params=dict(query or {}),
            headers=headers,
            json=body,
            timeout=timeout or httpx.USE_CLIENT_DEFAULT,
            extensions={"sni_hostname": name} if name else {},
        )

    @contextmanager
    def _sending(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise InfrastructureError(
                f"the cluster does not answer ({self.where}): {error or type(error).__name__}; "
                f"is it up, and is this the right context? `kubectl cluster-info{self.options}` shows"
            ) from error

    def _stranger(self) -> InfrastructureError:
        return InfrastructureError(
            f"what answers is no Kubernetes API server ({self.where}); is a proxy or a login page in between? "
            f"`kubectl cluster-info{self.options}` shows"
        )

    def _refusal(self, response: httpx.Response) -> ConfigurationError | InfrastructureError:
        """An answer that is not what was asked for, as the exception whose type says whether to try again."""
        # A `Status` object, or a text.
        said = _object(response) or {}
        message = str(said.get("message") or " ".join(response.text.split())[:500] or response.reason_phrase)
        match response.status_code:
            case code if code < 400:
                return self._stranger()
            case 401:
                return ConfigurationError(f"the cluster does not accept the credentials of {self.where}; log in again")
            case 403:
                return ConfigurationError(f"not allowed: {message}; ask for a Role that grants it")
            case 404:
                return NotFound(message, known_path=bool((said.get("details") or {}).get("name")))
            case 429 | 500 | 502 | 503 | 504:
                return InfrastructureError(f"the API server answers {response.status_code} ({self.where}): {message}")
        return ConfigurationError(f"the API server refuses: {message}")


def _object(response: httpx.Response) -> Json | None:
    """The object of an answer; None if it holds none."""
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines that end with a line feed and nothing else: what a container wrote may hold anything that ends lines elsewhere."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")
