"""The plan of a job: what runs, with what, waiting for what."""

import json
from typing import Any

import pytest

from rljob.api import RLJob
from rljob.api.platform import SandboxSpec
from rljob.plan import ModelShape, plan
from rljob.plan.types import AdvertiseHost, HttpProbe, Listen, PodHost, PodName, PodPort, ServiceUrl, Threads, VolumePath


def job(**spec: Any) -> RLJob:
    base = {"model": {"source": {"path": "model"}}, "data": {"train": {"path": "train.jsonl"}}}
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": base | spec}
    return RLJob.model_validate(document)


RM = {"folder": "models/rm"}
SMALL = ModelShape("llama", 800_000, 4, 128, 384, 4, 2, 32, 128, 256)
LARGE = ModelShape("llama", 134_515_008, 30, 576, 1536, 9, 3, 64, 49152, 8192)


def test_a_job_is_a_master_its_workers_and_a_reward_service() -> None:
    planned = plan(job())
    commands = {
        (pod.name, c.name): " ".join(c.command) for pod in planned.pods for c in pod.init_containers + pod.sidecars + pod.containers
    }
    assert commands == {
        ("master", "prepare"): "python -m rljob.prepare",
        ("master", "master"): "python -m rljob.master",
        ("worker-0", "megatron"): "python -m rljob.checkpoint_engine.shim --payload trainer",
        ("worker-0", "vllm"): "python -m rljob.checkpoint_engine.shim --payload vllm",
        ("worker-0", "checkpoint-engine"): "python -m rljob.checkpoint_engine",
        ("reward", "reward"): "python -m rljob.reward",
    }
    assert [c.name for c in planned.pod("worker-0").sidecars] == ["megatron", "vllm"]
    assert [c.name for c in planned.pod("master").init_containers] == ["prepare"]
    assert {(s.name, s.pod, s.port) for s in planned.services} == {("master", "master", "master"), ("reward", "reward", "reward")}


def test_a_job_that_trains_a_reward_model_has_neither_engine_nor_reward_service() -> None:
    planned = plan(job(rewardModel={}, rollout={"replicas": 2}, sandbox={"enabled": True}), SMALL)
    assert [p.name for p in planned.pods] == ["master", "worker-0"]
    assert [c.name for c in planned.pod("worker-0").sidecars] == ["megatron"]
    assert [s.name for s in planned.services] == ["master"]
    assert "RLJOB_URL_REWARD" not in planned.pod("master").containers[0].env


def test_a_reward_service_sees_the_jobs_files_only_where_it_has_a_model_among_them() -> None:
    plain, scored = (plan(job(reward=reward)).pod("reward").containers[0] for reward in ({}, {"verifier": "reward-model", "options": RM}))
    assert "source" not in [m.volume for m in plain.mounts]
    assert scored.env["RLJOB_SOURCE_DIR"] == VolumePath("source")


def test_nodes_and_rollout_replicas_become_pods() -> None:
    planned = plan(job(trainer={"nodes": 2}, rollout={"replicas": 2}, reward={"replicas": 3}))
    assert [p.name for p in planned.pods] == ["master", "worker-0", "worker-1", "rollout-0", "rollout-1", "reward"]
    assert [c.name for c in planned.pod("rollout-0").sidecars] == ["vllm"]
    assert planned.pod("reward").replicas == 3


def test_a_worker_waits_for_what_the_preparation_makes() -> None:
    waits = plan(job()).pod("worker-0").waits
    assert waits == (VolumePath("work", "data/prepared.json"), VolumePath("work", "source/config.json"))


def test_the_environment_is_the_contract_of_the_runtime() -> None:
    planned = plan(job(accelerator={"perNode": 2}))
    megatron, vllm = planned.pod("worker-0").sidecars
    (agent,) = planned.pod("worker-0").containers
    (master,) = planned.pod("master").containers
    (prepare,) = planned.pod("master").init_containers
    (reward,) = planned.pod("reward").containers
    for container in (megatron, vllm, agent, master, prepare, reward):
        assert container.env["RLJOB_JOB"] == VolumePath("job", "job.json")
        assert container.env["RLJOB_NODE"] == PodName()
        assert container.env["RLJOB_ADVERTISE_HOST"] == AdvertiseHost()
    assert prepare.env["RLJOB_SOURCE_DIR"] == VolumePath("source")
    assert master.env["RLJOB_LISTEN_MASTER"] == Listen("master")
    assert master.env["RLJOB_URL_REWARD"] == ServiceUrl("reward")
    assert master.env["RLJOB_DIR_OUTPUT"] == VolumePath("work")
    assert agent.env["RLJOB_URL_MASTER"] == ServiceUrl("master")
    assert agent.env["RLJOB_LISTEN_ENGINE"] == vllm.env["RLJOB_LISTEN_ENGINE"] == Listen("engine")
    assert reward.env["RLJOB_LISTEN_REWARD"] == Listen("reward")
    assert (megatron.env["LOCAL_WORLD_SIZE"], megatron.env["NODE_RANK"]) == ("2", "0")
    assert megatron.env["OMP_NUM_THREADS"] == Threads(2)
    assert megatron.env["OMP_WAIT_POLICY"] == vllm.env["OMP_WAIT_POLICY"] == "PASSIVE"
    for container in (megatron, vllm, agent):
        assert container.env["RLJOB_DIR_SHM"] == VolumePath("shm")
        assert container.env["RLJOB_DIR_SOCKETS"] == VolumePath("sockets")


