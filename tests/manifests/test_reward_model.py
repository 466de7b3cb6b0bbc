"""A job that trains a reward model, and one that is judged by such a model, in a cluster."""

import json

import pytest
from tests.manifests.jobs import DRA, container, nvidia, objects, pod, tiny, variables

from rljob.api import ConfigurationError, RLJob
from rljob.manifests import Settings
from rljob.manifests.render import relative_paths
from rljob.manifests.settings import Devices
from rljob.manifests.types import LABEL_ROLE

VISIBLE = Settings(devices={"nvidia": Devices(runtime_class="nvidia")})


@pytest.mark.parametrize("mode", ["claim", "single", "visible"])
def test_its_worker_holds_the_trainer_alone_however_devices_are_shared(mode: str) -> None:
    job = nvidia("spec.rewardModel={}", f"spec.accelerator.sharing={mode}", "spec.templates={}")
    made = objects(job, VISIBLE if mode == "visible" else None, DRA)
    assert {m["metadata"]["labels"][LABEL_ROLE] for m in made if m["kind"] in ("Pod", "Deployment")} == {"master", "worker"}
    worker = pod(made, "math-7b-worker-0")
    assert '"vllm"' not in json.dumps(worker)
    assert '"trainer"' in json.dumps(worker)
    assert not [m for m in made if m["kind"] == "NetworkPolicy" and m["metadata"]["name"].endswith("-reward")]


def test_its_master_asks_nobody_for_rewards() -> None:
    made = objects(tiny("spec.rewardModel={}", "spec.warmStart=null"))
    assert "RLJOB_URL_REWARD" not in variables(pod(made, "tiny-master"), "master")


def test_a_reward_service_with_a_model_in_a_folder_mounts_the_jobs_files() -> None:
    options = "spec.reward={verifier: reward-model, options: {folder: model}}"
    service = pod(objects(tiny(options)), "tiny-reward")
    source = variables(service, "reward")["RLJOB_SOURCE_DIR"]
    assert source in [m["mountPath"] for m in container(service, "reward")["volumeMounts"]]


def test_a_relative_folder_needs_the_jobs_files() -> None:
    options = "spec.reward={verifier: reward-model, options: {folder: models/rm}}"
    with pytest.raises(ConfigurationError, match=r"spec\.reward\.options\.folder: models/rm has folders, the ConfigMap"):
        objects(tiny(options))


def test_of_several_folders_none_hides_a_relative_one() -> None:
    job = tiny().model_dump(by_alias=True, exclude_none=True)
    terms = [{"verifier": "reward-model", "options": {"folder": folder}} for folder in ("models/rm", "/models/rm")]
    job["spec"] |= {"files": None, "reward": {"verifier": "weighted", "options": {"terms": terms}}}
    assert relative_paths(RLJob.model_validate(job))["spec.reward.options.folder"] == "models/rm"
