"""A rollout pod with every real part: it comes and goes while the job runs, pulls each version, proves it, answers, and may be killed."""

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from tests.e2e.jobfolder import (
    EXAMPLE,
    PROMPTS,
    RLJOB,
    assert_every_prompt_is_accounted_for,
    database,
    live_status,
    metrics,
    processes,
    small_job,
    start,
    wait,
)

from rljob.rollout.client import parse_metrics

ITERATIONS = 8
SAMPLES = 96
"""Answers to a prompt: enough that an iteration takes longer than a rollout pod's way to its first answer."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def scale(folder: Path, replicas: int) -> None:
    """`rljob scale`, as a person types it."""
    subprocess.run([RLJOB, "scale", folder, f"--replicas={replicas}"], check=True, timeout=60)


def members(folder: Path, container: str) -> list[int]:
    """Processes of a container of the rollout pod."""
    return [p.pid for p in processes(folder) if p.container.endswith(f"rollout-0/{container}")]


def generated(folder: Path) -> int:
    """Tokens that the rollout pod's engine says that it has generated; 0 while there is none."""
    for pid in members(folder, "vllm")[:1]:
        try:
            variables = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
            address = next(v.partition("=")[2] for v in variables if v.startswith("RLJOB_LISTEN_ENGINE="))
            return parse_metrics(httpx.get(f"http://{address}/metrics", timeout=5, trust_env=False, verify=False).text).generation_tokens
        except (OSError, StopIteration, httpx.HTTPError):
            break
    return 0


@pytest.mark.parametrize("transport", ["http", "mooncake"])
def test_a_rollout_pod_answers_with_every_version_and_its_death_costs_no_prompt(tmp_path: Path, transport: str) -> None:
    file, folder = small_job(tmp_path, ITERATIONS), tmp_path / "job"
    job = yaml.safe_load(file.read_text())
    job["spec"]["algorithm"]["samplesPerPrompt"] = SAMPLES
    job["spec"]["rollout"] |= {"weights": {"transport": transport}}
    file.write_text(yaml.safe_dump(job))
    process = start(file, folder)
    served: set[int] = set()
    killed = left = False

    def ended() -> bool:
        nonlocal killed, left
        for node in live_status(folder).get("nodes", []):
            if node["name"] == "rollout-0" and node.get("version") is not None and generated(folder):
                served.add(node["version"])
        if served and not killed:
            for pid in members(folder, "checkpoint-engine"):
                os.kill(pid, signal.SIGKILL)
                killed = True
        if killed and not left and len(served) > 1 and generated(folder):
            scale(folder, 0)
            left = True
        return process.poll() is not None

    try:
        wait(lambda: bool(live_status(folder)), "the master", timeout=360)
        scale(folder, 1)
        wait(ended, "the end of the job", timeout=900)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=180)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert processes(folder) == []
    assert killed
    assert len(served) > 1, "it answered before it was killed and after"
    assert left
    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert max(line["logprob_gap"] for line in lines) < 1e-3, "the trainer agrees with the tokens of both engines"
    log = (folder / "logs" / "rollout-0.checkpoint-engine.log").read_text()
    assert "pull: " in log
    assert "attested version" in log
    epoch = len((EXAMPLE / "train.jsonl").read_text().splitlines())
    with database(folder) as db:
        assert_every_prompt_is_accounted_for(db, lines, per_iteration=PROMPTS, samples=SAMPLES, epoch=epoch)
