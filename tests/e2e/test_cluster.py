"""`helm install`, `kubectl apply -f rljob.yaml`: the whole loop in a real Kubernetes, with real Megatron-core and real vLLM in one pod."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cluster.cluster import LocalCluster
from tests.cluster.handle import Cluster, Object
from tests.e2e.incluster import (
    IMAGES,
    KINDS,
    ROOT,
    Onlooker,
    Release,
    Volume,
    Watched,
    build_images,
    condition,
    connects,
    install,
    job,
    judged_by_programs,
    names,
    programs,
    programs_judged,
    prompts,
    tries,
    uninstall,
    within,
)
from tests.e2e.jobfolder import assert_every_prompt_is_accounted_for, database, metrics
from tests.e2e.operators import Operators
from transformers import AutoModelForCausalLM, AutoTokenizer

# Whoever comes first waits for both jobs of `undisturbed`, whose own limits say more when they are over.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.images(*IMAGES, "sandbox")]


@pytest.fixture(scope="module")
def operator(cluster: Cluster, binaries: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The operator, installed by helm from images built here; gone afterwards, for other tests share the cluster."""
    archive = tmp_path_factory.mktemp("images") / "images.tar"
    build_images(archive, "sandbox")
    cluster.load_image(archive)
    archive.unlink()
    with cluster.namespace("operator") as namespace:
        release = Release(namespace, namespace)
        try:
            install(cluster, release)
            yield release
        finally:
            uninstall(cluster, release)


@pytest.fixture(scope="module")
def operators(cluster: Cluster, operator: Release) -> Operators:
    """Who acts."""
    return Operators(cluster, operator)


Pair = tuple[str, str]
"""One who asks, and who is asked, by their roles."""


@dataclass(frozen=True)
class Beside:
    """Another job of the same name that ran beside one to its end, in another namespace, and what was seen on the way."""

    job: Watched
    judged: dict[str, int]
    """Programs that each of its sandbox pods has judged, by the pod's uid, the first one first; none without a sandbox."""
    connected: dict[Pair, bool]
    """Who reached the sandbox, and whom it reached, while NetworkPolicies were enforced; empty where nobody is known to enforce them."""
    status: Object


@dataclass(frozen=True)
class Done:
    """A job that ran undisturbed, and what was seen on the way."""

    job: Watched
    namespace: str
    phases: list[str]
    iterations: list[int]
    pods: list[str]
    workers: list[tuple[int, Object]]
    """Iteration and worker pod, at each look."""
    first: datetime
    """When an iteration was first told of."""
    connected: dict[Pair, bool]
    """Who reached whom while NetworkPolicies were enforced, in the middle of the job; empty where nobody is known to enforce them."""
    status: Object
    beside: Future[Beside]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, operator: Release) -> Iterator[Done]:
    with cluster.namespace("calm") as namespace, cluster.namespace("other") as elsewhere:
        cluster.apply(prompts(), namespace)
        cluster.apply(job("tiny"), namespace)
        watched = Watched(cluster, namespace, "tiny")
        phases: list[str] = []
        iterations: list[int] = []
        pods: set[str] = set()
        workers: list[tuple[int, Object]] = []
        first: list[datetime] = []
        connected: dict[Pair, bool] = {}
        beside: list[Future[Beside]] = []

        def look(status: Object) -> bool:
            phase, iteration = status.get("phase", ""), status.get("iteration", 0)
            if phase and phases[-1:] != [phase]:
                phases.append(phase)
            if iteration and iterations[-1:] != [iteration]:
                iterations.append(iteration)
                first.append(datetime.now(UTC))
            found = watched.pods()
            pods.update(names(found))
            workers.extend((iteration, pod) for pod in found if _role(pod) == "worker")
            if status.get("policyVersion", 0) >= 1:
                # Before the connections, which take a while: on a fast machine not much of the job is left then.
                if not beside:
                    beside.append(thread.submit(_run_beside, cluster, elsewhere, enforced))
                if enforced and not connected:
                    connected.update(_connections(cluster, namespace, watched))
            return condition(status, "Succeeded") == "True"

        # The other job's end is waited for too: both have run while policies were enforced.
        with cluster.network_policies() as enforced, ThreadPoolExecutor(1) as thread:
            status = watched.until(look, 2700, "the tiny example")
        yield Done(watched, namespace, phases, iterations, sorted(pods), workers, first[0], connected, status, beside[0])


