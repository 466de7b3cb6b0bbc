"""What a change of the spec reaches: the objects whose hash changes are the ones that the operator touches."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.manifests.jobs import ROOT, nvidia, objects, tiny

from rljob.api import RLJob
from rljob.api.load import all_fields
from rljob.manifests import Settings, jobfile
from rljob.manifests.jobfile import LATER, LEFT_OUT, at, job_files
from rljob.manifests.settings import Images
from rljob.manifests.types import ANNOTATION_HASH, Manifest

CONFIG = "ConfigMap/tiny-config"


def hashes(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    return {f"{m['kind']}/{m['metadata']['name']}": m["metadata"]["annotations"][ANNOTATION_HASH] for m in manifests}


def changed(before: tuple[Manifest, ...], after: tuple[Manifest, ...]) -> set[str]:
    old, new = hashes(before), hashes(after)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


@pytest.mark.parametrize(
    ("field", "reached"),
    [
        ("spec.iterations=11", {CONFIG, "Pod/tiny-master"}),
        ("spec.evaluation.every=2", {CONFIG, "Pod/tiny-master"}),
        ("spec.backoffLimit=1", {CONFIG, "Pod/tiny-master"}),
        ("spec.checkpoint.keepEvery=2", {CONFIG, "Pod/tiny-master"}),
        ("spec.switch.deadlineSeconds=60", {CONFIG, "Pod/tiny-master", "Pod/tiny-worker-0"}),
        ("spec.reward.replicas=2", {CONFIG, "Pod/tiny-master", "Deployment/tiny-reward"}),
        ("spec.reward.timeoutSeconds=9", {CONFIG, "Deployment/tiny-reward"}),
        ("spec.rollout.replicas=1", {"Pod/tiny-rollout-0", "ServiceAccount/tiny-rollout"}),
        ("spec.suspend=true", set()),
        ("spec.activeDeadlineSeconds=60", set()),
        ("spec.ttlSecondsAfterFinished=5", set()),
        ("spec.sandbox.replicas=2", set()),
        ("spec.accelerator.sharing=single", set()),
        ("metadata.annotations.note=x", set()),
        ("spec.credentials=hub", {"Pod/tiny-master"}),
        ("spec.files={claim: data}", {"Pod/tiny-master"}),
        ("spec.templates.reward.spec.priorityClassName=low", {"Deployment/tiny-reward"}),
        ("spec.templates.worker.spec.priorityClassName=low", {"Pod/tiny-worker-0"}),
        ("spec.queueName=research", {"Pod/tiny-master", "Pod/tiny-worker-0"}),
    ],
)
def test_a_change_reaches_only_what_it_must(field: str, reached: set[str]) -> None:
    assert changed(objects(tiny()), objects(tiny(field))) == reached


@pytest.mark.parametrize(
    ("field", "reached"),
    [
        ("spec.sandbox.replicas=2", {"Deployment/tiny-sandbox"}),
        ("spec.sandbox.slots=8", {"Deployment/tiny-sandbox"}),
        ("spec.sandbox.memoryPerRun=2Gi", {"Deployment/tiny-sandbox", "Deployment/tiny-reward", CONFIG, "Pod/tiny-master"}),
        ("spec.templates.sandbox.spec.runtimeClassName=gvisor", {"Deployment/tiny-sandbox"}),
        ("spec.reward.timeoutSeconds=9", {CONFIG, "Deployment/tiny-reward"}),
        ("spec.iterations=11", {CONFIG, "Pod/tiny-master"}),
    ],
)
def test_with_a_sandbox_a_change_reaches_only_what_it_must(field: str, reached: set[str]) -> None:
    enabled = "spec.sandbox.enabled=true"
    assert changed(objects(tiny(enabled)), objects(tiny(enabled, field))) == reached


def test_a_sandbox_that_comes_is_made_known_to_the_reward_service_and_to_the_preparation() -> None:
    kinds = ("ServiceAccount", "Service", "NetworkPolicy", "Deployment", "PodDisruptionBudget")
    assert changed(objects(tiny()), objects(tiny("spec.sandbox.enabled=true"))) == {
        *(f"{kind}/tiny-sandbox" for kind in kinds),
        "Deployment/tiny-reward",
        "NetworkPolicy/tiny-reward",
        CONFIG,
        "Pod/tiny-master",
    }


def test_more_rollout_pods_leave_those_that_run_alone() -> None:
    assert changed(objects(nvidia("spec.rollout.replicas=2")), objects(nvidia("spec.rollout.replicas=4"))) == {
        "Pod/math-7b-rollout-2",
        "Pod/math-7b-rollout-3",
    }


def test_a_new_image_reaches_the_pods_that_run_it() -> None:
    after = objects(tiny(), Settings(images=Images(rollout="rljob/rollout:2")))
    assert changed(objects(tiny()), after) == {"Pod/tiny-worker-0"}


def test_the_same_job_renders_the_same() -> None:
    assert objects(tiny()) == objects(tiny())


AUDIENCES = {"master": ("master", "prepare"), "node": ("checkpoint_engine", "trainer", "rollout"), "reward": ("reward",)}


def attributes(folder: Path) -> set[str]:
    """Every dotted chain of attributes below a folder, such as `job.spec.rollout`, and all its tails."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            here: ast.AST = node
            while isinstance(here, ast.Attribute):
                names.insert(0, here.attr)
                here = here.value
            if isinstance(here, ast.Name):
                names.insert(0, here.id)
            found |= {".".join(names[i:j]) for i in range(len(names)) for j in range(i + 2, len(names) + 1)}
    return found


