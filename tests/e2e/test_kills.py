"""Every process of a real job is killed, at every step of the cycle; the job ends as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.jobfolder import Process, assert_complete, live_status, processes, small_job, start, temporary, wait, watch

ITERATIONS = 26
"""Enough that a moment which passed unseen comes again."""

SETTLED = 0.1
"""Seconds in which everybody has heard what there is to hear of processes that are stopped."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

BEGINS = {
    "stop-engine": "wanted: train,",
    "onload": r"gate: .*owner trainer",
    "export": r"(train|start-engine): .*version",
    "offload": "export: ",
    "checkpoint": r"checkpoint: 0\.0",
    "register": "attest: ",
    "gate": r"(stop-engine: |start-engine: .*done)",
}
"""Steps of a few milliseconds, and the line of the node agent's log with which they begin. Longer ones are seen in the status."""

HELD = {"export": "trainer"}
"""Steps of `BEGINS` that may be over before a signal has come, and whose work they are. From that line on it goes in slow motion, until the
status says that the node is at this step."""


@dataclass(frozen=True)
class Kill:
    """Who dies, and at which step of the worker node."""

    victim: str
    step: str


SCHEDULE = [
    Kill("trainer", "train"),
    Kill("agent", "checkpoint"),
    Kill("reward", "rollout"),
    Kill("reward", "train"),
    Kill("engine", "stop-engine"),
    Kill("trainer", "onload"),
    Kill("trainer", "checkpoint"),
    Kill("trainer", "export"),
    Kill("master", "register"),
    Kill("trainer", "offload"),
    Kill("agent", "start-engine"),
    Kill("agent", "load-engine"),
    Kill("engine", "rollout"),
    Kill("agent", "stop-engine"),
    Kill("agent", "onload"),
    Kill("agent", "export"),
    Kill("agent", "register"),
    Kill("agent", "offload"),
    Kill("engine", "load-engine"),
    Kill("master", "rollout"),
    Kill("vllm shim", "load-engine"),
    Kill("megatron shim", "train"),
    Kill("master", "export"),
    Kill("megatron shim", "attest"),
    Kill("agent", "gate"),
    Kill("vllm shim", "rollout"),
    Kill("master", "train"),
    Kill("zygote", "start-engine"),
    Kill("engine", "attest"),
    Kill("agent", "train"),
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


@contextmanager
def _aimed(folder: Path, name: str | None) -> Iterator[list[int]]:
    """Handles of those of this name that live now: what is signalled through them is never another process."""
    with ExitStack() as stack:
        handles = []
        for process in _victims(folder, name) if name is not None else []:
            try:
                handle = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, handle)
            handles.append(handle)
        yield handles


def _signal(handles: list[int], number: signal.Signals) -> bool:
    """False if nobody lived any more."""
    hit = False
    for handle in handles:
        try:
            signal.pidfd_send_signal(handle, number)
            hit = True
        except ProcessLookupError:
            continue
    return hit


@contextmanager
def _stopped(handles: list[int]) -> Iterator[bool]:
    """They do nothing, if anybody lives; afterwards those who still live go on."""
    try:
        yield _signal(handles, signal.SIGSTOP)
    finally:
        _signal(handles, signal.SIGCONT)


