"""A real API server takes every rendering, with strict validation, under the restricted Pod Security Standard."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.handle import Cluster
from tests.manifests.jobs import PLAIN, SINGLE_TEMPLATE, VISIBLE, nvidia, tiny

from rljob.api import RLJob
from rljob.manifests import Cluster as Offer
from rljob.manifests import Manifest, Owner, Settings, render
from rljob.manifests.settings import Devices, SandboxPods
from rljob.manifests.types import FIELD_MANAGER
from rljob.plan import plan

DRA = Offer((1, 36), frozenset({"gpu.nvidia.com"}))

CASES: dict[str, tuple[RLJob, Settings, Offer]] = {
    "tiny": (tiny(), Settings(), DRA),
    "scaled": (tiny("spec.rollout.replicas=3"), Settings(access_mode="ReadWriteOnce", image_pull_secrets=["registry"]), DRA),
    "claim": (nvidia(), Settings(operator_namespace="rljob-system"), DRA),
    "single": (nvidia(SINGLE_TEMPLATE), Settings(), PLAIN),
    "visible": (nvidia("spec.accelerator.sharing=visible"), VISIBLE, PLAIN),
    "no class": (nvidia("spec.accelerator.sharing=visible"), Settings(devices={"nvidia": Devices()}), PLAIN),
    "templates": (
        tiny(
            "spec.templates.worker.spec.nodeSelector={zone: a}",
            "spec.templates.worker.spec.tolerations=[{operator: Exists}]",
            "spec.templates.worker.spec.containers=[{name: vllm, env: [{name: A, value: b}], ports: [{containerPort: 9000, name: extra}]}]",
            "spec.templates.worker.spec.volumes=[{name: cache, emptyDir: null, persistentVolumeClaim: {claimName: c}}]",
            "spec.templates.reward.metadata={labels: {team: a}, annotations: {b: c}}",
            "spec.queueName=research",
        ),
        Settings(storage_class="fast"),
        DRA,
    ),
    "longest name": (tiny(f"metadata.name={'a' * 52}", "spec.rollout.replicas=11"), Settings(), DRA),
}


@pytest.fixture
def restricted(api_server: Cluster) -> Iterator[str]:
    """A namespace that refuses pods which are not restricted, and warns of Deployments whose pods would be refused."""
    with api_server.namespace("manifests") as name:
        api_server.kubectl("label", "namespace", name, *(f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")))
        yield name


@pytest.fixture(scope="module")
def classes(api_server: Cluster) -> Iterator[dict[str, str]]:
    """Kind -> name of a class that pods of the renderings name; of the whole cluster, so with names of their own."""
    name = f"test-{secrets.token_hex(3)}"
    made: list[dict[str, Any]] = [
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runc"},
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 7, "globalDefault": False},
    ]
    api_server.apply(made)
    yield {"runtimeClassName": name, "priorityClassName": name}
    api_server.kubectl("delete", f"runtimeclass/{name}", f"priorityclass/{name}")


def named(manifests: tuple[Manifest, ...], classes: dict[str, str]) -> tuple[Manifest, ...]:
    """The manifests, with names of classes that this cluster has."""
    for manifest in manifests:
        spec = manifest["spec"]["template"]["spec"] if manifest["kind"] == "Deployment" else manifest.get("spec", {})
        spec |= {field: name for field, name in classes.items() if field in spec}
    return manifests


def apply(cluster: Cluster, manifests: tuple[Manifest, ...]) -> list[dict[str, Any]]:
    """Server-side apply as the operator does it; what the server has afterwards."""
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
    command = [
        "apply",
        "--server-side",
        f"--field-manager={FIELD_MANAGER}",
        "--validate=strict",
        "--warnings-as-errors",
        "-o",
        "json",
        "-f",
        "-",
    ]
    answer = json.loads(cluster.kubectl(*command, stdin=listed))
    found: list[dict[str, Any]] = answer["items"] if answer["kind"] == "List" else [answer]
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_it_and_a_second_time_changes_nothing(
    api_server: Cluster, restricted: str, classes: dict[str, str], case: str
) -> None:
    job, settings, offer = CASES[case]
    owner = Owner(job.metadata.name, restricted, uid=None)  # with an owner that is not there everything would be collected
    manifests = named(render(job, plan(job), owner, settings, offer), classes)
    first = apply(api_server, manifests)
    assert len(first) == len(manifests)
    again = apply(api_server, manifests)
    assert generations(again) == generations(first)


@pytest.mark.parametrize(
    ("standard", "settings"),
    [
        ("baseline", SandboxPods()),
        ("baseline", SandboxPods(host_users=True, app_armor_profile="rljob-sandbox")),
        ("privileged", SandboxPods(seccomp_profile="", app_armor_profile="unconfined")),
    ],
    ids=["default", "users of the node", "nothing prepared"],
)
def test_a_sandbox_is_taken_under_the_standard_that_its_page_names(
    api_server: Cluster, restricted: str, standard: str, settings: SandboxPods
) -> None:
    modes = (f"pod-security.kubernetes.io/{mode}={standard}" for mode in ("enforce", "warn"))
    api_server.kubectl("label", "namespace", restricted, "--overwrite", *modes)
    job = tiny("spec.sandbox.enabled=true")
    manifests = render(job, plan(job), Owner("tiny", restricted, uid=None), Settings(sandbox=settings), DRA)
    first = apply(api_server, manifests)
    assert ("Deployment", "tiny-sandbox") in [(o["kind"], o["metadata"]["name"]) for o in first]
    assert generations(apply(api_server, manifests)) == generations(first)


def generations(stored: list[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    """Kind, name and generation: how often what is asked for has changed."""
    return [(o["kind"], o["metadata"]["name"], o["metadata"].get("generation")) for o in stored]


def test_a_changed_job_changes_the_keys_of_the_roles_that_read_the_field(api_server: Cluster, restricted: str) -> None:
    def keys(job: RLJob) -> set[str]:
        manifests = render(job, plan(job), Owner(job.metadata.name, restricted, uid=None), Settings(), DRA)
        (config,) = apply(api_server, tuple(m for m in manifests if m["kind"] == "ConfigMap"))
        return set(config["data"])

    before, after = keys(tiny()), keys(tiny("spec.iterations=99"))
    assert len(after) == 3, "the old key is gone"
    assert {key.split("-")[0] for key in before - after} == {"master"}
