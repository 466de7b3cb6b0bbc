"""Accelerators: which way is taken, and what it makes of the pods."""

from typing import Any

import pytest
from tests.manifests.jobs import DRA, PLAIN, SINGLE_TEMPLATE, VISIBLE, container, find, nvidia, objects, pod, tiny, variables

from rljob.api import ConfigurationError
from rljob.manifests import Cluster, Settings, choose_sharing
from rljob.manifests.settings import Devices

ROLES = ("megatron", "vllm", "checkpoint-engine")


def test_cpu_jobs_share_nothing() -> None:
    assert choose_sharing(tiny(), Settings(), DRA).mode == "none"
    worker = pod(objects(tiny()), "tiny-worker-0")
    assert "resourceClaims" not in worker
    assert "tolerations" not in worker


@pytest.mark.parametrize(("offer", "mode"), [(DRA, "claim"), (PLAIN, "single"), (Cluster((1, 36), frozenset({"other"})), "single")])
def test_auto_takes_the_first_way_that_the_cluster_offers_and_says_why(offer: Cluster, mode: str) -> None:
    choice = choose_sharing(nvidia(), Settings(), offer)
    assert choice.mode == mode
    assert "DeviceClass gpu.nvidia.com" in choice.reason


@pytest.mark.parametrize("mode", ["single", "visible"])
def test_what_the_job_says_is_done(mode: str) -> None:
    assert choose_sharing(nvidia(f"spec.accelerator.sharing={mode}"), Settings(), DRA).mode == mode


def test_a_claim_that_the_cluster_cannot_serve_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"accelerator\.sharing: is claim.*gpu\.nvidia\.com.*install the DRA driver.*single"):
        choose_sharing(nvidia("spec.accelerator.sharing=claim"), Settings(), PLAIN)


def test_an_accelerator_that_the_operator_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"accelerator\.type: is nvidia, the operator's settings know other"):
        choose_sharing(nvidia(), Settings(devices={"other": Devices()}), DRA)


def test_a_claim_is_one_for_all_containers_and_asks_for_devices_once() -> None:
    manifests = objects(nvidia())
    (request,) = find(manifests, "ResourceClaimTemplate", "math-7b-devices")["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 8}
    worker = pod(manifests, "math-7b-worker-0")
    assert worker["resourceClaims"] == [{"name": "devices", "resourceClaimTemplateName": "math-7b-devices"}]
    for name in ROLES:
        resources = container(worker, name)["resources"]
        assert resources["claims"] == [{"name": "devices"}]
        assert "nvidia.com/gpu" not in resources.get("limits", {})
    assert "claims" not in container(worker, "wait")["resources"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]
    (request,) = find(manifests, "ResourceClaimTemplate", "math-7b-rollout-devices")["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["count"] == 4, "a rollout pod has an engine and no trainer"
    (named,) = pod(manifests, "math-7b-rollout-1")["resourceClaims"]
    assert named["resourceClaimTemplateName"] == "math-7b-rollout-devices"
    assert "resourceClaims" not in pod(manifests, "math-7b-master")


def test_one_container_holds_the_devices_and_starts_everything() -> None:
    worker = pod(objects(nvidia(SINGLE_TEMPLATE), cluster=PLAIN), "math-7b-worker-0")
    assert "initContainers" not in worker
    (one,) = worker["containers"]
    assert (one["name"], one["image"]) == ("checkpoint-engine", "rljob/combined:latest")
    assert one["resources"]["limits"]["nvidia.com/gpu"] == "8"
    command = " ".join(one["command"])
    assert command.count("--member") == 3
    assert "LOCAL_WORLD_SIZE=8" in command.split("--member")[1], "what is the trainer's alone stands before its command"
    assert "rljob.wire.wait /rljob/work/data/prepared.json" in command.split("--member")[3]
    assert command.endswith("python -m rljob.checkpoint_engine")
    assert one["startupProbe"]["exec"]["command"][-2:] == ["/rljob/sockets/megatron-shim.sock", "/rljob/sockets/vllm-shim.sock"]


def test_the_owners_devices_are_made_visible_to_the_other() -> None:
    worker = pod(objects(nvidia("spec.accelerator.sharing=visible"), VISIBLE), "math-7b-worker-0")
    assert worker["runtimeClassName"] == "nvidia"
    held: dict[str, Any] = {name: container(worker, name)["resources"].get("limits", {}).get("nvidia.com/gpu") for name in ROLES}
    assert held == {"megatron": "8", "vllm": None, "checkpoint-engine": None}
    assert variables(worker, "megatron")["RLJOB_DEVICES"] == "publish"
    for other in ("vllm", "checkpoint-engine"):  # the agent measures their memory, and nobody else's
        assert variables(worker, other)["NVIDIA_VISIBLE_DEVICES"] == "all"
        assert variables(worker, other)["RLJOB_DEVICES"] == "adopt"


def test_a_rollout_pod_holds_its_own_devices() -> None:
    """Those of its engine; there is no trainer that would have use for more."""
    rollout = pod(objects(nvidia("spec.accelerator.sharing=visible"), VISIBLE), "math-7b-rollout-0")
    assert container(rollout, "vllm")["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert variables(rollout, "vllm")["RLJOB_DEVICES"] == "publish"
