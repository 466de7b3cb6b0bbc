"""Kubernetes' object metadata, as strict as the API server (apimachinery: pkg/api/validation/objectmeta.go).

A job reads its name and namespace. The rest is here so that a file which the API server refuses is refused without one too, and what a
cluster or a tool has written into a file (`kubectl get -o yaml`) is taken.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from rljob.api.base import Part

_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_ANNOTATIONS = 256 * 1024
"""Bytes that all annotations of an object may have together."""


def checked_namespace(name: str) -> str:
    """A namespace; empty is none, as for the API server.

    Raises:
        ValueError: no namespace can be called so.
    """
    if name and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise ValueError(f"is {name!r}; use lower-case letters, digits and dashes, at most 63, such as team-a")
    return name


def _qualified(name: str) -> str:
    """A name that labels and finalizers may have: a word, or a domain, a slash and a word."""
    domain, slash, word = name.rpartition("/")
    if not re.fullmatch(_WORD, word) or (slash and (len(domain) > 253 or not re.fullmatch(_DOMAIN, domain))):
        raise ValueError(
            f"{name!r} is no name that Kubernetes takes: at most 63 letters, digits, '-', '_' or '.', a letter or digit first and last, "
            "and before it a domain and a slash or nothing; write for example team or example.com/team"
        )
    return name


def _of_annotation(name: str) -> str:
    _qualified(name.lower())
    return name


def _label(value: str) -> str:
    if value and not re.fullmatch(_WORD, value):
        raise ValueError(
            f"is {value!r}; a label has at most 63 letters, digits, '-', '_' or '.', a letter or digit first and last; "
            "shorten it, or put the text into an annotation"
        )
    return value


def _short(annotations: Mapping[str, str]) -> Mapping[str, str]:
    size = sum(len(text.encode(errors="surrogatepass")) for pair in annotations.items() for text in pair)
    if size > _ANNOTATIONS:
        raise ValueError(f"have {size} bytes, the API server takes {_ANNOTATIONS}; put the long ones into a ConfigMap")
    return annotations


QualifiedName = Annotated[str, AfterValidator(_qualified)]
Value = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
"""Of a label or annotation, which is there also if nothing stands behind its name. (From a `dict`, `Part` would drop it.)"""
Text = Annotated[str, Field(min_length=1)]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[-+][0-9]{2}:[0-9]{2})$")]
"""RFC 3339."""
_WRITTEN: Any = Field(default=None, exclude=True)
"""Default of what a cluster or its tools write: it is read and then left out, since it changes while the job does not."""


class OwnerReference(Part):
    """An object with which this one is deleted."""

    api_version: Annotated[str, Field(pattern=r"^([^/]*/)?[^/]+$")]
    """Its API version."""
    kind: Text
    """Its kind."""
    name: Text
    """Its name."""
    uid: Text
    """Its uid."""
    controller: bool | None = None
    """Does it manage this object?"""
    block_owner_deletion: bool | None = None
    """Does it wait, in a foreground deletion, until this object is gone?"""


class Metadata(Part):
    """Kubernetes object metadata."""

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$")]
    """Name of the job: lower-case letters, digits and dashes, a letter first, at most 52 (children's names are derived from it)."""
    namespace: Annotated[str, AfterValidator(checked_namespace)] | None = None
    """Namespace of the job."""
    labels: Mapping[QualifiedName, Annotated[Value, AfterValidator(_label)]] = Field(default_factory=dict)
    """Labels."""
    annotations: Annotated[Mapping[Annotated[str, AfterValidator(_of_annotation)], Value], AfterValidator(_short)] = Field(
        default_factory=dict
    )
    """Annotations."""
    owner_references: list[OwnerReference] | None = _WRITTEN
    """Objects with which the job is deleted."""
    finalizers: list[QualifiedName] | None = _WRITTEN
    """Who has to agree before the job is gone."""
    generate_name: Annotated[str, Field(pattern=rf"^({_DOMAIN}-*)?$")] | None = _WRITTEN
    """What the name was made from."""
    uid: str | None = _WRITTEN
    """Which of all objects that ever had the name it is."""
    resource_version: str | None = _WRITTEN
    """Version of the object."""
    generation: int | None = _WRITTEN
    """Version of the spec."""
    creation_timestamp: Time | None = _WRITTEN
    """The time when it was made."""
    deletion_timestamp: Time | None = _WRITTEN
    """The time when it is to be gone."""
    deletion_grace_period_seconds: int | None = _WRITTEN
    """Time that it is given to end."""
    self_link: str | None = _WRITTEN
    """Its URL, in files of old clusters."""
    managed_fields: list[dict[str, Any]] | None = _WRITTEN
    """Who owns which field."""
