"""The chart against a real API server: it takes every object, and the release can be installed, upgraded and removed."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tests.chart.rendering import FOLDER, ROOT, Chart, Json
from tests.cluster.handle import Cluster, KubectlError
from tests.controller.process import install_crd

CRD = "customresourcedefinition/rljobs.rljob.dev"
VARIANTS: dict[str, Json] = {
    "default": {},
    "some namespaces": {"namespaces": ["default"]},
    "one replica": {"replicas": 1, "settings": {"leaderElection": {"enabled": False}}},
    "everything": {
        "imagePullSecrets": ["registry"],
        "podAnnotations": {"a": "1"},
        "podLabels": {"b": "2"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "serviceAccount": {"name": "mine", "annotations": {"c": "3"}},
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "networkPolicy": {"metricsFrom": []},
    },
}


@pytest.fixture
def release(api_server: Cluster, chart: Chart) -> Iterator[tuple[str, str]]:
    """(name, namespace) for a release that is removed afterwards."""
    with api_server.namespace("chart") as namespace:
        yield namespace, namespace
        if namespace in chart.run("list", "--short", "--namespace", namespace, *_at(api_server)):
            chart.run("uninstall", namespace, "--namespace", namespace, *_at(api_server))


def _at(cluster: Cluster) -> tuple[str, str]:
    return "--kubeconfig", str(cluster.kubeconfig)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_api_server_takes_every_object_strictly(api_server: Cluster, chart: Chart, variant: str) -> None:
    objects = chart.objects(VARIANTS[variant])
    with api_server.namespace("chart") as namespace:
        for item in objects:
            if item["metadata"].get("namespace") == "rljob-system":
                item["metadata"]["namespace"] = namespace
        said = api_server.kubectl(
            *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"),
            stdin=yaml.safe_dump_all(objects),
        )
    assert len(said.splitlines()) == len(objects)


@pytest.fixture(scope="module")
def schemas(api_server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where kubeconform finds the API server's own schemas."""
    folder = tmp_path_factory.mktemp("schemas")
    document = json.loads(api_server.kubectl("get", "--raw", "/openapi/v2"))
    # OpenAPI 2 has no word for a number or a string.
    document["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = {"type": ["string", "integer"]}
    (folder / "definitions.json").write_text(json.dumps({"definitions": document["definitions"]}))
    for name, schema in document["definitions"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            version = "-".join(part for part in (kind["group"].split(".")[0], kind["version"]) if part)
            (folder / f"{kind['kind'].lower()}-{version}.json").write_text(json.dumps({"$ref": f"definitions.json#/definitions/{name}"}))
    return f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubeconform_finds_nothing_with_the_servers_own_schemas(
    schemas: str, chart: Chart, binaries: Callable[[str], Path], variant: str
) -> None:
    command = [str(binaries("kubeconform")), "-strict", "-summary", "-schema-location", schemas, "-"]
    text = chart.text(VARIANTS[variant])
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(chart.objects(VARIANTS[variant]))} resources found" in done.stdout
    assert "Skipped: 0" in done.stdout


def test_the_operators_pod_is_let_into_a_restricted_namespace(api_server: Cluster, chart: Chart) -> None:
    template = chart.one("Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    pod["spec"].pop("serviceAccountName")
    with api_server.namespace("chart") as namespace:
        api_server.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        api_server.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
        pod["spec"]["containers"][0].pop("securityContext")
        with pytest.raises(KubectlError, match="violates PodSecurity"):
            api_server.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(pod))


def test_a_release_brings_a_newer_definition_and_leaves_it_behind(
    api_server: Cluster, chart: Chart, release: tuple[str, str], tmp_path: Path
) -> None:
    name, namespace = release
    words = ("--namespace", namespace, *_at(api_server), *TAKING)
    job = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "kept"}, "spec": SPEC}
    newer = job | {"spec": SPEC | {"queueName": "research"}}
    try:
        chart.run("install", name, str(_older(tmp_path)), *words)
        assert _columns(api_server) == []
        _until(lambda: "queueName" in _refusal(api_server, newer, namespace))
        api_server.apply(job, namespace)
        chart.run("upgrade", name, str(FOLDER), *words)
        assert _columns(api_server) == [column["name"] for column in _definition(FOLDER)["spec"]["versions"][0]["additionalPrinterColumns"]]
        _until(lambda: not _refusal(api_server, newer, namespace))
        again = chart.run("upgrade", name, str(FOLDER), *words)
        assert "REVISION: 3" in again
        chart.run("uninstall", name, "--namespace", namespace, *_at(api_server))
        assert api_server.get("rljob/kept", namespace=namespace)["spec"]["iterations"] == SPEC["iterations"]
        assert api_server.get("deployments", namespace=namespace)["items"] == []
    finally:
        install_crd(api_server)