def _run_beside(cluster: Cluster, namespace: str, enforced: bool) -> Beside:
    """Runs another job of the name `tiny`, a short one. Its sandbox pod is deleted as soon as it has judged something."""
    small = job("tiny", iterations=4)
    small["spec"]["warmStart"]["steps"] = 40
    small["spec"]["algorithm"]["promptsPerIteration"] = 8
    small["spec"]["evaluation"]["data"]["limit"] = 16
    # Nobody else's nodes are known to be ready for a sandbox.
    if isinstance(cluster, LocalCluster):
        cluster.apply([programs(), judged_by_programs(small, cluster)], namespace)
    else:
        cluster.apply([prompts(), small], namespace)
    other = Watched(cluster, namespace, "tiny")
    judged: dict[str, int] = {}
    connected: dict[Pair, bool] = {}

    def look(status: Object) -> bool:
        ready = [pod for pod in other.pods() if condition(pod["status"], "Ready") == "True"]
        if enforced and not connected and {_role(pod) for pod in ready} >= {"master", "worker", "reward", "sandbox"}:
            pairs = (*SANDBOX_ALLOWED, *SANDBOX_FORBIDDEN)
            connected.update(_reached(cluster, namespace, pairs, *_whereabouts(cluster, namespace, other)))
        for pod in (pod for pod in ready if _role(pod) == "sandbox"):
            first = not any(judged.values())
            name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
            judged[uid] = max(judged.get(uid, 0), programs_judged(cluster, namespace, name))
            if first and judged[uid]:
                cluster.kubectl("delete", "pod", name, "-n", namespace, "--wait=false")
        return condition(status, "Succeeded") == "True"

    status = other.until(look, 1800, "the other job's end")
    return Beside(other, judged, connected, status)


def _role(pod: Object) -> str:
    return str(pod["metadata"]["labels"]["rljob.dev/role"])


def _whereabouts(cluster: Cluster, namespace: str, watched: Watched) -> tuple[dict[str, str], dict[str, tuple[str, int]]]:
    """Names of a running job's pods and of one that is no job's, by role, and the addresses where they are asked."""
    pods = {_role(pod): pod for pod in watched.pods()}
    place = {
        "master": (pods["master"]["status"]["podIP"], 8080),
        "worker": (pods["worker"]["status"]["podIP"], 8000),
        "API server": (cluster.get("service/kubernetes", namespace="default")["spec"]["clusterIP"], 443),
    }
    for role in {"reward", "sandbox"} & pods.keys():
        service = cluster.get(f"service/{watched.name}-{role}", namespace=namespace)["spec"]
        place[role] = (service["clusterIP"], service["ports"][0]["port"])
    return {role: pod["metadata"]["name"] for role, pod in pods.items()} | {"onlooker": Onlooker(cluster, namespace).name}, place


def _reached(
    cluster: Cluster, namespace: str, pairs: Sequence[Pair], name: dict[str, str], place: dict[str, tuple[str, int]]
) -> dict[Pair, bool]:
    with ThreadPoolExecutor() as at_once:
        found = at_once.map(lambda pair: connects(cluster, namespace, name[pair[0]], *place[pair[1]]), pairs)
        return dict(zip(pairs, found, strict=True))


def _connections(cluster: Cluster, namespace: str, watched: Watched) -> dict[Pair, bool]:
    """Who reaches whom in a job that runs; nothing if the worker's engine, which comes and goes, was not there for long enough."""
    name, place = _whereabouts(cluster, namespace, watched)
    # The worker's engine comes and goes within seconds: who may not reach it must have failed while the master got through.
    engine = [pair for pair in (*ALLOWED, *FORBIDDEN) if pair[1] == "worker"]
    with ThreadPoolExecutor() as at_once:
        found = at_once.map(lambda pair: tries(cluster, namespace, name[pair[0]], *place["worker"], seconds=20), engine)
        met = dict(zip(engine, found, strict=True))
    if not all(any(within(one, met["master", "worker"]) for one in met[pair]) for pair in engine if pair in FORBIDDEN):
        return {}
    connected = {pair: any(through for _, _, through in met[pair]) for pair in engine}
    return connected | _reached(cluster, namespace, [pair for pair in (*ALLOWED, *FORBIDDEN) if pair not in engine], name, place)