class Moment:
    """Tells when a step goes on, from what has become known since this object was made."""

    def __init__(self, folder: Path, step: str) -> None:
        self._folder, self._step = folder, step
        self._log = folder / "logs" / "worker-0.checkpoint-engine.log"
        self._read = self._log.stat().st_size if self._log.exists() else 0

    def now(self) -> bool:
        """Is this it?"""
        return self._begins(self._new_lines()) if self._step in BEGINS else self._in_status()

    def comes(self, workers: list[int]) -> bool:
        """Whether a step of `HELD` that is about to begin is met: it goes on then, and cannot end before `workers`, who are stopped, go on.

        Until the status says so they get a millisecond at a time, and in between the agent and the master the time to say it.
        """
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            told = time.monotonic() + SETTLED
            while time.monotonic() < told:
                lines = self._new_lines()
                if lines and not self._begins(lines):
                    return False  # it is over
                time.sleep(0.01)
            if self._in_status():
                return True
            _signal(workers, signal.SIGCONT)
            time.sleep(0.001)
            _signal(workers, signal.SIGSTOP)
        return False

    def _in_status(self) -> bool:
        return any(node["step"] == self._step for node in live_status(self._folder).get("nodes", []))

    def _begins(self, lines: list[str]) -> bool:
        # Only the newest line says what goes on now.
        return bool(lines) and re.search(f" INFO {BEGINS[self._step]}", lines[-1]) is not None

    def _new_lines(self) -> list[str]:
        if not self._log.exists() or self._log.stat().st_size == self._read:
            return []
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode(errors="replace").splitlines()


def _meets(planned: Kill, moment: Moment, victims: list[int], workers: list[int]) -> bool:
    """Kill the victims if this is the moment; False if it is not, or nobody lived any more."""
    if not victims or not moment.now():
        return False
    if planned.step not in HELD:
        return _signal(victims, signal.SIGKILL)
    with _stopped(workers) as stopped:
        return stopped and moment.comes(workers) and _signal(victims, signal.SIGKILL)


def _strike(planned: Kill, folder: Path, supervisor: subprocess.Popen[bytes], timeout: float = 720) -> set[Path]:
    """Wait for the moment and kill; what the run had made outside the job folder by then."""
    # In the iterations there is something to lose.
    wait(lambda: supervisor.poll() is not None or live_status(folder).get("iteration", 0) > 0, "the first iteration")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        # Aimed first, again every now and then: finding processes takes longer than some steps.
        with _aimed(folder, planned.victim) as victims, _aimed(folder, HELD.get(planned.step)) as workers:
            moment, until = Moment(folder, planned.step), time.monotonic() + 1.0
            while time.monotonic() < until:
                if _meets(planned, moment, victims, workers):
                    return temporary(folder)
                assert supervisor.poll() is None, f"{planned}: {folder.with_suffix('.out').read_text()[-3000:]}"
                time.sleep(0.002 if planned.step in BEGINS else 0.01)
    raise TimeoutError(f"{planned} had no occasion within {timeout} s")


def test_every_process_may_be_killed(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    made: set[Path] = set()
    # Several deaths of one process come before the job gets on: more than a job is meant to bear.
    supervisor = start(small_job(tmp_path, ITERATIONS), folder, "--set", "spec.backoffLimit=30")
    try:
        for planned in SCHEDULE:
            made |= _strike(planned, folder, supervisor)
        made |= watch(supervisor, folder, timeout=1800)
    finally:
        if supervisor.poll() is None:
            supervisor.terminate()
            supervisor.wait(timeout=180)
    assert supervisor.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert_complete(folder, ITERATIONS)
    assert made
    assert [path for path in made if path.exists()] == []


def test_a_killed_supervisor_leaves_nothing_behind_and_the_job_goes_on(tmp_path: Path) -> None:
    """One job, whose supervisor dies in every phase."""
    folder, iterations = tmp_path / "job", 8
    job = small_job(tmp_path, iterations)
    supervisor = start(job, folder)
    try:
        for step in ("rollout", "train", "checkpoint", "export"):
            made = _strike(Kill("supervisor", step), folder, supervisor)
            supervisor.wait(timeout=30)
            wait(lambda made=made: processes(folder) == [] and not any(p.exists() for p in made), "the end of everything", timeout=90)  # type: ignore[misc]
            supervisor = start(job, folder, "--resume")
        watch(supervisor, folder, timeout=900)
    finally:
        if supervisor.poll() is None:
            supervisor.kill()
            supervisor.wait()
    assert supervisor.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert_complete(folder, iterations)
