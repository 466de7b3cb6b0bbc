"""Every process of a real job is killed, at several steps of the cycle; the job ends as if nothing had happened."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.e2e.jobfolder import ROOT, Process, database, kill, metrics, processes, run, shared_memory, start, status, wait

ITERATIONS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Kill:
    """Who dies, and when."""

    iteration: int
    steps: tuple[str, ...]
    """Any of these steps of the worker node."""
    victim: str

    def due(self, folder: Path) -> bool:
        now = status(folder)
        nodes = {n["name"]: n for n in now.get("nodes", [])}
        later = now.get("iteration", 0) > self.iteration or now.get("phase") in ("Succeeded", "Failed")
        assert not later, f"iteration {self.iteration} was over before {self.victim} could be killed at {self.steps}"
        return now.get("iteration") == self.iteration and nodes.get("worker-0", {}).get("step") in self.steps


SCHEDULE = [
    Kill(1, ("train", "rollout", "start-engine"), "reward"),
    Kill(2, ("rollout",), "engine"),
    Kill(2, ("train",), "trainer"),
    Kill(3, ("start-engine", "rollout"), "agent"),
    Kill(4, ("rollout",), "master"),
    Kill(5, ("rollout",), "vllm shim"),
    Kill(5, ("train",), "megatron shim"),
    Kill(6, ("train",), "master"),
    Kill(7, ("start-engine",), "zygote"),
    Kill(8, ("train",), "agent"),
]


def _is(container: str, words: str = "") -> Callable[[Process], bool]:
    return lambda p: p.container.endswith(f"/{container}") and words in p.command


VICTIMS: dict[str, Callable[[Process], bool]] = {
    "master": _is("master/master"),
    "reward": _is("reward/reward"),
    "agent": _is("worker-0/checkpoint-engine"),
    "megatron shim": _is("worker-0/megatron", "checkpoint_engine.shim"),
    "vllm shim": _is("worker-0/vllm", "checkpoint_engine.shim"),
    "trainer": _is("worker-0/megatron", "rljob.trainer"),
}


def _victims(folder: Path, name: str) -> list[Process]:
    alive = processes(folder)
    if name in VICTIMS:
        return [p for p in alive if VICTIMS[name](p)]
    vllm = [p for p in alive if p.container.endswith("/worker-0/vllm")]
    shims = {p.pid for p in vllm if "checkpoint_engine.shim" in p.command}
    zygotes = [p for p in vllm if p.parent in shims]
    if name == "zygote":
        return zygotes
    return [p for p in vllm if p.parent in {z.pid for z in zygotes}]


def _small_job(folder: Path, iterations: int) -> Path:
    example = ROOT / "examples" / "tiny"
    job = yaml.safe_load((example / "rljob.yaml").read_text())
    spec = job["spec"]
    job["metadata"]["name"] = "kills"
    spec["iterations"] = iterations
    spec["warmStart"]["steps"] = 20
    spec["algorithm"] |= {"promptsPerIteration": 8, "samplesPerPrompt": 8}
    spec["evaluation"]["data"]["limit"] = 32
    spec["backoffLimit"] = 6
    for source in (spec["data"]["train"], spec["evaluation"]["data"], spec["warmStart"].get("data", {})):
        if "path" in source:
            source["path"] = str(example / source["path"])
    file = folder / "rljob.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def _assert_complete(folder: Path, iterations: int) -> None:
    """As many iterations as asked for, every prompt drawn once and consumed once, versions without a gap."""
    assert [line["iteration"] for line in metrics(folder)] == list(range(1, iterations + 1))
    assert [line["version"] for line in metrics(folder)] == list(range(2, iterations + 2))  # version 1 is the warm start
    with database(folder) as db:
        consumed = Counter(ordinal for (ordinal,) in db.execute("select ordinal from groups where consumed is not null"))
        drawn = [ordinal for (ordinal,) in db.execute("select ordinal from groups order by ordinal")]
    assert set(consumed.values()) == {1}
    assert drawn == list(range(drawn[0], drawn[0] + len(drawn)))
    assert processes(folder) == []


def _strike(planned: Kill, folder: Path, supervisor: subprocess.Popen[bytes]) -> None:
    """Wait for the moment and kill."""
    wait(lambda: supervisor.poll() is not None or planned.due(folder), f"{planned}")
    assert supervisor.poll() is None, folder.with_suffix(".out").read_text()[-3000:]
    wait(lambda: bool(_victims(folder, planned.victim)), f"a living {planned.victim}", timeout=60)
    assert kill(_victims(folder, planned.victim)), planned


def test_every_process_may_be_killed(tmp_path: Path) -> None:
    before = shared_memory()
    folder = tmp_path / "job"
    supervisor = start(_small_job(tmp_path, ITERATIONS), folder)
    try:
        for planned in SCHEDULE:
            _strike(planned, folder, supervisor)
        assert supervisor.wait(timeout=400) == 0, folder.with_suffix(".out").read_text()[-3000:]
    finally:
        if supervisor.poll() is None:
            supervisor.terminate()
            supervisor.wait(timeout=60)
    _assert_complete(folder, ITERATIONS)
    assert shared_memory() <= before


@pytest.mark.parametrize(("iteration", "steps"), [(2, ("rollout",)), (1, ("train",))])
def test_a_killed_supervisor_leaves_nothing_behind_and_the_job_goes_on(tmp_path: Path, iteration: int, steps: tuple[str, ...]) -> None:
    before = shared_memory()
    folder = tmp_path / "job"
    job = _small_job(tmp_path, 3)
    supervisor = start(job, folder)
    planned = Kill(iteration, steps, "supervisor")
    try:
        wait(lambda: supervisor.poll() is not None or planned.due(folder), f"{planned}")
    finally:
        os.kill(supervisor.pid, signal.SIGKILL)
        supervisor.wait()
    wait(lambda: processes(folder) == [], "the end of every process", timeout=30)
    assert shared_memory() <= before
    done = run(job, folder, "--resume")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    _assert_complete(folder, 3)
