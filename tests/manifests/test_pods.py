"""Pods: order of start, environment, probes, resources, rights, places."""

from typing import Any

import pytest
from tests.manifests.jobs import DRA, PLAIN, SINGLE_TEMPLATE, VISIBLE, container, find, nvidia, objects, pod, tiny, variables

from rljob.api import RLJob
from rljob.manifests import Manifest, Settings
from rljob.manifests.settings import Images
from rljob.wire.environment import Environment


def specs(manifests: tuple[Manifest, ...]) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: pod(manifests, m["metadata"]["name"]) for m in manifests if m["kind"] in ("Pod", "Deployment")}


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


TINY = objects(tiny())
WORKER = pod(TINY, "tiny-worker-0")


def test_a_worker_pod_has_three_containers_and_the_wait_lies_behind_the_sidecars() -> None:
    assert [(c["name"], c.get("restartPolicy")) for c in WORKER["initContainers"]] == [
        ("megatron", "Always"),
        ("vllm", "Always"),
        ("wait", None),
    ]
    assert [c["name"] for c in WORKER["containers"]] == ["checkpoint-engine"]
    waited = container(WORKER, "wait")["command"][3:]
    assert waited == ["/rljob/work/data/prepared.json", "/rljob/work/source/config.json"]


def test_a_rollout_pod_is_a_worker_without_megatron() -> None:
    rollout = pod(objects(tiny("spec.rollout.replicas=1")), "tiny-rollout-0")
    assert [c["name"] for c in containers(rollout)] == ["vllm", "wait", "checkpoint-engine"]


def test_the_master_is_prepared_first() -> None:
    master = pod(TINY, "tiny-master")
    assert [c["name"] for c in containers(master)] == ["prepare", "master"]
    assert master["restartPolicy"] == "OnFailure"


def test_every_container_has_its_own_image() -> None:
    images = Images(master="m", trainer="t", rollout="v", reward="r", combined="c")
    found = {c["name"]: c["image"] for spec in specs(objects(tiny(), Settings(images=images))).values() for c in containers(spec)}
    assert found == {
        "prepare": "t", "master": "m", "megatron": "t", "vllm": "v", "wait": "m", "checkpoint-engine": "m", "reward": "r",
    }  # fmt: skip


def test_what_a_slim_image_has_not_comes_from_another_image_of_the_job() -> None:
    images = Images(master="m", trainer="t", rollout="v", reward="r", combined="c")
    moved = objects(tiny("spec.rollout.weights.transport=mooncake", "spec.rollout.replicas=1"), Settings(images=images))
    for name in ("tiny-worker-0", "tiny-rollout-0"):
        assert container(pod(moved, name), "checkpoint-engine")["image"] == "v"
    scored = objects(tiny("spec.reward={verifier: reward-model, options: {folder: scores}}"), Settings(images=images))
    reward = container(pod(scored, "tiny-reward"), "reward")
    assert reward["image"] == "t"
    assert "limits" not in reward["resources"], "nobody knows its size"


def test_pull_policy_and_secrets_come_from_the_settings() -> None:
    spec = pod(objects(tiny(), Settings(image_pull_policy="Always", image_pull_secrets=["registry"])), "tiny-worker-0")
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert {c["imagePullPolicy"] for c in containers(spec)} == {"Always"}


def test_processes_can_read_the_environment_that_they_get() -> None:
    for name, spec in specs(TINY).items():
        for c in containers(spec):
            values = {e["name"]: e.get("value", "10.0.0.7") for e in c["env"]}
            environment = Environment(values)
            mounts = tuple(m["mountPath"] for m in c["volumeMounts"])
            for variable in (v for v in values if v.startswith("RLJOB_DIR_")):
                folder = str(environment.directory(variable.removeprefix("RLJOB_DIR_")))
                assert folder.startswith(mounts), (name, c["name"], variable)
            if c["name"] != "wait":
                assert name == f"tiny-{environment.node}"
                assert environment.advertise_host == "10.0.0.7"
    assert Environment(variables(WORKER, "megatron")).url("master") == "http://tiny-master:8080"
    assert Environment(variables(WORKER, "vllm")).listen("engine") == ("0.0.0.0", 8000)
    assert Environment(variables(pod(TINY, "tiny-master"), "master")).url("reward") == "http://tiny-reward:8081"


