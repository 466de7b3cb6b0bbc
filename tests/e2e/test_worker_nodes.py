"""The trainer's ranks on two worker nodes: each node has its own arena, agent and engine."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.e2e.jobfolder import EXAMPLE, assert_complete, live_status, metrics, processes, small_job, start, wait, watch

ITERATIONS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def trainers(folder: Path, pod: str) -> list[int]:
    """Process ids of the ranks in a pod."""
    return [p.pid for p in processes(folder) if f"/{pod}/" in p.container and "-m rljob.trainer" in p.command and "shim" not in p.command]


def agent(folder: Path, pod: str) -> int:
    """Process id of a pod's checkpoint-engine."""
    (found,) = [p.pid for p in processes(folder) if p.container.endswith(f"/{pod}/checkpoint-engine")]
    return found


@contextmanager
def running(tmp_path: Path, **trainer: int) -> Iterator[Callable[[], None]]:
    """A job on two worker nodes, after its first iteration; call what it gives to wait for a good end."""
    file, folder = small_job(tmp_path, ITERATIONS), tmp_path / "job"
    job = yaml.safe_load(file.read_text())
    job["spec"]["trainer"] |= {"nodes": 2, **trainer}
    file.write_text(yaml.safe_dump(job))
    process = start(file, folder)

    def finish() -> None:
        made = watch(process, folder, timeout=300)
        assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
        assert [path for path in made if path.exists()] == []
        assert_complete(folder, ITERATIONS)
        assert max(line["logprob_gap"] for line in metrics(folder)) < 1e-3, "engines of both nodes agree with the trainer"

    try:
        wait(lambda: live_status(folder).get("iteration", 0) >= 2, "the end of the first iteration", timeout=240, every=0.5)
        yield finish
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def test_two_nodes_make_every_version_together_and_survive_the_loss_of_a_rank(tmp_path: Path) -> None:
    """A pipeline stage on each: neither node has a whole model without the other."""
    folder = tmp_path / "job"
    with running(tmp_path, pipelineParallel=2) as finish:
        before = trainers(folder, "worker-0")
        (victim,) = trainers(folder, "worker-1")
        os.kill(victim, signal.SIGKILL)
        # Its partner cannot go on alone: it ends as well, and both begin again.
        wait(lambda: not set(before) & set(trainers(folder, "worker-0")), "the end of the other rank", timeout=30, every=0.1)
        finish()
    checkpoint = folder / "checkpoints" / f"version-{ITERATIONS + 1:06d}"
    assert (checkpoint / "model-00002-of-00002.safetensors").is_file(), "each node writes its own part"

    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not found["missing_keys"]
    assert (
        model.config.num_hidden_layers
        == yaml.safe_load((EXAMPLE / "rljob.yaml").read_text())["spec"]["model"]["source"]["scratch"]["layers"]
    )


def test_two_copies_on_two_nodes_survive_the_loss_of_an_agent_and_of_rank_0(tmp_path: Path) -> None:
    """Data parallel: each node has all weights at once."""
    folder = tmp_path / "job"
    with running(tmp_path) as finish:
        os.kill(agent(folder, "worker-1"), signal.SIGKILL)
        wait(lambda: live_status(folder).get("iteration", 0) >= 3, "the end of another iteration", timeout=120, every=0.2)
        before = trainers(folder, "worker-1")
        (first,) = trainers(folder, "worker-0")
        os.kill(first, signal.SIGKILL)
        wait(lambda: not set(before) & set(trainers(folder, "worker-1")), "the end of the other rank", timeout=30, every=0.1)
        finish()
