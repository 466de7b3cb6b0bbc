"""Every process of a real job is killed, at several steps of the cycle; the job ends as if nothing had happened."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.e2e.jobfolder import ROOT, Process, database, kill, live_status, metrics, processes, start, temporary, wait, watch

ITERATIONS = 20
"""Enough that a moment which passed unseen comes again."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Kill:
    """Who dies, and when: at any of these steps of the worker node."""

    victim: str
    steps: tuple[str, ...]

    def due(self, folder: Path) -> bool:
        """Is this the moment?"""
        now = live_status(folder)
        return now.get("iteration", 0) > 0 and any(node["step"] in self.steps for node in now.get("nodes", []))


SCHEDULE = [
    Kill("trainer", ("train",)),
    Kill("reward", ("rollout",)),
    Kill("engine", ("rollout",)),
    Kill("trainer", ("train",)),
    Kill("agent", ("start-engine",)),
    Kill("master", ("rollout",)),
    Kill("vllm shim", ("rollout",)),
    Kill("megatron shim", ("train",)),
    Kill("master", ("train",)),
    Kill("zygote", ("start-engine", "rollout")),
    Kill("agent", ("train",)),
    Kill("engine", ("start-engine", "load-engine", "attest")),
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
    if name == "supervisor":
        pid = json.loads((folder / "run" / "current.json").read_text())["pid"]
        return [Process(pid, 0, "", "rljob run")]
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
    spec["warmStart"]["steps"] = 60
    spec["algorithm"] |= {"promptsPerIteration": 24, "samplesPerPrompt": 16}
    spec["evaluation"]["data"]["limit"] = 32
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


def _strike(planned: Kill, folder: Path, supervisor: subprocess.Popen[bytes]) -> set[Path]:
    """Wait for the moment and kill; what the run had made outside the job folder by then."""
    wait(lambda: supervisor.poll() is not None or planned.due(folder), f"{planned}")
    assert supervisor.poll() is None, folder.with_suffix(".out").read_text()[-3000:]
    wait(lambda: bool(_victims(folder, planned.victim)), f"a living {planned.victim}", timeout=60)
    assert kill(_victims(folder, planned.victim)), planned
    return temporary(folder)


def test_every_process_may_be_killed(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    made: set[Path] = set()
    supervisor = start(_small_job(tmp_path, ITERATIONS), folder)
    try:
        for planned in SCHEDULE:
            made |= _strike(planned, folder, supervisor)
        made |= watch(supervisor, folder, timeout=500)
    finally:
        if supervisor.poll() is None:
            supervisor.terminate()
            supervisor.wait(timeout=60)
    assert supervisor.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    _assert_complete(folder, ITERATIONS)
    assert made
    assert [path for path in made if path.exists()] == []


@pytest.mark.parametrize("step", ["rollout", "train"])
def test_a_killed_supervisor_leaves_nothing_behind_and_the_job_goes_on(tmp_path: Path, step: str) -> None:
    folder = tmp_path / "job"
    job = _small_job(tmp_path, 3)
    supervisor = start(job, folder)
    try:
        made = _strike(Kill("supervisor", (step,)), folder, supervisor)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait(lambda: processes(folder) == [] and not any(path.exists() for path in made), "the end of everything", timeout=30)
    resumed = start(job, folder, "--resume")
    watch(resumed, folder, timeout=300)
    assert resumed.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    _assert_complete(folder, 3)
