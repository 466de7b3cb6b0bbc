"""Looks at a running or finished job from outside: its folder, its status, its processes."""

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
RLJOB = Path(sys.executable).parent / "rljob"


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
        return subprocess.Popen(
            [str(RLJOB), "run", str(job), "--workdir", str(folder), *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )


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


def live_status(folder: Path) -> dict[str, Any]:
    """What the master says now, {} while there is none."""
    try:
        current = json.loads((folder / "run" / "current.json").read_text())
        answer: dict[str, Any] = httpx.get(f"{current['master']}/v1/status", timeout=5, trust_env=False, verify=False).json()
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


def wait(condition: Callable[[], bool], what: str, timeout: float = 240, every: float = 0.03) -> None:
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
    example = ROOT / "examples" / "tiny"
    job = yaml.safe_load((example / "rljob.yaml").read_text())
    spec = job["spec"]
    job["metadata"]["name"] = "small"
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


def assert_complete(folder: Path, iterations: int) -> None:
    """As many iterations as asked for, every prompt drawn once and consumed once, versions without a gap."""
    assert [line["iteration"] for line in metrics(folder)] == list(range(1, iterations + 1))
    assert [line["version"] for line in metrics(folder)] == list(range(2, iterations + 2))  # version 1 is the warm start
    with database(folder) as db:
        consumed = Counter(ordinal for (ordinal,) in db.execute("select ordinal from groups where consumed is not null"))
        drawn = [ordinal for (ordinal,) in db.execute("select ordinal from groups order by ordinal")]
    assert set(consumed.values()) == {1}
    assert drawn == list(range(drawn[0], drawn[0] + len(drawn)))
    assert processes(folder) == []
