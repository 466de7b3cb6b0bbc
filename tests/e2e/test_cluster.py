"""`helm install`, `kubectl apply -f rljob.yaml`: the whole loop in a real Kubernetes, with real Megatron-core and real vLLM in one pod."""

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.cluster.handle import Cluster, Object
from tests.e2e.incluster import ROOT, Release, Watched, build_images, condition, install, job, names, prompts, uninstall
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

KINDS = "pods,deployments,services,configmaps,persistentvolumeclaims,serviceaccounts,networkpolicies,poddisruptionbudgets"


@pytest.fixture(scope="module")
def operator(cluster: Cluster, binaries: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The operator, installed by helm from images built here; gone afterwards, for other tests share the cluster."""
    archive = tmp_path_factory.mktemp("images") / "images.tar"
    build_images(archive)
    cluster.load_image(archive)
    archive.unlink()
    release = Release("rljob-system", "rljob")
    install(cluster, release)
    yield release
    uninstall(cluster, release)


@dataclass(frozen=True)
class Done:
    """A job that ran undisturbed, and what was seen on the way."""

    job: Watched
    namespace: str
    phases: list[str]
    iterations: list[int]
    pods: list[str]
    status: Object


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, operator: Release) -> Iterator[Done]:
    with cluster.namespace("calm") as namespace:
        cluster.apply(prompts(), namespace)
        cluster.apply(job("tiny"), namespace)
        watched = Watched(cluster, namespace, "tiny")
        phases: list[str] = []
        iterations: list[int] = []
        pods: set[str] = set()

        def look(status: Object) -> bool:
            phase, iteration = status.get("phase", ""), status.get("iteration", 0)
            if phase and phases[-1:] != [phase]:
                phases.append(phase)
            if iteration and iterations[-1:] != [iteration]:
                iterations.append(iteration)
            pods.update(names(watched.pods()))
            return condition(status, "Succeeded") == "True"

        status = watched.until(look, 900, "the tiny example")
        yield Done(watched, namespace, phases, iterations, sorted(pods), status)


def test_the_job_goes_through_real_iterations_and_succeeds(undisturbed: Done) -> None:
    # The status is a summary, not a log: short phases may begin and end between two looks.
    assert "WarmStart" in undisturbed.phases
    assert {"Rollout", "Training"} & set(undisturbed.phases)
    assert min(undisturbed.status["timings"][phase] for phase in ("rollout", "train")) > 0
    assert undisturbed.phases[-1] == "Succeeded"
    assert undisturbed.iterations == sorted(undisturbed.iterations)
    assert undisturbed.status["iteration"] == 12
    assert len(undisturbed.status["rewards"]) == 12
    assert undisturbed.status["heldOut"][-1]["accuracy"] > 0.9


def test_the_reward_is_up(undisturbed: Done) -> None:
    rewards = undisturbed.status["rewards"]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


def test_megatron_and_vllm_shared_one_pod(undisturbed: Done) -> None:
    assert "tiny-worker-0" in undisturbed.pods
    assert not [name for name in undisturbed.pods if name.startswith("tiny-rollout")]


def test_after_the_end_only_the_masters_pod_is_left(undisturbed: Done) -> None:
    end = time.monotonic() + 60
    while (left := names(undisturbed.job.pods())) != ["tiny-master"] and time.monotonic() < end:
        time.sleep(1)
    assert left == ["tiny-master"]


def test_the_model_on_the_volume_loads_with_transformers(undisturbed: Done, cluster: Cluster, tmp_path: Path) -> None:
    _copy(cluster, undisturbed.namespace, "tiny-work", "model", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    records = [json.loads(line) for line in (ROOT / "examples/tiny/heldout.jsonl").read_text().splitlines()[:64]]
    right = 0
    for record in records:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": record["prompt"]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**prompt, do_sample=False, max_new_tokens=16)
        right += tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True) == record["reference"]
    assert right / len(records) > 0.8


def _copy(cluster: Cluster, namespace: str, claim: str, what: str, target: Path) -> None:
    """A folder of a volume, through a pod that has it mounted."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "reader",
                    "image": "rljob/master:latest",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "600"],
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                }
            ],
            "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
    cluster.apply(pod, namespace)
    cluster.wait("pod/reader", "condition=Ready", namespace, timeout=60)
    words = [str(cluster.bin("kubectl")), "--kubeconfig", str(cluster.kubeconfig), "exec", "reader", "-n", namespace]
    done = subprocess.run([*words, "--", "tar", "-C", "/work", "-cf", "-", what], capture_output=True, timeout=120, check=True)
    subprocess.run(["tar", "-C", str(target), "-xf", "-"], input=done.stdout, check=True, timeout=120)