ALLOWED = (("master", "reward"), ("master", "worker"), ("worker", "master"), ("onlooker", "API server"))
FORBIDDEN = (
    *(("onlooker", role) for role in ("worker", "master", "reward")), *(("worker", other) for other in ("reward", "API server")),
    *(("reward", other) for other in ("worker", "master", "API server")),
)  # fmt: skip


SANDBOX_ALLOWED = (("reward", "sandbox"),)
SANDBOX_FORBIDDEN = (
    *((one, "sandbox") for one in ("onlooker", "master", "worker")), *(("sandbox", other) for other in ("reward", "master", "API server")),
)  # fmt: skip


@pytest.mark.own_cluster
def test_pods_reach_those_they_need_and_nobody_else_reaches_any(undisturbed: Done) -> None:
    assert undisturbed.connected == dict.fromkeys(ALLOWED, True) | dict.fromkeys(FORBIDDEN, False)
    sandbox = undisturbed.beside.result().connected
    assert sandbox == dict.fromkeys(SANDBOX_ALLOWED, True) | dict.fromkeys(SANDBOX_FORBIDDEN, False)


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


def test_megatron_and_vllm_shared_one_pod_from_before_the_first_iteration_to_the_last(undisturbed: Done) -> None:
    """Nobody else can have trained or generated: the job had no other pods."""
    others = [name for name in undisturbed.pods if name not in ("tiny-master", "tiny-worker-0") and not name.startswith("tiny-reward-")]
    assert others == []
    assert len({pod["metadata"]["uid"] for _, pod in undisturbed.workers}) == 1
    spec = undisturbed.workers[0][1]["spec"]
    assert [each["name"] for each in spec["initContainers"] if each.get("restartPolicy") == "Always"] == ["megatron", "vllm"]
    assert [each["name"] for each in spec["containers"]] == ["checkpoint-engine"]
    together = [(iteration, pod) for iteration, pod in undisturbed.workers if _running(pod) == {"megatron", "vllm", "checkpoint-engine"}]
    assert max(iteration for iteration, _ in together) > 1
    # By their own times: a busy kubelet tells of them late.
    begun = [datetime.fromisoformat(each["state"]["running"]["startedAt"]) for each in _containers(together[0][1]) if each.get("started")]
    assert len(begun) == 3
    assert max(begun) < undisturbed.first
    assert all(each["restartCount"] == 0 for _, pod in undisturbed.workers for each in _containers(pod))


def _containers(pod: Object) -> list[Object]:
    return [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]


def _running(pod: Object) -> set[str]:
    return {each["name"] for each in _containers(pod) if each.get("started") and "running" in each["state"]}


@pytest.mark.own_cluster
def test_a_sandbox_judges_programs_and_its_pods_loss_costs_nothing(undisturbed: Done) -> None:
    beside = undisturbed.beside.result()
    assert len(beside.judged) == 2, beside.judged
    assert min(beside.judged.values()) > 0, beside.judged
    assert (beside.status["iteration"], len(beside.status["rewards"])) == (4, 4)
    # Half of what it has learned is wrong: neither all programs pass, nor none.
    assert 0 < sum(beside.status["rewards"]) < 4
    assert beside.status.get("lastFailure") is None


def test_after_the_end_only_the_masters_pod_is_left(undisturbed: Done) -> None:
    assert _left(lambda: names(undisturbed.job.pods()), ["tiny-master"]) == ["tiny-master"]


def _left(found: Callable[[], object], wanted: object, seconds: float = 120) -> object:
    """What is there once it is what is wanted, or the time is over."""
    end = time.monotonic() + seconds
    while (left := found()) != wanted and time.monotonic() < end:
        time.sleep(1)
    return left


def test_the_model_on_the_volume_loads_with_transformers(undisturbed: Done, cluster: Cluster, tmp_path: Path) -> None:
    Volume(cluster, undisturbed.namespace, "tiny-work").copy("model", tmp_path)
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


