"""An API server as a judge of jobs: YAML in, verdict out, nothing stored unless asked."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from kubernetes.client.configuration import Configuration
from kubernetes.config import kube_config

from rljob.api.job import GROUP, VERSION


@dataclass(frozen=True)
class Verdict:
    """What the API server said of an object."""

    accepted: bool
    message: str = ""
    fields: tuple[str, ...] = ()
    """Fields that the refusal names."""
    stored: dict[str, Any] = field(default_factory=dict)
    """The object with its defaults, if it was accepted."""


class Judge:
    """Asks an API server by dry run and with strict field validation, as `kubectl apply --validate=strict --dry-run=server` does.

    The body is sent as YAML: kubectl and the API server read it with the same library.
    """

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        configuration: Configuration = type.__call__(Configuration)
        kube_config.load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if configuration.cert_file:
            tls.load_cert_chain(configuration.cert_file, configuration.key_file)
        self.namespace = namespace
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/rljobs"
        self._client = httpx.Client(base_url=configuration.host, verify=tls, timeout=30, trust_env=False)

    def create(self, text: str, dry_run: bool = True) -> Verdict:
        """Would it be, or is it, made?"""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        return _verdict(self._client.post(self._path, params=query, content=text.encode(), headers={"content-type": "application/yaml"}))

    def change(self, name: str, patch: dict[str, Any], dry_run: bool = True, below: str = "") -> Verdict:
        """Would a merge patch be taken?"""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        headers = {"content-type": "application/merge-patch+json"}
        return _verdict(self._client.patch(f"{self._path}/{name}{below}", params=query, json=patch, headers=headers))


def _verdict(response: httpx.Response) -> Verdict:
    said = response.json()
    if response.is_success:
        return Verdict(True, stored=said)
    if response.status_code not in (400, 422):
        raise AssertionError(f"the API server answers {response.status_code}: {said}")
    causes = said.get("details", {}).get("causes", [])
    return Verdict(False, said["message"], tuple(dict.fromkeys(c["field"] for c in causes if c.get("field"))))
