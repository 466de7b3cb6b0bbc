"""The chart's values as models: the source of `rljob/values.schema.json`.

`settings` is the operator's own model, so a new field of it can be set in the chart without a line here. What the chart fills in itself
(`images`, `namespaces`, ...) is taken out.
"""

# ruff: noqa: RUF012 - pydantic copies defaults, and as values (not factories) they stand in the schema.
from typing import Annotated, Any

from pydantic import Field

from rljob.api.base import Part
from rljob.api.platform import ObjectName
from rljob.manifests import Settings

FILLED_IN = ("images", "namespaces", "operatorNamespace")
"""Fields of the settings file that the chart writes from its own values; the name of the Lease is another."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""Of a namespace."""
Port = Annotated[int, Field(ge=1, le=65535)]
Json = dict[str, Any]
Strings = dict[str, str]


class ImageValues(Part):
    """Where images come from."""

    registry: Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[^/:\s]+)(:[0-9]+)?(/[^/:\s]+)*/?$")] = "rljob"
    """Prefix of every image, such as `registry.example/rljob`: no `https://`."""
    tag: str = ""
    """Tag of every image. Empty: the chart's appVersion."""
    operator: str = ""
    """Complete reference of the operator's image; wins over registry and tag, like the others."""
    master: str = ""
    """Complete reference of the image of the master and of the node agent."""
    reward: str = ""
    """Complete reference of the reward service's image."""
    trainer: str = ""
    """Complete reference of the image of the sidecar `megatron` and of `prepare`."""
    rollout: str = ""
    """Complete reference of the image of the sidecar `vllm`."""
    combined: str = ""
    """Complete reference of the image with both, for `accelerator.sharing: single`."""
    sandbox: str = ""
    """Complete reference of the code sandbox's image."""


class Crds(Part):
    """The CustomResourceDefinition."""

    install: bool = True
    """Install and upgrade it with the release. It is kept when the release is uninstalled."""


class ServiceAccount(Part):
    """The operator's ServiceAccount."""

    create: bool = True
    """Make one."""
    name: str = ""
    """Its name. Empty: the release's name with `-operator`."""
    annotations: Strings = {}
    """Its annotations."""


class Rbac(Part):
    """Rights."""

    create: bool = True
    """Make the operator's roles and bindings."""
    aggregate: bool = True
    """Let the cluster's roles view, edit and admin cover RLJobs."""


class PodDisruptionBudget(Part):
    """How many of the operator's pods a drained node may take away."""

    enabled: bool = True
    """Make one, where there is more than one replica."""
    max_unavailable: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(100|[0-9]{1,2})%$")] = 1
    """Number, or share such as `50%`."""


class NetworkPolicy(Part):
    """What the operator's pods may reach, and who may reach them."""

    enabled: bool = True
    """Make one."""
    api_server_ports: Annotated[list[Port], Field(min_length=1)] = [443, 6443]
    """Ports of the API server, as pods see it and behind its Service."""
    metrics_from: list[Json] = [{"namespaceSelector": {}}]
    """Who may read metrics: peers as in a NetworkPolicy. Empty: nobody."""


class ServiceMonitor(Part):
    """A ServiceMonitor of the Prometheus operator."""

    enabled: bool = False
    """Make one. Needs the Prometheus operator's CustomResourceDefinitions."""
    interval: Annotated[str, Field(pattern=r"^[0-9]+(ms|s|m|h)$")] = "30s"
    """Between two scrapes."""
    labels: Strings = {}
    """Labels that the Prometheus looks for."""


class Metrics(Part):
    """How metrics are found."""

    service: bool = True
    """Make a Service for /metrics."""
    service_monitor: ServiceMonitor = ServiceMonitor()
    """A ServiceMonitor for it."""


class Values(Part):
    """Values of the chart `rljob`."""

    namespaces: list[Name] = []
    """Namespaces whose jobs are run, with a Role in each. Empty: all, with a ClusterRole."""
    replicas: Annotated[int, Field(ge=0)] = 2
    """Pods of the operator. One of them acts (it holds a Lease), the others stand by."""
    images: ImageValues = ImageValues()
    """Where images come from."""
    settings: Settings = Settings()
    """The operator's settings file, field by field."""
    crds: Crds = Crds()
    """The CustomResourceDefinition."""
    service_account: ServiceAccount = ServiceAccount()
    """The operator's ServiceAccount."""
    rbac: Rbac = Rbac()
    """Rights."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """How many of the operator's pods a drained node may take away."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """What the operator's pods may reach, and who may reach them."""
    metrics: Metrics = Metrics()
    """How metrics are found."""
    resources: Json = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    """Resources of the operator's container."""
    image_pull_secrets: list[ObjectName] = []
    """Names of Secrets, in the operator's namespace, for the operator's image."""
    pod_annotations: Strings = {}
    """Annotations of the operator's pods."""
    pod_labels: Strings = {}
    """Labels of the operator's pods."""
    node_selector: Strings = {}
    """Node selector of the operator's pods."""
    tolerations: list[Json] = []
    """Tolerations of the operator's pods."""
    affinity: Json = {}
    """Affinity of the operator's pods."""
    priority_class_name: str = ""
    """PriorityClass of the operator's pods."""
    global_: Annotated[Json, Field(alias="global")] = {}
    """What Helm hands to a chart that is part of another; not read."""


def values_schema() -> Json:
    """`values.schema.json`."""
    schema = Values.model_json_schema(by_alias=True)
    parts = schema["$defs"]
    for field in FILLED_IN:
        del parts["Settings"]["properties"][field]
    del parts["LeaderElection"]["properties"]["lease"]
    # Probes ask this port: it cannot be off.
    parts["Settings"]["properties"]["metricsPort"]["minimum"] = 1
    used = _references({key: value for key, value in schema.items() if key != "$defs"}, parts)
    closed = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"$defs": {name: parts[name] for name in sorted(used)}}
    return dict(_untitled(closed))


def _untitled(schema: Any) -> Any:
    """Without pydantic's titles, which repeat names."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _untitled(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}


def _references(schema: Any, parts: Json) -> set[str]:
    """Names of the definitions that a schema needs."""
    if isinstance(schema, list):
        return set().union(*(_references(item, parts) for item in schema))
    if not isinstance(schema, dict):
        return set()
    found = set().union(*(_references(value, parts) for value in schema.values()))
    if isinstance(schema.get("$ref"), str):
        name = schema["$ref"].removeprefix("#/$defs/")
        found |= {name} | _references(parts[name], parts)
    return found