TAKING = (
    # Other tests may have made the definition: the release takes it over.
    *("--take-ownership", "--force-conflicts", "--server-side=true"),
    # An operator that runs would act on other tests' jobs, where this cluster has nodes and the image.
    *("--set-json", 'nodeSelector={"rljob.dev/no-node":"has-this"}'),
)


def _definition(folder: Path) -> Json:
    found: Json = yaml.safe_load((folder / "files" / "rljobs.rljob.dev.yaml").read_text())
    return found


def _older(folder: Path) -> Path:
    """The chart as it could have been before: its definition has no columns and one field less."""
    shutil.copytree(FOLDER, folder / "rljob")
    definition = _definition(FOLDER)
    (version,) = definition["spec"]["versions"]
    del version["additionalPrinterColumns"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["queueName"]
    spec["x-kubernetes-validations"] = [rule for rule in spec["x-kubernetes-validations"] if "queueName" not in rule["rule"]]
    (folder / "rljob" / "files" / "rljobs.rljob.dev.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
    return folder / "rljob"


def _refusal(cluster: Cluster, job: Json, namespace: str) -> str:
    """What the API server has against a job; empty if it would take it."""
    try:
        cluster.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(job | {"metadata": {"name": "newer"}}))
    except KubectlError as error:
        return error.stderr
    return ""


def _until(done: Callable[[], bool], seconds: float = 60) -> None:
    """A changed definition is served a moment after it was taken."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.2)


SPEC: Json = {
    "model": {"source": {"path": "/models/x"}},
    "data": {"train": {"reasoningGym": {"dataset": "chain_sum", "size": 16}}},
    "iterations": 3,
    "rollout": {"maxTokens": 8},
}


def _columns(cluster: Cluster) -> list[str]:
    columns = cluster.get(CRD)["spec"]["versions"][0].get("additionalPrinterColumns", [])
    return [column["name"] for column in columns]


@pytest.mark.own_cluster  # what it makes, and takes away, is a real installation's
def test_kubectl_apply_k_makes_the_same_and_applied_again_changes_nothing(api_server: Cluster) -> None:
    base = str(ROOT / "charts" / "kustomize")
    words = ("apply", "--server-side", "--force-conflicts", "-k", base)
    try:
        api_server.kubectl(*words)
        first = _versions(api_server, base)
        api_server.kubectl(*words)
        assert _versions(api_server, base) == first
    finally:
        made = [item for item in yaml.safe_load_all(api_server.kubectl("kustomize", base)) if item["kind"] != "CustomResourceDefinition"]
        api_server.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=yaml.safe_dump_all(made))


def _versions(cluster: Cluster, base: str) -> dict[str, int]:
    """Generation, or where there is none resourceVersion, of what changes only by writes."""
    kinds = {"Deployment": "generation", "ClusterRole": "resourceVersion", "Role": "resourceVersion", "ConfigMap": "resourceVersion"}
    found = cluster.get("-k", base)["items"]
    return {f"{i['kind']} {i['metadata']['name']}": i["metadata"][kinds[i["kind"]]] for i in found if i["kind"] in kinds}


def test_the_clusters_own_roles_cover_rljobs(api_server: Cluster, chart: Chart, release: tuple[str, str]) -> None:
    name, namespace = release
    chart.run("install", name, str(FOLDER), "--namespace", namespace, *_at(api_server), *TAKING)
    for role in ("view", "edit", "admin"):
        aggregated = api_server.get(f"clusterrole/{role}")["rules"]
        verbs = {v for rule in aggregated if "rljobs" in rule["resources"] for v in rule["verbs"]}
        assert {"get", "list", "watch"} <= verbs
        assert ("create" in verbs) == (role != "view")


@pytest.mark.parametrize("apply", [("apply", "--server-side", "--field-manager=gitops"), ("apply",)], ids=["server-side", "client-side"])
def test_replicas_that_git_leaves_out_stay_as_people_scaled_them(api_server: Cluster, apply: tuple[str, ...]) -> None:
    install_crd(api_server)
    text = json.dumps({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": SPEC})
    with api_server.namespace("gitops") as namespace:
        api_server.kubectl(*apply, "-n", namespace, "-f", "-", stdin=text)
        api_server.kubectl("scale", "rljob/x", "--replicas=2", "-n", namespace)
        generation = api_server.get("rljob/x", namespace=namespace)["metadata"]["generation"]
        api_server.kubectl(*apply, "-n", namespace, "-f", "-", stdin=text)
        after = api_server.get("rljob/x", namespace=namespace)
        api_server.kubectl("replace", "-n", namespace, "-f", "-", stdin=text)
        replaced = api_server.get("rljob/x", namespace=namespace)
    assert after["spec"]["rollout"]["replicas"] == 2
    assert after["metadata"]["generation"] == generation
    assert after["status"] == {"observedGeneration": -1}
    assert replaced["spec"]["rollout"]["replicas"] == 0, "docs/gitops.md says so of Replace=true"