def snake(path: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in path)


@pytest.mark.parametrize("audience", LEFT_OUT)
def test_no_process_reads_a_field_that_its_file_leaves_out(audience: str) -> None:
    chains = set().union(*(attributes(ROOT / "runtime" / "rljob" / package) for package in AUDIENCES[audience]))
    read = {path for path in LEFT_OUT[audience] if (snake(path) if "." in path else f"spec.{snake(path)}") in chains}
    assert read == set(), "take them out of rljob.manifests.jobfile.LEFT_OUT"


FIRST = frozenset((Path(__file__).parent / "first-fields.txt").read_text().split())
"""Every field of the spec as it was when job files first had readers of another release."""


def paths(value: object, above: str = "spec") -> Iterator[str]:
    """Paths of all fields in a part of a job file."""
    for name, below in value.items() if isinstance(value, dict) else ():
        yield f"{above}.{name}"
        yield from paths(below, f"{above}.{name}")


def test_what_a_release_adds_to_the_spec_changes_no_file_of_a_job_that_does_not_ask_for_it() -> None:
    """Else a new operator would make its pods anew, and images of before would refuse their file."""
    spec = tiny().model_dump(mode="json", by_alias=True)["spec"]
    assert {path: at(spec, path) for path in LATER} == LATER, "a default has changed: take the field out of rljob.manifests.jobfile.LATER"
    kept = [tuple(f"spec.{path}." for path in (*left_out, *LATER)) for left_out in LEFT_OUT.values()]
    fields = {path for _, path in all_fields(RLJob) if path.startswith("spec.")}
    new = {path for path in fields - FIRST if not all(f"{path}.".startswith(left_out) for left_out in kept)}
    assert new == set(), "put them into rljob.manifests.jobfile.LATER, with their default"
    for _, text in job_files(tiny()).values():
        assert set(paths(json.loads(text)["spec"])) <= FIRST


def test_a_field_of_a_topic_that_a_job_does_not_have_is_left_out_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files = job_files(tiny())
    monkeypatch.setattr(jobfile, "LATER", {**LATER, "rewardModel.later": None})
    assert job_files(tiny()) == files


def test_a_field_that_came_later_reaches_its_readers_as_it_is_asked_for() -> None:
    files = job_files(tiny("spec.sandbox.memoryPerRun=2Gi"))
    read = {audience: RLJob.model_validate_json(text).spec.sandbox.memory_per_run for audience, (_, text) in files.items()}
    assert read == {"master": "2Gi", "node": "1Gi", "reward": "2Gi"}, "nodes read nothing of the sandbox"


def test_whoever_reads_options_of_reward_knows_what_the_sandbox_gives_a_program() -> None:
    job = tiny("spec.reward={verifier: code, options: {memory_mb: 2048}}", "spec.sandbox={memoryPerRun: 2Gi}")
    for _, text in job_files(job).values():
        assert RLJob.model_validate_json(text)


def test_preparation_knows_whether_there_is_a_sandbox() -> None:
    """Records may name the verifier `code` where the job does not."""
    files = job_files(tiny("spec.sandbox.enabled=true"))
    assert RLJob.model_validate_json(files["master"][1]).spec.needs_sandbox
