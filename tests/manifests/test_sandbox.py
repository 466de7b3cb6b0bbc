"""The sandbox's pods: what they are given so that they can isolate, and everything else that they are not given."""

import json
from typing import Any

import pytest
from tests.manifests.jobs import ROOT, container, find, objects, pod, tiny, variables

from rljob.manifests import Settings
from rljob.manifests.settings import Images, SandboxPods
from rljob.wire.environment import Environment

ENABLED = "spec.sandbox.enabled=true"
RENDERED = objects(tiny(ENABLED, "spec.sandbox.replicas=3", "spec.sandbox.slots=4"))
POD = pod(RENDERED, "tiny-sandbox")


def spec_with(**sandbox: Any) -> dict[str, Any]:
    return pod(objects(tiny(ENABLED), Settings(sandbox=SandboxPods(**sandbox))), "tiny-sandbox")


def test_it_is_a_deployment_with_a_service_that_survives_an_eviction() -> None:
    assert find(RENDERED, "Deployment", "tiny-sandbox")["spec"]["replicas"] == 3
    assert find(RENDERED, "PodDisruptionBudget", "tiny-sandbox")["spec"]["maxUnavailable"] == 1
    assert find(RENDERED, "Service", "tiny-sandbox")["spec"]["ports"][0]["port"] == 8082
    assert container(POD, "sandbox")["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "sandbox"}


def test_it_has_no_right_beyond_what_isolation_needs() -> None:
    security = container(POD, "sandbox")["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "procMount": "Unmasked",
    }
    assert POD["hostUsers"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "Localhost", "localhostProfile": "rljob/sandbox.json"}
    assert POD["automountServiceAccountToken"] is False
    assert find(RENDERED, "ServiceAccount", "tiny-sandbox")["automountServiceAccountToken"] is False


def test_it_has_nothing_of_the_job() -> None:
    assert POD["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert "tiny" not in str(container(POD, "sandbox"))
    credentials = pod(objects(tiny(ENABLED, "spec.credentials=hub")), "tiny-sandbox")
    assert credentials == pod(objects(tiny(ENABLED)), "tiny-sandbox")


def test_it_can_read_its_environment() -> None:
    environment = Environment(variables(POD, "sandbox"))
    assert (environment.sandbox_settings.slots, environment.sandbox_settings.minimum) == (4, "namespaces")
    assert environment.listen("sandbox") == ("0.0.0.0", 8082)
    assert Environment(variables(pod(RENDERED, "tiny-reward"), "reward")).url("sandbox") == "http://tiny-sandbox:8082"


def test_it_asks_for_a_core_and_for_memory_per_slot() -> None:
    resources = container(POD, "sandbox")["resources"]
    assert resources["requests"]["cpu"] == "4000m"
    assert int(resources["limits"]["memory"].removesuffix("Mi")) >= 4 * 1024
    assert "cpu" not in resources["limits"]


def test_its_image_is_its_own() -> None:
    rendered = objects(tiny(ENABLED), Settings(images=Images(sandbox="s@sha256:1")))
    assert container(pod(rendered, "tiny-sandbox"), "sandbox")["image"] == "s@sha256:1"


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("", {"type": "Unconfined"}),
        ("a/b.json", {"type": "Localhost", "localhostProfile": "a/b.json"}),
    ],
)
def test_the_seccomp_profile_is_the_sites(profile: str, expected: dict[str, str]) -> None:
    assert spec_with(seccomp_profile=profile)["securityContext"]["seccompProfile"] == expected


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("", None),
        ("unconfined", {"type": "Unconfined"}),
        ("rljob-sandbox", {"type": "Localhost", "localhostProfile": "rljob-sandbox"}),
    ],
)
def test_the_app_armor_profile_is_the_sites(profile: str, expected: dict[str, str] | None) -> None:
    assert spec_with(app_armor_profile=profile)["securityContext"].get("appArmorProfile") == expected


def test_where_pods_share_the_nodes_users_proc_stays_masked_because_kubernetes_wants_that() -> None:
    spec = spec_with(host_users=True)
    assert spec["hostUsers"] is True
    assert "procMount" not in container(spec, "sandbox")["securityContext"]


def test_a_runtime_class_wraps_the_whole_pod() -> None:
    wrapped = pod(objects(tiny(ENABLED, "spec.templates.sandbox.spec.runtimeClassName=gvisor")), "tiny-sandbox")
    assert wrapped["runtimeClassName"] == "gvisor"


PROFILE = json.loads((ROOT / "charts/rljob/files/sandbox-seccomp.json").read_text())
FORBIDDEN = {name for rule in PROFILE["syscalls"] for name in rule["names"]}


def test_the_profile_for_nodes_allows_what_makes_namespaces() -> None:
    assert PROFILE["defaultAction"] == "SCMP_ACT_ALLOW"
    assert all((rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 1) for rule in PROFILE["syscalls"])
    needed = {"clone", "clone3", "unshare", "setns", "mount", "umount2", "pivot_root", "mount_setattr", "sethostname", "seccomp", "prctl"}
    assert not needed & FORBIDDEN


def test_the_profile_for_nodes_forbids_what_has_no_place_in_a_pod() -> None:
    assert FORBIDDEN >= {
        "bpf",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "keyctl",
        "init_module",
        "kexec_load",
        "ptrace",
        "reboot",
    }