def test_a_pod_reads_its_role_of_the_job() -> None:
    data = find(TINY, "ConfigMap", "tiny-config")["data"]
    for spec in specs(TINY).values():
        (volume,) = [v for v in spec["volumes"] if v["name"] == "job"]
        (item,) = volume["configMap"]["items"]
        assert item["path"] == "job.json"
        assert RLJob.model_validate_json(data[item["key"]]).metadata.name == "tiny"


def test_every_pod_satisfies_the_restricted_standard() -> None:
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for manifests in (TINY, objects(nvidia())):
        for name, spec in specs(manifests).items():
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
            assert all(allowed & volume.keys() for volume in spec["volumes"]), name
            for c in containers(spec):
                assert c["securityContext"]["allowPrivilegeEscalation"] is False
                assert c["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def writable(manifests: tuple[Manifest, ...]) -> set[str]:
    return {c["name"] for spec in specs(manifests).values() for c in containers(spec) if not c["securityContext"]["readOnlyRootFilesystem"]}


def test_root_file_systems_are_read_only_but_where_devices_are_seen() -> None:
    """NVIDIA's hooks write to the root of every container with devices, also of the agent, which only measures their memory."""
    assert writable(TINY) == set()
    assert writable(objects(nvidia())) == {"megatron", "vllm", "checkpoint-engine"}
    assert writable(objects(nvidia("spec.accelerator.sharing=visible"), VISIBLE)) == {"megatron", "vllm", "checkpoint-engine"}
    assert writable(objects(nvidia(SINGLE_TEMPLATE), cluster=PLAIN)) == {"checkpoint-engine"}
    for spec in specs(TINY).values():
        for c in containers(spec):
            assert {"name": "tmp", "mountPath": "/tmp"} in c["volumeMounts"]
            assert {e["name"]: e.get("value") for e in c["env"]}["HOME"] == "/tmp"


def test_unix_sockets_are_probed_by_a_command_and_ports_by_the_kubelet() -> None:
    probe = container(WORKER, "vllm")["startupProbe"]
    assert probe["exec"]["command"] == ["python", "-m", "rljob.wire.probe", "/v1/status", "/rljob/sockets/vllm-shim.sock"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (1, 180)
    assert container(pod(TINY, "tiny-master"), "master")["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "master"}


def test_sidecars_that_take_turns_ask_for_the_cores_of_one() -> None:
    asked = [container(WORKER, name)["resources"]["requests"]["cpu"] for name in ("megatron", "vllm")]
    assert asked == ["500m", "500m"]
    assert not any("cpu" in c["resources"].get("limits", {}) for c in containers(WORKER))


def test_shared_memory_counts_against_the_limit_of_whoever_may_fill_it() -> None:
    (shm,) = [v for v in WORKER["volumes"] if v["name"] == "shm"]
    size = int(shm["emptyDir"]["sizeLimit"].removesuffix("Mi"))
    assert shm["emptyDir"]["medium"] == "Memory"
    assert size >= 2 * 4 * 0.9, "two versions of a model of 0.9 million parameters in fp32"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(WORKER, "megatron")["volumeMounts"]


def test_an_unknown_model_has_no_memory_limit() -> None:
    spec = pod(objects(nvidia()), "math-7b-worker-0")
    assert "limits" not in container(spec, "vllm")["resources"]
    # The agent itself fills the shared memory of a rollout pod, and passes the batch on.
    assert "limits" not in container(spec, "checkpoint-engine")["resources"]
    assert "limits" not in container(pod(objects(nvidia()), "math-7b-rollout-0"), "checkpoint-engine")["resources"]
    (shm,) = [v for v in spec["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory"}


def test_prompts_that_nobody_has_counted_leave_no_memory_limit_for_those_who_hold_them() -> None:
    generated = "spec.data.train={reasoningGym: {dataset: chain_sum, size: 1000000}}"
    for names, job in (((), tiny()), (("prepare", "master"), tiny(generated, "spec.evaluation=null", "spec.warmStart.data=null"))):
        found = containers(pod(objects(job), "tiny-master"))
        assert tuple(c["name"] for c in found if "memory" in c["resources"].get("limits", {})) == names
    asked = container(pod(objects(job), "tiny-master"), "master")["resources"]["requests"]["memory"]
    assert int(asked.removesuffix("Mi")) > 3000, "a million of them"


def test_a_container_with_accelerators_has_no_memory_limit_however_small_the_model() -> None:
    worker = pod(objects(tiny("spec.accelerator={type: nvidia}")), "tiny-worker-0")
    for name in ("megatron", "vllm"):
        assert "memory" not in container(worker, name)["resources"].get("limits", {})


def test_the_grace_is_enough_for_sidecars_that_end_one_after_the_other() -> None:
    assert WORKER["terminationGracePeriodSeconds"] == 60


def test_the_shim_divides_the_cores_of_the_container() -> None:
    found = variables(pod(objects(nvidia()), "math-7b-worker-0"), "megatron")
    assert found["RLJOB_CORES"] == {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}
    assert found["RLJOB_CORES_SHARED_BY"] == "8"
    assert "OMP_NUM_THREADS" not in found


def test_several_workers_find_each_other_by_host_name() -> None:
    manifests = objects(nvidia())
    service = find(manifests, "Service", "math-7b-nodes")["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    spec = pod(manifests, "math-7b-worker-1")
    assert (spec["hostname"], spec["subdomain"]) == ("math-7b-worker-1", "math-7b-nodes")
    found = variables(spec, "megatron")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("math-7b-worker-0.math-7b-nodes", "29500")
    assert "hostname" not in WORKER


def test_only_prepare_sees_the_credentials() -> None:
    manifests = objects(nvidia())
    for spec in specs(manifests).values():
        for c in containers(spec):
            sees = "/rljob/credentials" in [m["mountPath"] for m in c["volumeMounts"]]
            assert sees == (c["name"] == "prepare")
    found = variables(pod(manifests, "math-7b-master"), "prepare")
    assert found["HF_TOKEN_PATH"] == "/rljob/credentials/hf-token"
    assert found["AWS_SHARED_CREDENTIALS_FILE"] == "/rljob/credentials/aws-credentials"


@pytest.mark.parametrize(
    ("job", "name", "source"),
    [
        (tiny(), "tiny-master", {"configMap": {"name": "tiny-files"}}),
        (nvidia(), "math-7b-master", {"persistentVolumeClaim": {"claimName": "datasets", "readOnly": True}}),
    ],
)
def test_relative_paths_start_at_the_files(job: RLJob, name: str, source: dict[str, Any]) -> None:
    spec = pod(objects(job), name)
    assert {"name": "source"} | source in spec["volumes"]
    assert variables(spec, "prepare")["RLJOB_SOURCE_DIR"] == "/rljob/source"


def test_a_volume_of_the_users_own_is_used_and_none_is_made() -> None:
    manifests = objects(tiny("spec.checkpoint.volume=mine"))
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert {"name": "work", "persistentVolumeClaim": {"claimName": "mine"}} in pod(manifests, "tiny-worker-0")["volumes"]


def test_a_volume_for_one_node_keeps_the_pods_that_use_it_together() -> None:
    manifests = objects(tiny("spec.rollout.replicas=1"), Settings(access_mode="ReadWriteOnce", storage_class="fast"))
    claim = find(manifests, "PersistentVolumeClaim", "tiny-work")["spec"]
    assert (claim["accessModes"], claim["storageClassName"]) == (["ReadWriteOnce"], "fast")
    for name in ("tiny-master", "tiny-worker-0", "tiny-rollout-0"):
        (term,) = pod(manifests, name)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
    assert "affinity" not in pod(manifests, "tiny-reward")


def test_master_and_workers_wait_in_a_queue_together_and_rollout_pods_alone() -> None:
    manifests = objects(nvidia())
    meta = {m["metadata"]["name"]: m["metadata"] for m in manifests if m["kind"] == "Pod"}
    group = "kueue.x-k8s.io/pod-group-name"
    for name in ("math-7b-master", "math-7b-worker-0", "math-7b-worker-1"):
        assert meta[name]["labels"][group] == "math-7b"
        assert meta[name]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "3"
    assert meta["math-7b-rollout-0"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert group not in meta["math-7b-rollout-0"]["labels"]
    others = [m for m in manifests if m["kind"] != "Pod"]
    assert "kueue" not in str(others), "of a Deployment with its label, Kueue makes the pods wait too"


def test_the_reward_service_survives_an_eviction_and_is_ready_before_it_is_asked() -> None:
    manifests = objects(nvidia())
    assert find(manifests, "Deployment", "math-7b-reward")["spec"]["replicas"] == 3
    budget = find(manifests, "PodDisruptionBudget", "math-7b-reward")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert container(pod(manifests, "math-7b-reward"), "reward")["readinessProbe"]["httpGet"]["path"] == "/healthz"


def test_nothing_has_an_owner_that_is_not_there() -> None:
    assert all("ownerReferences" in m["metadata"] for m in objects(tiny(), cluster=DRA))
