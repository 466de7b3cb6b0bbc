"""The trainer's ranks on two worker nodes, pipeline stage by pipeline stage: each node has its own arena, agent and engine."""

import os
import signal
from pathlib import Path

import pytest
import yaml
from tests.e2e.jobfolder import assert_complete, metrics, processes, small_job, start, wait, watch

ITERATIONS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def trainers(folder: Path, pod: str) -> list[int]:
    """Process ids of the ranks in a pod."""
    return [p.pid for p in processes(folder) if f"/{pod}/" in p.container and "-m rljob.trainer" in p.command and "shim" not in p.command]


def test_two_nodes_make_every_version_together_and_survive_the_loss_of_a_rank(tmp_path: Path) -> None:
    file, folder = small_job(tmp_path, ITERATIONS), tmp_path / "job"
    job = yaml.safe_load(file.read_text())
    job["spec"]["trainer"] |= {"nodes": 2, "pipelineParallel": 2}
    file.write_text(yaml.safe_dump(job))
    process = start(file, folder)
    try:
        # Not before the first version is durable: an iteration counts from its beginning on, when no rank has been started yet.
        wait(lambda: any((folder / "checkpoints").glob("version-??????")), "the first version", timeout=240, every=0.1)
        before = trainers(folder, "worker-0")
        (victim,) = trainers(folder, "worker-1")
        os.kill(victim, signal.SIGKILL)
        # Its partner cannot go on alone: it ends as well, and both begin again.
        wait(lambda: not set(before) & set(trainers(folder, "worker-0")), "the end of the other rank", timeout=30, every=0.1)
        made = watch(process, folder, timeout=300)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert [path for path in made if path.exists()] == []
    assert_complete(folder, ITERATIONS)
    assert max(line["logprob_gap"] for line in metrics(folder)) < 1e-3, "engines of both nodes agree with the trainer"
    checkpoint = folder / "checkpoints" / f"version-{ITERATIONS + 1:06d}"
    assert (checkpoint / "model-00002-of-00002.safetensors").is_file(), "each node writes its own part"

    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not found["missing_keys"]
    assert model.config.num_hidden_layers == job["spec"]["model"]["source"]["scratch"]["layers"]
