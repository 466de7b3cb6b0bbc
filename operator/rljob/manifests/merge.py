"""`spec.templates`: a partial pod template merged over a rendered one.

As in Kubernetes' strategic merge patch: mappings merge, `null` removes, lists whose items have a key merge by it, other lists are replaced.
Two differences: tolerations are added (the rendered one is always needed), and a container is found by its name wherever it stands, so
that nobody has to know which of them are native sidecars.
"""

from collections.abc import Mapping
from typing import Any

from rljob.api import ConfigurationError
from rljob.manifests.types import Manifest

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "resourceClaims": "name",
    "claims": "name",
    "topologySpreadConstraints": "topologyKey",
}
"""List to the field that tells its items apart."""
_ADDED = ("tolerations", "envFrom")


def merge_template(template: Manifest, override: Mapping[str, Any], field: str, hint: str = "") -> Manifest:
    """A pod template (`metadata`, `spec`) with an override merged over it.

    Args:
        template: what was rendered.
        override: a partial template.
        field: the override's place in the job, for messages.
        hint: why the pod has the containers that it has, for messages.

    Raises:
        ConfigurationError: the override is not a partial pod template.
    """
    for name, value in override.items():
        if name not in ("metadata", "spec"):
            raise ConfigurationError(f"{field}.{name}: is not part of a pod template; write it below `spec` or `metadata`")
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{field}.{name}: is {value!r}, but has fields of its own; write them below it, indented")
    for name in override.get("metadata", {}):
        if name not in ("labels", "annotations"):
            raise ConfigurationError(f"{field}.metadata.{name}: the operator sets it; only labels and annotations can be added")
    spec = _containers_by_name(override.get("spec", {}), template["spec"], f"{field}.spec")
    merged: Manifest = merge(template, {**override, "spec": spec}, field)
    for kind in ("initContainers", "containers"):
        for container in merged["spec"].get(kind, ()):
            if not container.get("image"):
                known = ", ".join(c["name"] for c in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]))
                raise ConfigurationError(
                    f"{field}.spec.{kind}: {container.get('name')!r} is none of this pod's containers ({known}{hint}) and has no image; "
                    "mind the spelling, or give it an image to add it"
                )
    return merged


def _containers_by_name(spec: Mapping[str, Any], rendered: Manifest, field: str) -> dict[str, Any]:
    """The override's spec with its containers in the lists in which the rendered ones stand."""
    found = dict(spec)
    home = {c["name"]: kind for kind in ("initContainers", "containers") for c in rendered.get(kind, ())}
    lists: dict[str, list[Any]] = {}
    for kind in ("initContainers", "containers"):
        for item in _items(found.pop(kind, None) or [], f"{field}.{kind}"):
            if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
                raise ConfigurationError(f"{field}.{kind}: {item!r} has no name; a container is found by its name")
            lists.setdefault(home.get(item["name"], kind), []).append(item)
    return found | lists


def merge(base: Any, override: Any, field: str, name: str = "") -> Any:
    """`override` over `base`; `name` is the field both stand at.

    Raises:
        ConfigurationError: a list that is merged by a key holds something without it.
    """
    if isinstance(base, Mapping) and not isinstance(override, Mapping):
        raise ConfigurationError(f"{field}: is {override!r}, but has fields of its own; write them below it, indented")
    if isinstance(base, list):
        _items(override, field)
    if isinstance(override, Mapping):
        found = {key: value for key, value in (base or {}).items() if not (key in override and override[key] is None)}
        for key, value in override.items():
            if value is not None:
                found[key] = merge(found.get(key), value, f"{field}.{key}", key)
        return found
    if isinstance(override, list) and name in _ADDED:
        return [*(base or ()), *(item for item in override if item not in (base or ()))]
    if isinstance(override, list) and name in _KEYS:
        return _merge_items(list(base or ()), override, _KEYS[name], field)
    return override


def _items(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{field}: is {value!r}; it must be a list")
    return value


def _merge_items(base: list[Any], override: list[Any], key: str, field: str) -> list[Any]:
    found = list(base)
    places = {item[key]: index for index, item in enumerate(found)}
    for item in override:
        if not isinstance(item, Mapping) or not isinstance(item.get(key), str | int):
            raise ConfigurationError(f"{field}: {item!r} has no {key}; items of this list are told apart by it")
        place = places.get(item[key])
        if place is None:
            found.append(merge(None, item, field))
        else:
            found[place] = merge(found[place], item, field)
    return found
