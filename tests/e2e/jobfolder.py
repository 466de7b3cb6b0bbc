"""Looks at a running or finished job from outside: its folder, its status, its processes."""

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RLJOB = Path(sys.executable).parent / "rljob"
EXAMPLE = ROOT / "examples" / "tiny"
PROMPTS, SAMPLES = 24, 16
"""Prompts an iteration of `small_job`, answers to each."""


@dataclass(frozen=True)
class Process:
    """One process of a container."""

    pid: int
    parent: int
    container: str
    """`<run id>/<pod>/<container>`."""
    command: str


def processes(folder: Path) -> list[Process]:
    """Every living process that carries the marker of a run on this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = dict(v.split("=", 1) for v in (entry / "environ").read_text(errors="replace").split("\0") if "=" in v)
            if environment.get("RLJOB_JOB", "").startswith(f"{folder}/") and "RLJOB_CONTAINER" in environment:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if stat[0] != "Z":
                    command = (entry / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                    found.append(Process(int(entry.name), int(stat[1]), environment["RLJOB_CONTAINER"], command))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def start(job: Path, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """`rljob run` in the background; output goes to `<folder>.out`."""
    with folder.with_suffix(".out").open("ab") as out:
        process = subprocess.Popen(
            [str(RLJOB), "run", str(job), "--workdir", str(folder), *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )
    _started.append(process)
    return process


_started: list[subprocess.Popen[bytes]] = []


def end_all() -> None:
    """End what `start` has started and a test has not seen the end of; its guardian ends the rest."""
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The iteration records."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict[str, Any]:
    """Newest status, {} before the first."""
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return found


_client = httpx.Client(timeout=5, trust_env=False, verify=False)
"""One for all looks: a new one for each would take as much of the processors as a process of the job."""


def live_status(folder: Path) -> dict[str, Any]:
    """What the master says now, {} while there is none."""
    try:
        current = json.loads((folder / "run" / "current.json").read_text())
        answer: dict[str, Any] = _client.get(f"{current['master']}/v1/status").json()
    except (FileNotFoundError, httpx.TransportError):
        return {}
    return answer


def temporary(folder: Path) -> set[Path]:
    """What the run that uses the folder has made outside of it: sockets and shared memory."""
    try:
        current = json.loads((folder / "run" / "current.json").read_text())
    except FileNotFoundError:
        return set()
    return {Path(name) for name in current["temporary"]}


def watch(process: subprocess.Popen[bytes], folder: Path, timeout: float) -> set[Path]:
    """Wait for the end of `rljob run`; everything it made outside the job folder meanwhile."""
    seen: set[Path] = set()

    def ended() -> bool:
        seen.update(temporary(folder))
        return process.poll() is not None

    wait(ended, "the end of the job", timeout, every=0.2)
    return seen


def database(folder: Path) -> sqlite3.Connection:
    """The master's state, read only."""
    return sqlite3.connect(f"file:{folder}/state/master.sqlite?mode=ro", uri=True)


def wait(condition: Callable[[], bool], what: str, timeout: float = 720, every: float = 0.03) -> None:
    """Poll the outside world until `condition` holds.

    Raises:
        TimeoutError: it did not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout} s")
        time.sleep(every)


def small_job(folder: Path, iterations: int) -> Path:
    """A job file in a folder: the tiny example with less of everything but iterations."""
    job = yaml.safe_load((EXAMPLE / "rljob.yaml").read_text())
    spec = job["spec"]
    job["metadata"]["name"] = "small"
    spec["iterations"] = iterations
    spec["warmStart"]["steps"] = 60
    spec["algorithm"] |= {"promptsPerIteration": PROMPTS, "samplesPerPrompt": SAMPLES}
    spec["evaluation"]["data"]["limit"] = 32
    for source in (spec["data"]["train"], spec["evaluation"]["data"], spec["warmStart"].get("data", {})):
        if "path" in source:
            source["path"] = str(EXAMPLE / source["path"])
    file = folder / "rljob.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def assert_complete(folder: Path, iterations: int) -> None:
    """A `small_job` came to its end: every iteration, no prompt lost or doubled, versions without a gap, no process left."""
    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, iterations + 1))
    assert [line["version"] for line in lines] == list(range(2, iterations + 2))  # version 1 is the warm start
    epoch = len((EXAMPLE / "train.jsonl").read_text().splitlines())
    with database(folder) as db:
        assert_every_prompt_is_accounted_for(db, lines, per_iteration=PROMPTS, samples=SAMPLES, epoch=epoch)
        assert db.execute("SELECT count(*) FROM groups WHERE consumed IS NULL").fetchone() == (0,)
    assert processes(folder) == []


def assert_every_prompt_is_accounted_for(
    db: sqlite3.Connection, lines: Sequence[Mapping[str, Any]], *, per_iteration: int, samples: int, epoch: int
) -> None:
    """What was drawn is trained on once or still in the buffer, as state and metrics say; `test_jobfolder.py` shows what this finds.

    Args:
        lines: of metrics.jsonl.
        samples: answers of each prompt.
        epoch: prompts of the training set, which uniform sampling walks through without repetition.
    """
    groups: list[tuple[int, str, int, int | None]] = db.execute(
        "SELECT ordinal, prompt, iteration, consumed FROM groups ORDER BY ordinal"
    ).fetchall()
    assert [ordinal for ordinal, *_ in groups] == list(range(len(groups)))
    for start in range(0, len(groups), epoch):
        prompts = [prompt for _, prompt, *_ in groups[start : start + epoch]]
        assert len(set(prompts)) == len(prompts), "a prompt was drawn twice within an epoch"

    made = {line["version"]: line for line in lines}
    consumed = Counter(version for *_, version in groups if version is not None)
    assert dict(consumed) == {version: line["groups"] for version, line in made.items()}
    for version, line in made.items():
        # Each iteration fills up to its number of prompts what the ones before left in the buffer.
        drawn = sum(iteration <= line["iteration"] for _, _, iteration, _ in groups)
        before = sum(count for v, count in consumed.items() if v < version)
        assert drawn - before == per_iteration, f"iteration {line['iteration']} worked on {drawn - before} prompts"
    assert max(iteration for _, _, iteration, _ in groups) == max(line["iteration"] for line in lines)

    answers = dict(db.execute("SELECT group_id, count(*) FROM trajectories GROUP BY group_id"))
    assert answers == {ordinal: samples for ordinal, *_ in groups}
    judged = db.execute(
        "SELECT consumed, count(reward), avg(reward), avg(is_right), avg(length) FROM trajectories JOIN groups ON ordinal = group_id "
        "WHERE consumed IS NOT NULL AND finish IS NOT NULL GROUP BY consumed"
    ).fetchall()
    keys = ("version", "answers", "reward", "success_rate", "response_length")
    for found, line in zip(judged, (made[version] for version in sorted(made)), strict=True):
        assert found == pytest.approx(tuple(line[key] for key in keys))
        assert line["answers"] == line["groups"] * samples
    # Nothing half done stays: no task in progress, no piece of an answer that was trained on; the sampler knows each answer once.
    assert db.execute("SELECT count(*) FROM batches").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM pieces JOIN groups ON ordinal = group_id WHERE consumed IS NOT NULL").fetchone() == (0,)
    assert db.execute("SELECT sum(samples) FROM statistics").fetchone() == (samples * sum(consumed.values()),)
