"""The CustomResourceDefinition, made from the models: structural schema, defaults, rules, subresources, printer columns."""

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import Field, create_model

from rljob.api.base import Part
from rljob.api.job import GROUP, KIND, VERSION, RLJobSpec
from rljob.api.rules import add_rules
from rljob.api.status import JobStatus

Schema = dict[str, Any]


class Condition(Part):
    """One aspect of the job's state, as kstatus reads it."""

    type: str
    """`Ready`, `Reconciling`, `Stalled`, `Suspended`, `Succeeded` or `Failed`."""
    status: Literal["True", "False", "Unknown"]
    """Does it hold?"""
    reason: str = ""
    """One CamelCase word for machines."""
    message: str = ""
    """One line for people."""
    observed_generation: int = 0
    """Generation of the spec that it speaks of."""
    last_transition_time: str = Field(default="", json_schema_extra={"format": "date-time"})
    """When `status` last changed."""


class RolloutStatus(Part):
    """What the scale subresource reads."""

    replicas: int = 0
    """Rollout-only pods."""
    ready_replicas: int = 0
    """Of them, ready ones."""
    selector: str = ""
    """Label selector of those pods."""


class SharingStatus(Part):
    """How the sidecars share their accelerators."""

    mode: str = ""
    """`none` (CPU), `claim`, `single` or `visible`."""
    reason: str = ""
    """Why that one."""


class BackoffStatus(Part):
    """What `spec.backoffLimit` counts from."""

    at: str = ""
    """How far the job was at the last progress."""
    base: dict[str, int] = Field(default_factory=dict)
    """Restarts that containers had then."""
    ended: dict[str, list[str]] = Field(default_factory=dict)
    """Pods that have failed as a whole since then."""


class ClusterStatus(Part):
    """What the operator adds to the job's own status."""

    observed_generation: int = 0
    """Generation of the spec that the operator acted on last."""
    conditions: list[Condition] = Field(default_factory=list)
    """Conditions; tools that know kstatus read `Ready`, `Reconciling` and `Stalled`."""
    rollout: RolloutStatus = RolloutStatus()
    """Rollout-only pods."""
    start_time: str = Field(default="", json_schema_extra={"format": "date-time"})
    """When the job first ran, or ran again after a suspension or a failure."""
    completion_time: str = Field(default="", json_schema_extra={"format": "date-time"})
    """When the job succeeded or failed."""
    sharing: SharingStatus = SharingStatus()
    """How the sidecars share their accelerators, and why so."""
    operator_version: str = ""
    """Version of the operator that worked on the job last; an older one leaves it alone."""
    fingerprint: str = ""
    """Of the job's objects as the operator wrote them; tells it after a restart whether somebody touched them."""
    backoff: BackoffStatus = BackoffStatus()
    """Bookkeeping for `spec.backoffLimit`."""


_COLUMNS = (
    ("Phase", "string", ".status.phase", "What the job is doing."),
    ("Iteration", "integer", ".status.iteration", "Iteration in progress."),
    ("Reward", "number", ".status.reward", "Mean reward of the last finished iteration."),
    ("Rollouts", "integer", ".status.rollout.readyReplicas", "Ready rollout-only pods."),
    ("Age", "date", ".metadata.creationTimestamp", ""),
)


