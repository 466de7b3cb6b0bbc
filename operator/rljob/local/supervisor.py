"""Carries out what `rljob.local.decide` says: starts, probes, ends containers. One run of one plan."""

import asyncio
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import httpx

from rljob.api.errors import EXIT_CONFIGURATION, EXIT_FAILED
from rljob.local import decide
from rljob.local.decide import Key, Limits, Observed, State
from rljob.local.folder import JobFolder
from rljob.local.marked import end_all, of_container
from rljob.local.places import Places, backoff_text, command, environment, folders, mark, value, volume_path
from rljob.local.ports import is_free, pick
from rljob.plan.types import Container, ExecProbe, Plan, Pod, Probe, VolumePath

_TICK = 0.05

_PAYLOADS = {
    **dict.fromkeys(("start-trainer", "load", "train", "checkpoint", "export", "offload", "onload"), "megatron"),
    **dict.fromkeys(("start-engine", "load-engine", "attest", "rollout", "stop-engine"), "vllm"),
}
"""The container whose process does a step that a status names."""
_PAYLOAD_LINES = 30
"""Of a traceback in each of its processes."""


@dataclass(frozen=True)
class Event:
    """Something a person may want to know. `kind`: `started`, `ready`, `done`, `restart` (it failed and is to run again), `ended`."""

    kind: Literal["started", "ready", "done", "restart", "ended"]
    key: Key
    text: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    kind: Literal["succeeded", "stopped", "failed", "configuration", "port-taken"]
    message: str = ""
    log: Path | None = None
    lines: tuple[str, ...] = ()
    """The last lines of the log of the container that failed."""