def test_applying_the_same_file_again_changes_nothing_and_tells_nothing(undisturbed: Done, cluster: Cluster) -> None:
    def events() -> int:
        return len(cluster.get("events", namespace=undisturbed.namespace)["items"])

    def versions() -> dict[str, str]:
        found = cluster.get(KINDS, "--selector=rljob.dev/job=tiny", namespace=undisturbed.namespace)["items"]
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in found}

    before, told, seen = undisturbed.job.object, events(), versions()
    again, where = ("--server-side", "--force-conflicts", "--filename=-"), ("--namespace", undisturbed.namespace)
    # Ends with status 1 where there is a difference.
    assert cluster.kubectl("diff", *again, *where, stdin=json.dumps(job("tiny"))) == ""
    would_be = json.loads(cluster.kubectl("apply", *again, *where, "--dry-run=server", "--output=json", stdin=json.dumps(job("tiny"))))
    assert (would_be["metadata"]["generation"], would_be["spec"]) == (before["metadata"]["generation"], before["spec"])
    cluster.apply(job("tiny"), undisturbed.namespace)
    time.sleep(5)
    after = undisturbed.job.object
    assert (after["metadata"]["generation"], after["spec"]) == (before["metadata"]["generation"], before["spec"])
    assert (events(), versions()) == (told, seen)


def test_two_jobs_of_one_name_in_two_namespaces_do_not_see_each_other(cluster: Cluster, undisturbed: Done) -> None:
    """Side by side, each ran by its own data to its own end. When one is deleted the other keeps status, objects, journal and model."""
    first, other = undisturbed.job, undisturbed.beside.result()
    (ended,) = [each["lastTransitionTime"] for each in first.status["conditions"] if each["type"] == "Succeeded"]
    assert datetime.fromisoformat(other.status["startTime"]) < datetime.fromisoformat(ended), "they did not run at once"
    assert (first.status["iteration"], other.status["iteration"]) == (12, 4)
    assert _left(lambda: names(first.pods()), ["tiny-master"]) == ["tiny-master"]
    kept, others = (Volume(cluster, each.namespace, "tiny-work") for each in (first, other.job))
    before = first.object["status"], first.children(), kept.digests()
    assert "./state/master.sqlite" in before[2]
    model = {path: digest for path, digest in before[2].items() if path.startswith("./model/") and path.endswith(".safetensors")}
    assert model, sorted(before[2])
    found = others.digests()
    assert all(path in found and found[path] != digest for path, digest in model.items())
    others.let_go()
    cluster.kubectl("delete", "rljob", "tiny", "-n", other.job.namespace)
    assert _left(other.job.children, {}) == {}
    assert (first.object["status"], first.children(), kept.digests()) == before


def test_of_two_operators_one_acts(operators: Operators) -> None:
    operators.acting()
    assert len(operators.leading()) == 1


TURNS = 20


@dataclass
class Trial:
    """A job, and all that is done to it."""

    job: Watched
    operators: Operators
    chance: random.Random
    killed: set[str] = field(default_factory=set)
    rollouts: int = 0
    """Rollout pods that there may be."""

    def kill(self, times: int) -> None:
        """Kills the operator that acts, at random moments of the job; never are there two pods where there should be one."""
        for _ in range(times):
            self.operators.acting(besides=self.killed)
            time.sleep(self.chance.uniform(0.2, 4))
            assert condition(self.job.status, "Succeeded") != "True", f"over after {len(self.killed)} kills: the job is too short"
            self.killed.add(self.operators.kill(besides=self.killed))
            found = names(self.job.pods())
            assert len([name for name in found if "reward" not in name]) <= 2 + self.rollouts, found

    def say(self, **spec: Any) -> None:
        """Somebody changes the spec."""
        patch = json.dumps({"spec": spec})
        self.job.cluster.kubectl("patch", f"rljob/{self.job.name}", "-n", self.job.namespace, "--type=merge", "-p", patch)

    def lose(self, victim: str, *how: str) -> None:
        """One of its pods is deleted."""
        found = [name for name in names(self.job.pods()) if victim in name]
        assert found, f"no {victim} pod: {names(self.job.pods())}"
        self.job.cluster.kubectl("delete", "pod", found[0], "-n", self.job.namespace, "--wait=false", *how)

    def scale(self, count: int) -> None:
        """Rollout pods come, or go."""
        self.job.cluster.kubectl("scale", f"rljob/{self.job.name}", "-n", self.job.namespace, f"--replicas={count}")
        self.rollouts = max(self.rollouts, count)

    def serve(self, count: int, seconds: float = 720) -> None:
        """Waits until so many rollout pods have proven the weights that are wanted and are asked, all at once; then there are no more."""
        self.job.soon(lambda: len(_serving(self.job.live())) == count, seconds, f"{count} rollout pods answer")
        self.rollouts = count

    def write(self, node: str, seconds: float = 360) -> None:
        """Waits until a rollout pod is in the middle of an answer."""
        self.job.soon(lambda: self.job.generating(node) > 0, seconds, f"{node} generates")

    def go_on(self, seconds: float, what: str) -> None:
        """Waits for the end of the iteration that is in progress."""
        before = self.job.status.get("iteration", 0)
        self.job.until(lambda status: status.get("iteration", 0) > before, seconds, what)

    def columns(self) -> dict[str, str]:
        """What `kubectl get rljob` shows."""
        head, row = self.job.cluster.kubectl("get", f"rljob/{self.job.name}", "-n", self.job.namespace).splitlines()
        return dict(zip(head.split(), row.split(), strict=True))

    def apply_again(self, manifest: Object) -> None:
        """In the middle of an iteration: nothing changes, and nothing is told."""
        self.operators.acting(besides=self.killed)
        self.job.until(_in_an_iteration, 1800, "the middle of an iteration")
        before = self.job.object["metadata"]["generation"], self.job.children(), names(self.job.events())
        self.job.cluster.apply(manifest, self.job.namespace)
        time.sleep(5)
        assert (self.job.object["metadata"]["generation"], self.job.children(), names(self.job.events())) == before