def structural(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """JSON Schema as pydantic writes it to the structural OpenAPI v3 that Kubernetes takes: references inlined, `X | null` is an X that may
    be left out, closed by pruning instead of `additionalProperties: false`, exclusive bounds as flags."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return structural({**definitions[name], **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    if "anyOf" in schema:
        (only,) = [s for s in schema["anyOf"] if s.get("type") != "null"]
        rest = {k: v for k, v in schema.items() if k not in ("anyOf", "default") or (k == "default" and v is not None)}
        return structural({**only, **rest}, definitions)
    out: Schema = {k: schema[k] for k in _COPIED if k in schema}
    if "const" in schema:
        out["enum"] = [schema["const"]]
    for bound, flag in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            out |= {flag: schema[bound], bound: True}
    if schema.get("type") == "array":
        out["items"] = structural(schema["items"], definitions)
    if schema.get("type") == "object":
        out |= _object(schema, definitions)
    if "default" in schema:
        # Written out, although defaults below an object fill themselves in: the API server checks rules against a default as it stands.
        out["default"] = _without_nulls(schema["default"])
    if not out.get("type"):
        out = {k: v for k, v in out.items() if k in ("description", "default")} | {"x-kubernetes-preserve-unknown-fields": True}
    return out


def _without_nulls(value: Any) -> Any:
    return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value


_COPIED = (
    "type",
    "description",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "x-kubernetes-preserve-unknown-fields",
)


def _object(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    if "properties" in schema:
        out: Schema = {"properties": {name: structural(s, definitions) for name, s in schema["properties"].items()}}
        return out | ({"required": schema["required"]} if schema.get("required") else {})
    if "x-kubernetes-preserve-unknown-fields" in schema:
        return {}
    values = schema.get("additionalProperties")
    if isinstance(values, dict) and values.get("type"):
        return {"additionalProperties": structural(values, definitions)}
    # Not `preserve-unknown-fields` on the map itself: for rules, two such maps of one size are equal whatever their keys. (A map like this
    # one in turn cannot be named in a rule, only compared as a part of its parent.)
    return {"additionalProperties": {"x-kubernetes-preserve-unknown-fields": True}}


def spec_schema() -> Schema:
    """Structural schema of the spec, with its rules."""
    raw = RLJobSpec.model_json_schema(by_alias=True)
    schema = structural(raw, raw.get("$defs", {}))
    add_rules(schema)
    return schema


def status_schema() -> Schema:
    """Structural schema of the status; nothing in it is required or defaulted, the operator writes it piece by piece."""
    merged = create_model("Status", __base__=(JobStatus, ClusterStatus))
    raw = merged.model_json_schema(by_alias=True)
    schema = _free(structural(raw, raw.get("$defs", {})))
    # In a cluster a job can also wait for its turn or be suspended: the words are the operator's.
    schema["properties"]["phase"].pop("enum")
    schema["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    schema["properties"]["conditions"]["items"]["required"] = ["type", "status"]
    # Without it, kstatus takes a job that no operator has seen for one that is ready.
    return schema | {"description": "What the job says of itself. Written by the operator.", "default": {"observedGeneration": -1}}


def _free(schema: Schema) -> Schema:
    out = {k: v for k, v in schema.items() if k not in ("required", "default")}
    if "properties" in out:
        out["properties"] = {name: _free(s) for name, s in out["properties"].items()}
    if "items" in out:
        out["items"] = _free(out["items"])
    return out


_NAME = {"type": "string", "maxLength": 52, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
"""Services are named after the job: without dots, and a letter first."""


def job_schema() -> Schema:
    """Structural schema of the whole object."""
    return {
        "type": "object",
        "description": "One reinforcement-learning post-training job.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"`{GROUP}/{VERSION}`."},
            "kind": {"type": "string", "description": f"`{KIND}`."},
            "metadata": {"type": "object", "properties": {"name": _NAME}},
            "spec": spec_schema(),
            "status": status_schema(),
        },
    }


def custom_resource_definition() -> Schema:
    """The CustomResourceDefinition of RLJob."""
    columns = [
        {"name": name, "type": kind, "jsonPath": path} | ({"description": text} if text else {}) for name, kind, path, text in _COLUMNS
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": job_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.rollout.replicas",
                "statusReplicasPath": ".status.rollout.replicas",
                "labelSelectorPath": ".status.rollout.selector",
            },
        },
        "additionalPrinterColumns": columns,
    }
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": "rljobs", "singular": "rljob", "shortNames": ["rlj"], "categories": ["all"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"rljobs.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


class _Dumper(yaml.SafeDumper):
    """No anchors: kubectl's reader takes them, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def crd_yaml() -> str:
    """`rljob crd`."""
    head = "# Made by `rljob crd`; do not edit.\n"
    return head + yaml.dump(custom_resource_definition(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140)
