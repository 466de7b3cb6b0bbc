"""The operator may do what it does, and nothing else."""

import ast
from collections.abc import Mapping

import pytest
from tests.chart.rendering import ROOT, Chart, Json

from rljob.controller.kinds import CHILDREN, DEVICE_CLASS, EVENT, KINDS, LEASE, RLJOB, Kind
from rljob.manifests.types import UPDATE

CONTROLLER = ROOT / "operator" / "rljob" / "controller"

Right = tuple[str, str, str]
"""(API group, resource, verb)."""

CALLS: Mapping[str, str] = {
    "get": "get",
    "create": "create",
    "apply": "patch",
    "delete": "delete",
    "release": "patch",
    "replace": "update",
    "patch_status": "patch",
    "list_objects": "list",
    "events": "list",
    "watch": "watch",
}
"""Method of `rljob.controller.client.Api` to the verb that it needs."""


KEPT = {kind.plural for kind in CHILDREN if UPDATE.get(kind.kind) == "keep"}
"""What the operator never deletes."""


def _right(kind: Kind, verb: str, sub: str = "") -> Right:
    group = kind.api_version.rpartition("/")[0]
    return group, kind.plural + (f"/{sub}" if sub else ""), verb


def needed() -> dict[Right, str]:
    """Every right, and what it is for."""
    found: dict[Right, str] = {}
    for kind in CHILDREN:
        for verb in ("get", "list", "watch", "create", "patch"):
            found[_right(kind, verb)] = "a job's children"
        found[_right(kind, "delete")] = "OwnerReferencesPermissionEnforcement" if kind.plural in KEPT else "a job's children"
    found |= {_right(RLJOB, verb): "the jobs" for verb in ("get", "list", "watch")}
    found[_right(RLJOB, "delete")] = "ttlSecondsAfterFinished"
    found[_right(RLJOB, "patch", "status")] = "one status write per pass"
    found[_right(RLJOB, "update", "finalizers")] = "OwnerReferencesPermissionEnforcement"
    found[_right(EVENT, "create")] = "events for people"
    found[_right(EVENT, "list")] = "why a pod waits without saying so"
    found[_right(DEVICE_CLASS, "list")] = "accelerator.sharing"
    return found


def _granted(rules: list[Json]) -> set[Right]:
    return {
        (group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }


def test_the_operators_role_is_what_its_code_needs(chart: Chart) -> None:
    (role,) = [i for i in chart.objects() if i["kind"] == "ClusterRole" and i["metadata"]["name"] == "rljob-operator"]
    assert _granted(role["rules"]) == needed().keys()


def test_what_the_operator_never_deletes_has_a_rule_of_its_own(chart: Chart) -> None:
    (role,) = [i for i in chart.objects() if i["kind"] == "ClusterRole" and i["metadata"]["name"] == "rljob-operator"]
    assert [rule["resources"] for rule in role["rules"] if KEPT & set(rule["resources"])] == [["persistentvolumeclaims"]]


def test_the_lease_can_be_made_and_only_the_own_one_be_held(chart: Chart) -> None:
    (role,) = [i for i in chart.objects() if i["kind"] == "Role"]
    create, hold = role["rules"]
    assert role["metadata"]["namespace"] == "rljob-system"
    assert _granted([create]) == {_right(LEASE, "create")}
    assert _granted([hold]) == {_right(LEASE, "get"), _right(LEASE, "update")}
    assert hold["resourceNames"] == ["rljob-operator"]
    assert "resourceNames" not in create


def test_no_rule_has_a_wildcard_or_reads_secrets(chart: Chart) -> None:
    for item in chart.objects():
        for rule in item.get("rules", ()):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], item["metadata"]["name"]
            assert "secrets" not in rule["resources"]


def test_every_kind_that_the_operator_knows_is_in_the_table() -> None:
    known = {(kind.api_version.rpartition("/")[0], kind.plural) for kind in KINDS.values()}
    table = {(group, resource.partition("/")[0]) for group, resource, _ in needed()} | {("coordination.k8s.io", "leases")}
    assert known == table


def test_every_call_of_the_operators_client_has_a_verb_here() -> None:
    tree = ast.parse((CONTROLLER / "client.py").read_text())
    (api,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Api"]
    methods = {node.name for node in api.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    # `raw` reads documents such as /version, which every account may.
    assert methods - {"raw"} == CALLS.keys()


def test_people_may_write_jobs_and_not_what_the_operator_says_of_them(chart: Chart) -> None:
    roles = {i["metadata"]["name"]: i for i in chart.objects() if i["kind"] == "ClusterRole"}
    view, edit = (_granted(roles[f"rljob-operator-{name}"]["rules"]) for name in ("view", "edit"))
    read, write = ("get", "list", "watch"), ("create", "update", "patch", "delete", "deletecollection")
    assert view == {*(_right(RLJOB, verb) for verb in read), _right(RLJOB, "get", "status"), _right(RLJOB, "get", "scale")}
    assert edit == {*(_right(RLJOB, verb) for verb in write), _right(RLJOB, "update", "scale"), _right(RLJOB, "patch", "scale")}


@pytest.mark.parametrize("namespaces", [[], ["team-a"]])
def test_nothing_but_the_operators_account_is_bound(chart: Chart, namespaces: list[str]) -> None:
    for item in chart.objects({"namespaces": namespaces}):
        if item["kind"].endswith("Binding"):
            assert item["subjects"] == [{"kind": "ServiceAccount", "name": "rljob-operator", "namespace": "rljob-system"}]
