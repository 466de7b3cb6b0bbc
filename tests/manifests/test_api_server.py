"""A real API server takes every rendering, with strict validation, under the restricted Pod Security Standard."""

import json
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module")
def restricted(api_server: Cluster) -> Iterator[Callable[[], str]]:
    """Makes namespaces that refuse pods which are not restricted, and warn of Deployments whose pods would be refused."""
    made: list[str] = []

    def make(standard: str = "restricted") -> str:
        name = f"manifests-{len(made)}"
        modes = {f"pod-security.kubernetes.io/{mode}": standard for mode in ("enforce", "warn")}
        api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": modes}})
        api_server.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"})
        api_server.apply(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": "high"},
                "value": 7,
                "globalDefault": False,
            }
        )
        made.append(name)
        return name

    yield make
    for name in made:
        api_server.kubectl("delete", "namespace", name, "--wait=false")


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
def test_the_api_server_takes_it_and_a_second_time_changes_nothing(api_server: Cluster, restricted: Callable[[], str], case: str) -> None:
    job, settings, offer = CASES[case]
    namespace = restricted()
    owner = Owner(job.metadata.name, namespace, uid=None)  # with an owner that is not there everything would be collected
    manifests = render(job, plan(job), owner, settings, offer)
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
    api_server: Cluster, restricted: Callable[[str], str], standard: str, settings: SandboxPods
) -> None:
    job = tiny("spec.sandbox.enabled=true")
    manifests = render(job, plan(job), Owner("tiny", restricted(standard), uid=None), Settings(sandbox=settings), DRA)
    first = apply(api_server, manifests)
    assert ("Deployment", "tiny-sandbox") in [(o["kind"], o["metadata"]["name"]) for o in first]
    assert generations(apply(api_server, manifests)) == generations(first)


def generations(stored: list[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    """Kind, name and generation: how often what is asked for has changed."""
    return [(o["kind"], o["metadata"]["name"], o["metadata"].get("generation")) for o in stored]


def test_a_changed_job_changes_the_keys_of_the_roles_that_read_the_field(api_server: Cluster, restricted: Callable[[], str]) -> None:
    namespace = restricted()

    def keys(job: RLJob) -> set[str]:
        manifests = render(job, plan(job), Owner(job.metadata.name, namespace, uid=None), Settings(), DRA)
        (config,) = apply(api_server, tuple(m for m in manifests if m["kind"] == "ConfigMap"))
        return set(config["data"])

    before, after = keys(tiny()), keys(tiny("spec.iterations=99"))
    assert len(after) == 3, "the old key is gone"
    assert {key.split("-")[0] for key in before - after} == {"master"}