def _serving(live: Object) -> list[str]:
    """Rollout pods that the master asks."""
    nodes = live.get("nodes") or ()
    return [node["name"] for node in nodes if node["name"].startswith("rollout-") and node.get("version") is not None]


def _step(live: Object, name: str) -> str:
    """What a node is doing."""
    return next((str(node["step"]) for node in live.get("nodes") or () if node["name"] == name), "")


def _in_an_iteration(status: Object) -> bool:
    return status.get("phase") in ("Rollout", "Training") and status.get("policyVersion", 0) >= 1 and condition(status, "Ready") == "True"


def _restless() -> Object:
    """A job that learns next to nothing, is in iterations from its first minute on, and whose answers take longer than the way to a pod."""
    manifest = job("rough", iterations=1000)  # more than any machine does in the time of 20 kills
    spec = manifest["spec"]
    del spec["evaluation"]
    spec["warmStart"] |= {"steps": 20, "batchSize": 32}
    spec["rollout"]["maxTokens"] = 40
    spec["algorithm"] |= {"promptsPerIteration": PROMPTS, "samplesPerPrompt": SAMPLES, "stepsPerIteration": 2}
    # Nearly every answer is wrong: with this no version is like the one before, and none learns to be brief.
    spec["algorithm"]["lengthPenalty"] = {"weight": 1}
    spec["trainer"]["optimizer"]["learningRate"] = 1e-6
    return manifest


PROMPTS, SAMPLES = 128, 16
"""Of an iteration, which then takes longer than rollout pods need for a new version."""


# Rollout pods must find the time to answer within an iteration, and what runs beside such a job would starve.
@pytest.mark.alone
@pytest.mark.timeout(2400)
def test_a_job_survives_everything_that_dies_under_it(cluster: Cluster, operators: Operators, tmp_path: Path) -> None:
    """The operator killed 20 times, each kind of pod deleted once, rollout pods scaled 0 -> 3 -> 1 -> 0 and killed where it hurts,
    suspended and resumed, told to do less; no iteration is lost or done twice. Then deleted, and nothing is left."""
    manifest = _restless()
    with cluster.namespace("rough") as namespace:
        cluster.apply([prompts(), manifest], namespace)
        rough = Watched(cluster, namespace, "rough")
        trial = Trial(rough, operators, random.Random(7))
        trial.kill(3)
        trial.scale(3)
        trial.kill(3)
        trial.apply_again(manifest)
        for victim in ("rough-worker-0", "rough-master", "reward"):
            trial.lose(victim)
            trial.kill(3)
            trial.go_on(1260, f"an iteration after the end of {victim}")
        trial.serve(3)
        _lose_rollout_pods(trial)
        trial.say(suspend=True)
        rough.until(lambda s: condition(s, "Suspended") == "True" and not rough.pods(), 540, "suspended")
        trial.kill(1)
        trial.say(suspend=False)
        trial.kill(1)
        rough.until(_in_an_iteration, 900, "an iteration after the pause")
        last = rough.status["iteration"] + 2
        trial.say(iterations=last)
        status = rough.until(lambda s: condition(s, "Succeeded") == "True", 1800, "the end")
        assert (status["iteration"], len(status["rewards"])) == (last, last)
        assert len(trial.killed) == TURNS
        _assert_each_iteration_once(Volume(cluster, namespace, "rough-work"), tmp_path, last)
        cluster.kubectl("delete", "rljob", "rough", "-n", namespace)
        assert _left(rough.children, {}, 180) == {}