def test_applying_the_same_file_again_changes_nothing_and_tells_nothing(undisturbed: Done, cluster: Cluster) -> None:
    def events() -> int:
        return len(cluster.get("events", namespace=undisturbed.namespace)["items"])

    def versions() -> dict[str, str]:
        found = cluster.get(KINDS, "--selector=rljob.dev/job=tiny", namespace=undisturbed.namespace)["items"]
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in found}

    before, told, seen = undisturbed.job.object["metadata"], events(), versions()
    cluster.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-f",
        "-",
        "-n",
        undisturbed.namespace,
        stdin=json.dumps(job("tiny")),
    )
    cluster.apply(job("tiny"), undisturbed.namespace)
    time.sleep(5)
    assert undisturbed.job.object["metadata"]["generation"] == before["generation"]
    assert (events(), versions()) == (told, seen)


def _kill_operator(cluster: Cluster, release: Release) -> None:
    """Ends the operator without asking; one that is not there yet is waited for, so that every call is a kill."""
    words = ("delete", "pods", "-n", release.namespace, "-l", "app.kubernetes.io/name=rljob", "--force", "--grace-period=0", "--wait=false")
    end = time.monotonic() + 20
    while "deleted" not in (said := cluster.kubectl(*words)):
        assert time.monotonic() < end, f"no operator to kill: {said}"
        time.sleep(0.2)


@pytest.mark.timeout(3000)
def test_a_job_survives_everything_that_dies_under_it(cluster: Cluster, operator: Release) -> None:
    """The operator killed 20 times, each kind of pod deleted once, suspended and resumed; then deleted, and nothing is left."""
    chance = random.Random(7)
    with cluster.namespace("rough") as namespace:
        cluster.apply(prompts(), namespace)
        cluster.apply(job("rough", iterations=6), namespace)
        rough = Watched(cluster, namespace, "rough")
        doubled: list[list[str]] = []

        def look() -> None:
            found = names(rough.pods())
            if len([name for name in found if "reward" not in name]) > 2:
                doubled.append(found)

        for _ in range(10):
            _kill_operator(cluster, operator)
            time.sleep(chance.uniform(0.5, 6))
            look()
        rough.until(lambda s: s.get("policyVersion", 0) >= 1, 600, "the end of the warm start")
        for victim, iteration in (("rough-worker-0", 2), ("rough-master", 3), ("reward", 4)):
            found = [name for name in names(rough.pods()) if victim in name]
            assert found, f"no {victim} pod: {names(rough.pods())}"
            cluster.kubectl("delete", "pod", found[0], "-n", namespace, "--wait=false")
            for _ in range(3):
                _kill_operator(cluster, operator)
                time.sleep(chance.uniform(0.5, 4))
                look()
            rough.until(lambda s, i=iteration: s.get("iteration", 0) >= i, 420, f"iteration {iteration} after the end of {victim}")  # type: ignore[misc]
        cluster.kubectl("patch", "rljob", "rough", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
        rough.until(lambda s: condition(s, "Suspended") == "True" and not rough.pods(), 90, "suspended")
        _kill_operator(cluster, operator)
        cluster.kubectl("patch", "rljob", "rough", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}')
        status = rough.until(lambda s: condition(s, "Succeeded") == "True", 600, "the end")
        assert status["iteration"] == 6
        assert len(status["rewards"]) == 6
        assert doubled == []
        cluster.kubectl("delete", "rljob", "rough", "-n", namespace)
        end = time.monotonic() + 60
        while (
            left := names(cluster.get(KINDS, "--selector=rljob.dev/job=rough", namespace=namespace)["items"])
        ) and time.monotonic() < end:
            time.sleep(1)
        assert left == []


def test_two_jobs_of_one_name_in_two_namespaces_do_not_see_each_other(cluster: Cluster, operator: Release, undisturbed: Done) -> None:
    """The finished job keeps its status and its objects while one of the same name is made, fails and is deleted elsewhere."""
    before = undisturbed.job.object
    with cluster.namespace("other") as namespace:
        cluster.apply(job("tiny"), namespace)  # without its ConfigMap
        other = Watched(cluster, namespace, "tiny")
        status = other.until(lambda s: condition(s, "Ready") == "False" and "prompts" in json.dumps(s), 45, "says what is missing")
        assert "prompts" in json.dumps(status["conditions"])
        cluster.kubectl("delete", "rljob", "tiny", "-n", namespace)
    after = undisturbed.job.object
    assert after["status"] == before["status"]
    assert names(undisturbed.job.pods()) == ["tiny-master"]


def test_a_pod_that_can_never_start_is_told_within_thirty_seconds(cluster: Cluster, operator: Release) -> None:
    with cluster.namespace("stuck") as namespace:
        cluster.apply(prompts(), namespace)
        broken = job("broken")
        # Nobody listens there, which a node knows at once; a name would first be asked of DNS.
        broken["spec"]["templates"]["master"]["spec"]["initContainers"][0]["image"] = "127.0.0.1:1/none:1"
        cluster.apply(broken, namespace)
        stuck = Watched(cluster, namespace, "broken")
        status = stuck.until(lambda s: "127.0.0.1:1/none:1" in json.dumps(s.get("conditions")), 30, "told")
        assert condition(status, "Ready") == "False"