def test_every_reference_leads_somewhere_and_every_volume_is_mounted() -> None:
    planned = plan(job(trainer={"nodes": 2}, rollout={"replicas": 1}))
    services = {s.name for s in planned.services}
    for pod in planned.pods:
        ports = {p.name for c in pod.all_containers for p in c.ports}
        for container in pod.all_containers:
            mounted = {m.volume for m in container.mounts}
            for name, value in container.env.items():
                match value:
                    case VolumePath(volume, _):
                        assert volume in mounted, (pod.name, container.name, name)
                    case ServiceUrl(service):
                        assert service in services
                    case Listen(port):
                        assert port in ports
                    case PodPort(other, port):
                        assert port in {p.name for c in planned.pod(other).all_containers for p in c.ports}
            if (
                container.probe is not None
                and isinstance(container.probe.check, HttpProbe)
                and isinstance(container.probe.check.at, Listen)
            ):
                assert container.probe.check.at.port in ports
            assert mounted <= {v.name for v in planned.volumes}


def test_several_nodes_share_an_address_to_meet_at() -> None:
    first, second = (plan(job(trainer={"nodes": 2})).pod(f"worker-{i}").sidecars[0] for i in range(2))
    assert first.env["MASTER_ADDR"] == second.env["MASTER_ADDR"] == PodHost("worker-0")
    assert second.env["NODE_RANK"] == "1"
    assert [p.name for p in first.ports] == ["rendezvous", "presence"]
    assert second.ports == ()
    assert "MASTER_ADDR" not in plan(job()).pod("worker-0").sidecars[0].env


def test_small_models_get_one_thread_and_large_ones_the_cores() -> None:
    threads = [plan(job(), shape).pod("worker-0").sidecars[1].env["OMP_NUM_THREADS"] for shape in (SMALL, LARGE, None)]
    assert threads == ["1", Threads(1), Threads(1)]


def test_the_job_travels_with_every_default_filled_in() -> None:
    text = plan(job(iterations=7)).volume("job").files["job.json"]
    resolved = json.loads(text)
    assert resolved["spec"]["iterations"] == 7
    assert resolved["spec"]["algorithm"]["samplesPerPrompt"] == 8
    assert RLJob.model_validate(resolved) == job(iterations=7)


def test_accelerators_are_asked_for_only_where_there_are_any() -> None:
    assert plan(job()).pod("worker-0").sidecars[0].resources.accelerators == 0
    nvidia = plan(job(accelerator={"type": "nvidia", "perNode": 4})).pod("worker-0")
    assert [c.resources.accelerators for c in nvidia.sidecars] == [4, 4]
    assert nvidia.containers[0].resources.accelerators == 0


def test_a_named_claim_is_used_for_state() -> None:
    assert plan(job(checkpoint={"volume": "my-claim"})).volume("work").claim == "my-claim"
    assert plan(job()).volume("work").claim is None


def test_a_sandbox_runs_where_it_is_asked_for_and_the_reward_service_is_told_where() -> None:
    planned = plan(job(sandbox={"enabled": True, "replicas": 2, "slots": 4, "minimum": "full"}))
    (sandbox,), (reward,) = planned.pod("sandbox").containers, planned.pod("reward").containers
    assert sandbox.command == ("python", "-m", "rljob.sandbox")
    assert (planned.pod("sandbox").replicas, sandbox.resources.cpus) == (2, 4)
    assert reward.env["RLJOB_URL_SANDBOX"] == ServiceUrl("sandbox")
    assert ("sandbox", "sandbox", "sandbox") in {(s.name, s.pod, s.port) for s in planned.services}
    without = plan(job())
    assert "sandbox" not in [pod.name for pod in without.pods]
    assert "RLJOB_URL_SANDBOX" not in without.pod("reward").containers[0].env


def test_the_sandbox_is_told_nothing_of_the_job_and_has_none_of_its_volumes() -> None:
    (sandbox,) = plan(job(sandbox={"enabled": True, "slots": 3})).pod("sandbox").containers
    assert sandbox.mounts == ()
    assert sandbox.env.keys() == {"RLJOB_SANDBOX", "RLJOB_LISTEN_SANDBOX"}
    settings = sandbox.env["RLJOB_SANDBOX"]
    assert isinstance(settings, str)
    assert SandboxSpec.model_validate_json(settings) == SandboxSpec(slots=3)


def test_the_sandboxs_memory_follows_its_slots() -> None:
    def memory(**sandbox: Any) -> int:
        return plan(job(sandbox={"enabled": True} | sandbox)).pod("sandbox").containers[0].resources.memory

    assert memory(slots=4) - memory(slots=2) == 1 << 30
    assert memory(slots=2, memoryPerRun="2Gi") == memory(slots=4)


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_same_job_gives_the_same_plan(nodes: int) -> None:
    assert plan(job(trainer={"nodes": nodes}), LARGE) == plan(job(trainer={"nodes": nodes}), LARGE)