class Guardian:
    """The process that cleans up if this one is killed (rljob.local.guardian)."""

    def __init__(self, run: str, temporary: tuple[str, ...]) -> None:
        self._command = [sys.executable, "-m", "rljob.local.guardian", run, *temporary]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")

    def check(self) -> None:
        """Start another one if it is gone."""
        if self._process.poll() is not None:
            self._process = self._start()

    def release(self) -> None:
        """Let it sweep for the last time, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Supervisor:
    """Runs a plan until the job has ended or `stop` is called."""

    def __init__(
        self,
        plan: Plan,
        places: Places,
        limits: Limits,
        listener: Callable[[Event], None],
        progress: Callable[[], Hashable] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.states = {Key(pod.name, c.name): State() for pod in plan.pods for c in pod.all_containers}
        self._places = places
        self._folder = JobFolder(places.folder)
        self._limits = limits
        self._listener = listener
        self._progress = progress
        self._clock = clock
        self._containers = {Key(pod.name, c.name): (pod, c) for pod in plan.pods for c in pod.all_containers}
        self._pods = {pod.name: pod for pod in plan.pods}
        """All that are there, also those that leave."""
        self._leaving: frozenset[str] = frozenset()
        self._processes: dict[Key, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[Key, int] = {}
        self._probes: dict[Key, asyncio.Task[None]] = {}
        self._waits = frozenset(path for pod in plan.pods for path in pod.waits)
        self._stopping = False
        self._hurry = False
        self._port_taken = False

    def stop(self) -> None:
        """Begin an ordered stop; a second call kills what is left."""
        self._hurry = self._stopping
        self._stopping = True

    def adopt(self, plan: Plan) -> None:
        """From now on the job is this plan. Pods that it adds begin, pods that it lacks are stopped in order; all others go on.

        Raises:
            InfrastructureError: no port is free.
        """
        self.plan = plan
        self._roll()

    def _roll(self) -> None:
        new, self._leaving = decide.roll(self.plan, self._pods, self._leaving)
        taken = self._places.ports
        wanted = [(pod.name, port.name) for pod in new for container in pod.all_containers for port in container.ports]
        ports = {**taken, **pick(wanted, random.SystemRandom(), taken.values())} if wanted else taken
        self._places = replace(self._places, ports=ports)
        for pod in new:
            self._pods[pod.name] = pod
            for container in pod.all_containers:
                key = Key(pod.name, container.name)
                self.states[key], self._containers[key] = State(), (pod, container)
        self._waits = frozenset(path for pod in self._pods.values() for path in pod.waits)
        for path in folders(self.plan, self._places) if new else ():
            path.mkdir(parents=True, exist_ok=True)

    def _forget(self) -> None:
        """Pods that have left are gone, with their files in memory; what they waited for may begin."""
        gone = [name for name in self._leaving if not any(key.pod == name for key in self._processes)]
        for name in gone:
            pod = self._pods.pop(name)
            for container in pod.all_containers:
                key = Key(pod.name, container.name)
                del self.states[key], self._containers[key]
            for root in (self._places.memory, self._places.sockets):
                shutil.rmtree(root / name, ignore_errors=True)
        self._places = replace(self._places, ports={at: port for at, port in self._places.ports.items() if at[0] not in gone})
        self._leaving -= set(gone)
        if gone:
            self._roll()

    def _staying(self) -> Plan:
        return replace(self.plan, pods=tuple(pod for pod in self._pods.values() if pod.name not in self._leaving))

    def _leavers(self) -> Plan:
        return replace(self.plan, pods=tuple(self._pods[name] for name in sorted(self._leaving)))

    async def run(self) -> Outcome:
        """Start the plan and see it through. Whatever the outcome, no container is left running."""
        for path in folders(self.plan, self._places):
            path.mkdir(parents=True, exist_ok=True)
        self._write_config()
        try:
            outcome = await self._until_decided()
            await self._stop_all()
        finally:
            for task in self._probes.values():
                task.cancel()
            await asyncio.gather(*self._probes.values(), return_exceptions=True)
        return outcome

    def _write_config(self) -> None:
        for volume in self.plan.volumes:
            for name, text in volume.files.items():
                volume_path(self.plan, self._places, self.plan.pods[0], VolumePath(volume.name, name)).write_text(text, encoding="utf-8")

    async def _until_decided(self) -> Outcome:
        begun = self._clock()
        while not self._stopping:
            await self._reap()
            if self._leaving:
                self._stop(decide.decide_stop(self._leavers(), self.states, self._clock()))
                self._forget()
            for action in decide.decide(self._staying(), self.states, self._limits, self._observe(begun)):
                match action:
                    case decide.Succeed():
                        return Outcome("succeeded")
                    case decide.Fail():
                        return self._failure(action)
                    case decide.Start(key):
                        self._start(key)
                    case decide.Kill(key, why):
                        self._kill(key, why)
                    case decide.Terminate():
                        raise AssertionError("a running job terminates nothing")
            if self._port_taken:
                return Outcome("port-taken")
            await asyncio.sleep(_TICK)
        return Outcome("stopped")

    async def _stop_all(self) -> None:
        everybody = replace(self.plan, pods=tuple(self._pods.values()))
        while any(state.phase == "running" for state in self.states.values()):
            self._stop(decide.decide_stop(everybody, self.states, self._clock(), self._hurry))
            await asyncio.sleep(_TICK)
            await self._reap(stopping=True)

    def _stop(self, actions: Sequence[decide.Action]) -> None:
        for action in actions:
            match action:
                case decide.Terminate(key):
                    self.states[key] = replace(self.states[key], signalled=self._clock())
                    self._processes[key].send_signal(signal.SIGTERM)
                case decide.Kill(key, why):
                    self._kill(key, why)
                case _:
                    raise AssertionError(f"no {action} while stopping")

    def _observe(self, begun: float) -> Observed:
        present = {path for path in self._waits if volume_path(self.plan, self._places, self.plan.pods[0], path).exists()}
        return Observed(self._clock(), begun, frozenset(present))

    def _start(self, key: Key) -> None:
        pod, container = self._containers[key]
        if not all(is_free(self._places.ports[pod.name, port.name]) for port in container.ports):
            self._port_taken = True
            return
        number = self.states[key].failures + 1
        with self._folder.log(*key).open("ab") as log:
            log.write(f"--- start {number} of {key}, {datetime.now():%Y-%m-%d %H:%M:%S}\n".encode())
            log.flush()
            self._log_starts[key] = log.tell()
            self._processes[key] = subprocess.Popen(
                command(self._places, container),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self.plan, self._places, pod, container, os.environ),
                cwd=self._places.folder / "run",
                start_new_session=True,
            )
        self.states[key] = decide.started(self.states[key], self._clock())
        self._listener(Event("started", key, f"process {self._processes[key].pid}"))
        if container.probe is not None:
            self._probes[key] = asyncio.create_task(self._probe(key, pod, container, container.probe))

    def _kill(self, key: Key, why: str) -> None:
        self.states[key] = replace(self.states[key], killed=True, why=why)
        self._processes[key].kill()

    async def _reap(self, stopping: bool = False) -> None:
        """Take note of containers whose first process has ended, and end what is left of them."""
        for key, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            pod, container = self._containers[key]
            await asyncio.to_thread(end_all, of_container(mark(self._places, pod, container)))
            del self._processes[key]
            if (task := self._probes.pop(key, None)) is not None:
                task.cancel()
            self.states[key] = decide.exited(self.states[key], code, self._clock(), self._progress())
            self._tell_end(key, container, stopping or key.pod in self._leaving)

    def _tell_end(self, key: Key, container: Container, stopping: bool) -> None:
        state = self.states[key]
        final = state.code in (EXIT_CONFIGURATION, EXIT_FAILED) or state.failures > self._limits.backoff_limit
        if decide.finished(container, state) and not stopping:
            self._listener(Event("done", key, ""))
        elif stopping or final:
            self._listener(Event("ended", key, how_it_ended(state)))
        else:
            wait = backoff_text(decide.delay(state.failures, self._limits))
            text = f"{how_it_ended(state)}; failure {state.failures} in a row, next start in {wait}"
            self._listener(Event("restart", key, text))

    async def _probe(self, key: Key, pod: Pod, container: Container, probe: Probe) -> None:
        """Ask until the container ends. Quickly until the first good answer, then every `probe.period_seconds`."""
        while True:
            good = await self._ask(pod, container, probe)
            before = self.states[key]
            self.states[key] = decide.probed(before, good)
            if good and not before.ready:
                self._listener(Event("ready", key, f"after {self._clock() - before.since:.1f} s"))
            await asyncio.sleep(probe.period_seconds if self.states[key].ready else 0.1)

    async def _ask(self, pod: Pod, container: Container, probe: Probe) -> bool:
        check = probe.check
        if isinstance(check, ExecProbe):
            env = environment(self.plan, self._places, pod, container, os.environ)
            first, *rest = command(self._places, replace(container, command=check.command))
            process = await asyncio.create_subprocess_exec(first, *rest, env=env, stdin=subprocess.DEVNULL)
            return await process.wait() == 0
        if isinstance(check.at, VolumePath):
            socket = volume_path(self.plan, self._places, pod, check.at)
            return socket.exists() and await _get("http://localhost" + check.path, socket)
        return await _get(f"http://{value(self.plan, self._places, pod, check.at)}{check.path}")

    def _failure(self, fail: decide.Fail) -> Outcome:
        if fail.key is None:
            limit = f"spec.activeDeadlineSeconds ({self._limits.deadline:.0f} s)"
            return Outcome("failed", f"the run took longer than {limit}, which counts anew when it is resumed")
        key, state = fail.key, self.states[fail.key]
        log = self._folder.log(*key)
        lines = last_lines(log, self._log_starts[key])
        if fail.cause in ("configuration", "job"):
            said = _own_words(lines)
            kind: Literal["configuration", "failed"] = "configuration" if fail.cause == "configuration" else "failed"
            if said:
                log, lines = (self._last_failure() if fail.cause == "job" else None) or (log, ())
            return Outcome(kind, said or f"{key} {how_it_ended(state)}", log, lines)
        times = f"{state.failures} times in a row without progress of the job" if state.failures > 1 else "and may not be restarted"
        why = f"{how_it_ended(state)} ({_own_words(lines)})" if _own_words(lines) else how_it_ended(state)
        message = f"{key} failed {times} (spec.backoffLimit is {self._limits.backoff_limit}): {why}"
        return Outcome("failed", message, log, lines)

    def _last_failure(self) -> tuple[Path, tuple[str, ...]] | None:
        """Log, and its end, of the trainer or the engine that failed last: the master knows a line of it, which seldom is the cause."""
        status = self._folder.status()
        failure = status.last_failure if status is not None else None
        key = Key(failure.pod, _PAYLOADS.get(failure.stage, "")) if failure is not None else None
        if key is None or key not in self._log_starts:
            return None
        log = self._folder.log(*key)
        return log, last_lines(log, self._log_starts[key], _PAYLOAD_LINES)


async def _get(url: str, socket: Path | None = None) -> bool:
    """Whether a server answers well, over a connection of its own."""
    # Trusting no certificates, as there is no https; to load them for every question was 40 % of what the supervisor took.
    transport = httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), uds=str(socket) if socket is not None else None)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=5.0, trust_env=False) as client:
            return (await client.get(url)).status_code < 400
    except httpx.TransportError:
        return False


def _own_words(lines: Sequence[str]) -> str:
    """What a container itself said last about its end; empty if it did not."""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else ""


def how_it_ended(state: State) -> str:
    """`exited with status 1`, `was killed by SIGKILL (out of memory?)`, or why the supervisor ended it."""
    if state.why:
        return state.why
    if state.code >= 0:
        return f"exited with status {state.code}"
    name = next((known.name for known in signal.Signals if known == -state.code), f"signal {-state.code}")
    return f"was killed by {name}" + (" (by hand, or the machine ran out of memory)" if name == "SIGKILL" else "")


def last_lines(log: Path, start: int, count: int = 15) -> tuple[str, ...]:
    """The last lines that a container wrote since byte `start` of its log."""
    with log.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, end - 64 * 1024))
        text = stream.read().decode(errors="replace")
    return tuple(line for line in text.splitlines() if line.strip())[-count:]
