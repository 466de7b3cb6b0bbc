"""The trainer's ranks on several worker nodes: each node has its own arena, agent and engine."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.e2e.jobfolder import assert_complete, live_status, metrics, processes, small_job, start, wait, watch

ITERATIONS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def trainers(folder: Path, pod: str) -> list[int]:
    """Process ids of the ranks in a pod."""
    return [p.pid for p in processes(folder) if f"/{pod}/" in p.container and "-m rljob.trainer" in p.command and "shim" not in p.command]


def agent(folder: Path, pod: str) -> int:
    """Process id of a pod's checkpoint-engine."""
    (found,) = [p.pid for p in processes(folder) if p.container.endswith(f"/{pod}/checkpoint-engine")]
    return found


@contextmanager
def running(tmp_path: Path, *, layers: int = 2, per_node: int = 1, replicas: int = 0, **trainer: int) -> Iterator[Callable[[], None]]:
    """A job on several worker nodes, after its first iteration; call what it gives to wait for a good end."""
    file, folder = small_job(tmp_path, ITERATIONS), tmp_path / "job"
    job = yaml.safe_load(file.read_text())
    job["spec"]["model"]["source"]["scratch"]["layers"] = layers
    job["spec"]["accelerator"] = {"type": "cpu", "perNode": per_node}
    job["spec"]["rollout"] |= {"replicas": replicas}
    job["spec"]["trainer"] |= trainer
    file.write_text(yaml.safe_dump(job))
    process = start(file, folder)

    def finish() -> None:
        made = watch(process, folder, timeout=900)
        assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
        assert [path for path in made if path.exists()] == []
        assert_complete(folder, ITERATIONS)
        assert max(line["logprob_gap"] for line in metrics(folder)) < 1e-3, "every node's engine agrees with the trainer"

    try:
        wait(lambda: live_status(folder).get("iteration", 0) >= 2, "the end of the first iteration", timeout=720, every=0.5)
        yield finish
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=180)


def test_three_nodes_make_every_version_together_for_a_rollout_pod_too_and_survive_the_loss_of_a_rank(tmp_path: Path) -> None:
    """A pipeline stage on each, of two interleaved chunks: no node has a whole model without the others."""
    folder = tmp_path / "job"
    with running(tmp_path, layers=6, replicas=1, nodes=3, pipelineParallel=3, virtualPipelineParallel=2) as finish:
        before = trainers(folder, "worker-0")
        (victim,) = trainers(folder, "worker-2")
        os.kill(victim, signal.SIGKILL)
        # Its partners cannot go on alone: they end as well, and all begin again.
        wait(lambda: not set(before) & set(trainers(folder, "worker-0")), "the end of the first rank", timeout=90, every=0.1)
        finish()
    checkpoint = folder / "checkpoints" / f"version-{ITERATIONS + 1:06d}"
    assert (checkpoint / "model-00003-of-00003.safetensors").is_file(), "each node writes its own part"
    log = (folder / "logs" / "rollout-0.checkpoint-engine.log").read_text()
    assert f"attested version {ITERATIONS}" in log

    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not found["missing_keys"]
    assert model.config.num_hidden_layers == 6


def test_copies_on_two_nodes_of_two_context_parallel_ranks_survive_the_loss_of_an_agent_and_of_rank_0(tmp_path: Path) -> None:
    """Data parallel: each node has all weights at once."""
    folder = tmp_path / "job"
    with running(tmp_path, nodes=2, per_node=2, contextParallel=2) as finish:
        os.kill(agent(folder, "worker-1"), signal.SIGKILL)
        wait(lambda: live_status(folder).get("iteration", 0) >= 3, "the end of another iteration", timeout=360, every=0.2)
        before = trainers(folder, "worker-1")
        first = min(trainers(folder, "worker-0"))
        os.kill(first, signal.SIGKILL)
        wait(lambda: not set(before) & set(trainers(folder, "worker-1")), "the end of the other ranks", timeout=90, every=0.1)
        finish()
