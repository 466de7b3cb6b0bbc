"""What the chart renders: by default (golden), and as values change it."""

import itertools
import json
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.chart.rendering import FOLDER, Chart, Json, RefusedError, settings_of

from rljob.manifests.settings import Settings, parse_settings
from rljob.manifests.types import OPERATOR_LABELS


def test_helm_lint_has_nothing_to_say(chart: Chart) -> None:
    assert "0 chart(s) failed" in chart.run("lint", "--strict", str(FOLDER))


def test_by_default_it_renders_these_objects(chart: Chart) -> None:
    names = sorted(f"{item['kind']} {item['metadata']['name']}" for item in chart.objects())
    assert names == [
        "ClusterRole rljob-operator",
        "ClusterRole rljob-operator-edit",
        "ClusterRole rljob-operator-view",
        "ClusterRoleBinding rljob-operator",
        "ConfigMap rljob-operator",
        "CustomResourceDefinition rljobs.rljob.dev",
        "Deployment rljob-operator",
        "NetworkPolicy rljob-operator",
        "PodDisruptionBudget rljob-operator",
        "Role rljob-operator-lease",
        "RoleBinding rljob-operator-lease",
        "Service rljob-operator-metrics",
        "ServiceAccount rljob-operator",
    ]


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "imagePullPolicy": st.sampled_from(["Always", "IfNotPresent", "Never"]),
        "imagePullSecrets": st.lists(st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True), max_size=2),
        "storageClass": st.sampled_from(["fast", "123", "true", "null"]),
        "accessMode": st.sampled_from(["ReadWriteMany", "ReadWriteOnce"]),
        "storageSize": st.sampled_from(["1Gi", "500Mi", "2Ti"]),
        "devices": st.fixed_dictionaries({"nvidia": st.fixed_dictionaries({}, optional={"runtimeClass": st.just("nvidia")})}),
        "leaderElection": st.fixed_dictionaries({}, optional={"enabled": st.just(True), "seconds": st.integers(5, 10**7)}),
        "progressSeconds": st.floats(0.001, 1e7, allow_nan=False),
        "workers": st.integers(1, 10**7),
        "metricsPort": st.integers(1, 65535),
        "networkPolicies": st.booleans(),
    },
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "settings": SETTINGS,
        "namespaces": st.lists(st.sampled_from(["a", "team-b", "0", "no"]), unique=True, max_size=2),
        "replicas": st.integers(0, 3),
        "images": st.fixed_dictionaries(
            {},
            optional={
                "registry": st.just("registry.example:5000/x"),
                "tag": st.sampled_from(["1.0", "1e3"]),
                "master": st.just("m@sha256:0"),
            },
        ),
    },
)


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(values=VALUES)
def test_every_combination_of_values_renders_settings_that_the_operator_takes(chart: Chart, values: Json) -> None:
    rendered = parse_settings(settings_of(chart.objects(values | {"crds": {"install": False}})), "settings.yaml")
    given_settings = values.get("settings", {})
    wanted = Settings.model_validate({**given_settings, "images": rendered.images, "operatorNamespace": "rljob-system"})
    wanted = wanted.model_copy(update={"namespaces": values.get("namespaces", [])})
    assert rendered == wanted


def test_images_come_from_registry_and_tag_unless_they_are_named(chart: Chart) -> None:
    images = {"registry": "registry.example/rljob", "tag": "2", "trainer": "other/trainer@sha256:abc"}
    found = parse_settings(settings_of(chart.objects({"images": images})), "settings.yaml").images
    assert found.master == "registry.example/rljob/master:2"
    assert found.trainer == "other/trainer@sha256:abc"
    assert _container(chart, {"images": images})["image"] == "registry.example/rljob/operator:2"


def test_a_registry_may_end_in_a_slash(chart: Chart) -> None:
    found = parse_settings(settings_of(chart.objects({"images": {"registry": "[fd00::1]:5000/x/", "tag": "2"}})), "settings.yaml").images
    assert found.master == "[fd00::1]:5000/x/master:2"


@pytest.mark.parametrize("word", ["123", "no", "1e3", "null"])
def test_names_that_yaml_takes_for_something_else_stay_names(chart: Chart, word: str) -> None:
    values: Json = {
        "namespaces": [word],
        "imagePullSecrets": [word],
        "priorityClassName": word,
        "serviceAccount": {"name": word},
        "metrics": {"serviceMonitor": {"enabled": True}},
    }
    text = chart.run("template", word, str(FOLDER), "--namespace", word, "--values", "-", stdin=json.dumps(values))
    for item in yaml.load_all(text, Loader=yaml.CSafeLoader):
        metadata = item["metadata"]
        assert metadata.get("namespace", word) == word
        assert metadata["labels"]["app.kubernetes.io/instance"] == word
        assert all((s["name"], s["namespace"]) == (word, word) for s in item.get("subjects", ()))
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            assert [pod["serviceAccountName"], pod["priorityClassName"], pod["imagePullSecrets"]] == [word, word, [{"name": word}]]
            assert item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == word


def test_the_longest_name_of_a_release_makes_names_that_a_cluster_takes(chart: Chart) -> None:
    text = chart.run("template", "r" * 53, str(FOLDER), "--set", "crds.install=false")
    assert max(len(item["metadata"]["name"]) for item in yaml.safe_load_all(text) if item["kind"] == "Service") <= 63


def test_without_a_tag_images_are_the_charts_version(chart: Chart) -> None:
    version = yaml.safe_load((FOLDER / "Chart.yaml").read_text())["appVersion"]
    assert _container(chart)["image"] == f"rljob/operator:{version}"