def _lose_rollout_pods(trial: Trial) -> None:
    """Two are taken away while they generate. The one that is left is killed while it generates, and what follows it while it pulls."""
    rough, now = trial.job, ("--force", "--grace-period=0")
    before = rough.status.get("lastFailure")
    trial.write("rollout-2")
    trial.scale(1)
    rough.until(lambda s: s["rollout"] | {"selector": ""} == {"replicas": 1, "readyReplicas": 1, "selector": ""}, 180, "one rollout pod")
    assert trial.columns()["ROLLOUTS"] == "1"
    after = rough.status.get("lastFailure")
    blamed = after != before and not (after and after["pod"] not in ("rollout-1", "rollout-2"))
    assert not blamed, f"who leaves has not failed: {after}\n{rough.told()}"
    trial.kill(2)
    trial.write("rollout-0")
    trial.lose("rollout-0", *now)
    # A source that is stopped makes a pull last, whatever the machine.
    cluster, where = rough.cluster, (rough.namespace, "rough-worker-0", "checkpoint-engine")
    if cluster.signal_container(*where, "SIGSTOP"):
        rough.soon(lambda: _step(rough.live(), "rollout-0") == "pull", 360, "a pull that gets nothing")
        trial.lose("rollout-0", *now)
        cluster.signal_container(*where, "SIGCONT")
    trial.kill(1)
    trial.serve(1)
    trial.go_on(360, "an iteration with the rollout pod that came back")
    trial.scale(0)


def _assert_each_iteration_once(volume: Volume, folder: Path, last: int) -> None:
    volume.copy("metrics.jsonl", folder)
    volume.copy("state", folder)
    volume.let_go()
    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, last + 1))
    epoch = len((ROOT / "examples/tiny/train.jsonl").read_text().splitlines())
    with database(folder) as db:
        assert_every_prompt_is_accounted_for(db, lines, per_iteration=PROMPTS, samples=SAMPLES, epoch=epoch)


def _no_image(spec: Object) -> None:
    # Nobody listens there, which a node knows at once; a name would first be asked of DNS.
    spec["templates"]["master"]["spec"]["initContainers"][0]["image"] = "127.0.0.1:1/none:1"


def _no_files(spec: Object) -> None:
    spec["files"] = {"configMap": "missing-prompts"}


def _no_node(spec: Object) -> None:
    for template in spec["templates"].values():
        template["spec"]["nodeSelector"] = {"rljob.dev/no-node": "has-this"}


@pytest.mark.parametrize(
    ("spoil", "words"), [(_no_image, "127.0.0.1:1/none:1"), (_no_files, "missing-prompts"), (_no_node, "fits on no node")]
)
def test_a_pod_that_can_never_start_is_told_within_thirty_seconds(
    cluster: Cluster, operators: Operators, spoil: Callable[[Object], None], words: str
) -> None:
    operators.acting()
    manifest = job("broken")
    spoil(manifest["spec"])
    with cluster.namespace("stuck") as namespace:
        cluster.apply([prompts(), manifest], namespace)
        broken = Watched(cluster, namespace, "broken")
        status = broken.until(lambda s: words in json.dumps(s.get("conditions")), 270, f"{words} is told")
        assert condition(status, "Ready") == "False"
        assert _told_after(broken, words) <= 30


def _told_after(job: Watched, words: str, seconds: float = 60) -> float:
    """Seconds from a job's making to the first event with these words, by the API server's clock.

    The operator writes the status first; a condition's own time does not tell, for it stays as long as the condition is False.
    """
    end = time.monotonic() + seconds
    while not (told := [event["metadata"] for event in job.events() if words in event["message"]]):
        assert time.monotonic() < end, f"no event has the words {words!r}: {[event['message'] for event in job.events()]}"
        time.sleep(0.5)
    made, first = job.object["metadata"]["creationTimestamp"], min(each["creationTimestamp"] for each in told)
    return (datetime.fromisoformat(first) - datetime.fromisoformat(made)).total_seconds()
