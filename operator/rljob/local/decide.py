"""What the supervisor does next. Pure: states and the time in, actions out; the whole order of starts, restarts and stops is here."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from rljob.api.errors import EXIT_CONFIGURATION, EXIT_FAILED
from rljob.plan.types import Container, Plan, Pod, VolumePath


class Key(NamedTuple):
    """A container of a pod."""

    pod: str
    container: str

    def __str__(self) -> str:
        return self.pod if self.pod == self.container else f"{self.pod}/{self.container}"


@dataclass(frozen=True)
class State:
    """What is known of one container."""

    phase: Literal["waiting", "running", "exited"] = "waiting"
    since: float = 0.0
    """When the phase began."""
    ready: bool = False
    """Running, and its probe was good at least once."""
    bad: int = 0
    """Bad checks in a row since it was ready."""
    code: int = 0
    """Exit status; negative: ended by that signal."""
    failures: int = 0
    """Ends in a row without progress of the job between them."""
    progress: Hashable = None
    """How far the job was at the last end."""
    signalled: float | None = None
    """When SIGTERM was sent."""
    killed: bool = False
    why: str = ""
    """Why the supervisor ended it, if it did."""


@dataclass(frozen=True)
class Start:
    key: Key


@dataclass(frozen=True)
class Terminate:
    key: Key


@dataclass(frozen=True)
class Kill:
    key: Key
    why: str = ""


@dataclass(frozen=True)
class Succeed:
    """The master has finished."""


@dataclass(frozen=True)
class Fail:
    """The job cannot go on."""

    cause: Literal["configuration", "job", "back-off", "deadline"]
    key: Key | None = None


Action = Start | Terminate | Kill | Succeed | Fail


@dataclass(frozen=True)
class Limits:
    """What the job's spec says about failing."""

    backoff_limit: int = 6
    deadline: float | None = None
    """`spec.activeDeadlineSeconds` after the start of the run."""
    first_delay: float = 0.5
    longest_delay: float = 30.0


@dataclass(frozen=True)
class Observed:
    """The world at one moment."""

    now: float
    started: float
    """When the run began."""
    present: frozenset[VolumePath] = frozenset()
    """Files that pods wait for and that exist."""


def started(state: State, now: float) -> State:
    """The container's process was started."""
    return replace(state, phase="running", since=now, ready=False, bad=0, signalled=None, killed=False, why="")


def exited(state: State, code: int, now: float, progress: Hashable) -> State:
    """The container's processes are all gone. Progress of the job since the last end sets the count of failures back."""
    failures = state.failures + 1 if progress == state.progress else 1
    return replace(state, phase="exited", since=now, ready=False, code=code, failures=failures, progress=progress)


def probed(state: State, good: bool) -> State:
    """A probe came back."""
    if good:
        return replace(state, ready=True, bad=0)
    return replace(state, bad=state.bad + 1) if state.ready else state


def delay(failures: int, limits: Limits) -> float:
    """Seconds between the end of a container and its next start: doubled with every failure in a row."""
    return min(limits.longest_delay, limits.first_delay * 2.0 ** max(0, failures - 1))


def finished(container: Container, state: State) -> bool:
    """It has ended and is not to run again."""
    return state.phase == "exited" and container.restart == "on-failure" and state.code == 0


def _up(container: Container, state: State) -> bool:
    return state.phase == "running" and (state.ready or container.probe is None)


def _advance(key: Key, container: Container, state: State, limits: Limits, now: float) -> list[Action]:
    """What one container needs whose turn it is."""
    if state.phase == "waiting":
        return [Start(key)]
    if state.phase == "running":
        probe = container.probe
        if probe is None or state.killed:
            return []
        if not state.ready and now - state.since > probe.startup_seconds:
            return [Kill(key, f"did not answer its probe within {probe.startup_seconds:.0f} s of its start")]
        if state.bad >= probe.failures:
            return [Kill(key, f"did not answer {state.bad} probes in a row")]
        return []
    if finished(container, state):
        return []
    if state.code == EXIT_CONFIGURATION:
        return [Fail("configuration", key)]
    if state.code == EXIT_FAILED:
        return [Fail("job", key)]
    if state.failures > limits.backoff_limit:
        return [Fail("back-off", key)]
    return [Start(key)] if now >= state.since + delay(state.failures, limits) else []


def _pod(pod: Pod, states: Mapping[Key, State], limits: Limits, observed: Observed) -> list[Action]:
    """Init containers one after the other, then sidecars one after the other, then, once what the pod waits for is there, the rest. What
    has run once keeps running while an earlier sidecar is being restarted."""
    actions: list[Action] = []

    def turn(container: Container) -> State:
        key = Key(pod.name, container.name)
        actions.extend(_advance(key, container, states[key], limits, observed.now))
        return states[key]

    for container in pod.init_containers:
        if not finished(container, turn(container)):
            return actions
    blocked = False
    for container in pod.sidecars:
        if blocked and states[Key(pod.name, container.name)].phase == "waiting":
            continue
        blocked |= not _up(container, turn(container))
    blocked |= not all(path in observed.present for path in pod.waits)
    for container in pod.containers:
        if blocked and states[Key(pod.name, container.name)].phase == "waiting":
            continue
        turn(container)
    return actions


def decide(plan: Plan, states: Mapping[Key, State], limits: Limits, observed: Observed) -> list[Action]:
    """The next actions of a running job. `Succeed` and `Fail` stand alone."""
    if _succeeded(plan, states):
        return [Succeed()]
    if limits.deadline is not None and observed.now - observed.started > limits.deadline:
        return [Fail("deadline")]
    actions = [action for pod in plan.pods for action in _pod(pod, states, limits, observed)]
    for action in actions:
        if isinstance(action, Fail):
            return [action]
    return actions


def roll(wanted: Plan, present: Mapping[str, Pod], leaving: frozenset[str]) -> tuple[tuple[Pod, ...], frozenset[str]]:
    """What a changed plan means for the pods that are there: those that begin now, and all that leave.

    A pod that has begun to leave goes on leaving. If it is wanted again, it begins anew once it is gone.
    """
    names = {pod.name for pod in wanted.pods}
    return tuple(pod for pod in wanted.pods if pod.name not in present), leaving | {name for name in present if name not in names}


def _succeeded(plan: Plan, states: Mapping[Key, State]) -> bool:
    masters = [(c, states[Key(pod.name, c.name)]) for pod in plan.pods if pod.role == "master" for c in pod.containers]
    return bool(masters) and all(finished(container, state) for container, state in masters)


def decide_stop(plan: Plan, states: Mapping[Key, State], now: float, hurry: bool = False) -> list[Action]:
    """The next actions of an ordered stop: in every pod the main (and init) containers first, then the sidecars, the last started first.
    SIGTERM, then SIGKILL after the container's grace; `hurry`: SIGKILL at once. Done when no container is running."""
    actions: list[Action] = []
    for pod in plan.pods:
        mains = [c for c in pod.init_containers + pod.containers if states[Key(pod.name, c.name)].phase == "running"]
        sidecars = [c for c in reversed(pod.sidecars) if states[Key(pod.name, c.name)].phase == "running"]
        for container in mains or sidecars[:1]:
            key = Key(pod.name, container.name)
            state = states[key]
            if state.killed:
                continue
            if hurry:
                actions.append(Kill(key, "the stop is in a hurry"))
            elif state.signalled is None:
                actions.append(Terminate(key))
            elif now - state.signalled > container.grace_seconds:
                actions.append(Kill(key, f"did not end within {container.grace_seconds:.0f} s of SIGTERM"))
    return actions