def test_other_settings_make_other_pods(chart: Chart) -> None:
    def template(workers: int) -> Json:
        found: Json = chart.one("Deployment", {"settings": {"workers": workers}})["spec"]["template"]
        return found

    assert template(1) != template(2)
    assert template(1) == template(1)


def test_job_network_policies_let_the_operators_pods_in(chart: Chart) -> None:
    labels = chart.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= OPERATOR_LABELS.items()


def test_nothing_of_the_chart_looks_like_an_object_of_a_job(chart: Chart) -> None:
    for item in chart.objects():
        assert item["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") != "rljob"


def test_the_operator_asks_for_no_privilege(chart: Chart) -> None:
    pod, container = chart.one("Deployment")["spec"]["template"]["spec"], _container(chart)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_named_namespaces_get_a_role_each_and_the_cluster_role_shrinks(chart: Chart) -> None:
    objects = chart.objects({"namespaces": ["team-a", "team-b"]})
    roles = [(i["metadata"]["namespace"], i["rules"]) for i in objects if i["kind"] == "Role" and i["metadata"]["name"] == "rljob-operator"]
    everywhere = next(i for i in chart.objects() if i["kind"] == "ClusterRole" and i["metadata"]["name"] == "rljob-operator")["rules"]
    left = next(i for i in objects if i["kind"] == "ClusterRole" and i["metadata"]["name"] == "rljob-operator")["rules"]
    assert [namespace for namespace, _ in roles] == ["team-a", "team-b"]
    assert all(sorted(map(str, left + rules)) == sorted(map(str, everywhere)) for _, rules in roles)
    bound = [i["metadata"]["namespace"] for i in objects if i["kind"] == "RoleBinding" and i["metadata"]["name"] == "rljob-operator"]
    assert bound == ["team-a", "team-b"]


SWITCHES: dict[str, Any] = {
    "crds.install": "CustomResourceDefinition",
    "serviceAccount.create": "ServiceAccount",
    "rbac.create": "ClusterRole",
    "podDisruptionBudget.enabled": "PodDisruptionBudget",
    "networkPolicy.enabled": "NetworkPolicy",
    "metrics.service": "Service",
}


@pytest.mark.parametrize(("switch", "kind"), SWITCHES.items())
def test_what_is_switched_off_is_not_rendered(chart: Chart, switch: str, kind: str) -> None:
    topic, name = switch.split(".")
    objects = chart.objects({topic: {name: False} | ({"name": "mine"} if topic == "serviceAccount" else {})})
    assert kind not in {item["kind"] for item in objects}
    assert len(objects) < len(chart.objects())


def test_a_single_operator_has_no_budget_that_would_hold_up_a_drain(chart: Chart) -> None:
    assert "PodDisruptionBudget" not in {item["kind"] for item in chart.objects({"replicas": 1})}


def test_a_service_monitor_scrapes_the_metrics_service(chart: Chart) -> None:
    values = {"metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}}
    monitor, service = chart.one("ServiceMonitor", values), chart.one("Service", values)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": service["spec"]["ports"][0]["name"], "interval": "30s"}]


REFUSED = [
    ({"replica": 1}, "replica"),
    ({"replicas": "two"}, "replicas"),
    ({"settings": {"workers": 0}}, "workers"),
    ({"settings": {"metricsPort": 0}}, "metricsPort"),
    ({"settings": {"images": {"master": "x"}}}, "images"),
    ({"settings": {"leaderElection": {"lease": "x"}}}, "lease"),
    ({"settings": {"metricsPort": 70000}}, "metricsPort"),
    ({"settings": {"storageSize": "100GB"}}, "storageSize"),
    ({"namespaces": ["Team_A"]}, "namespaces"),
    ({"replicas": 2, "settings": {"leaderElection": {"enabled": False}}}, "set replicas to 1 or enable it"),
    ({"serviceAccount": {"create": False}}, "serviceAccount.name: is needed"),
    ({"metrics": {"service": False, "serviceMonitor": {"enabled": True}}}, "set metrics.service to true"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_wrong_values_are_refused_by_name(chart: Chart, values: Json, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        chart.text(values)


def test_every_pairing_of_switches_renders(chart: Chart) -> None:
    for first, second in itertools.combinations(SWITCHES, 2):
        values: Json = {"serviceAccount": {"name": "mine"}}
        for switch in (first, second):
            topic, name = switch.split(".")
            values.setdefault(topic, {})[name] = False
        assert chart.objects(values)


def test_the_definition_is_kept_when_the_release_goes(chart: Chart) -> None:
    metadata = chart.one("CustomResourceDefinition")["metadata"]
    assert metadata["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_definition_is_untouched_but_for_its_metadata(chart: Chart) -> None:
    original = yaml.safe_load((FOLDER / "files" / "rljobs.rljob.dev.yaml").read_text())
    rendered = chart.one("CustomResourceDefinition")
    assert {**rendered, "metadata": {"name": rendered["metadata"]["name"]}} == original


def test_notes_name_what_the_release_made(chart: Chart) -> None:
    shown = chart.run("install", "rljob", str(FOLDER), "--namespace", "rljob-system", "--dry-run=client", "--set", "namespaces={team-a}")
    notes = shown.partition("NOTES:")[2]
    assert "deployment/rljob-operator" in notes
    assert "team-a" in notes


def _container(chart: Chart, values: Json | None = None) -> Json:
    (found,) = chart.one("Deployment", values)["spec"]["template"]["spec"]["containers"]
    container: Json = found
    return container
