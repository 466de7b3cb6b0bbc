"""The supervisor's decisions: order, restarts, back-off, ends."""

from dataclasses import replace

import pytest
from tests.local.fakes import container, plan_of

from rljob.local.decide import (
    Action,
    Fail,
    Key,
    Kill,
    Limits,
    Observed,
    Start,
    State,
    Succeed,
    Terminate,
    decide,
    decide_stop,
    delay,
    exited,
    probed,
    roll,
    started,
)
from rljob.plan.types import HttpProbe, Listen, Plan, Pod, Probe, VolumePath

PREPARED = VolumePath("work", "prepared.json")
PROBE = Probe(HttpProbe(Listen("x"), "/"), startup_seconds=60, failures=3)
PREPARE, MASTER = Key("master", "prepare"), Key("master", "master")
MEGATRON, VLLM, AGENT = Key("worker-0", "megatron"), Key("worker-0", "vllm"), Key("worker-0", "agent")
PLAN = plan_of(
    Pod("master", "master", (container("master", ""),), init_containers=(container("prepare", ""),)),
    Pod(
        "worker",
        "worker-0",
        (container("agent", ""),),
        sidecars=(replace(container("megatron", "", "always"), probe=PROBE), container("vllm", "", "always")),
        waits=(PREPARED,),
    ),
)
LIMITS = Limits(backoff_limit=2)
RUNNING = State("running", ready=True)


def fresh(plan: Plan = PLAN) -> dict[Key, State]:
    return {Key(pod.name, c.name): State() for pod in plan.pods for c in pod.all_containers}


def after(states: dict[Key, State], now: float = 0.0, prepared: bool = True, limits: Limits = LIMITS) -> list[Action]:
    return decide(PLAN, states, limits, Observed(now, 0.0, frozenset([PREPARED] if prepared else [])))


def test_everything_starts_in_order_and_each_only_once_what_it_needs_is_there() -> None:
    states = fresh()
    assert after(states, prepared=False) == [Start(PREPARE), Start(MEGATRON)]
    states[PREPARE] = started(states[PREPARE], 0.0)
    states[MEGATRON] = started(states[MEGATRON], 0.0)
    assert after(states, prepared=False) == []
    states[MEGATRON] = probed(states[MEGATRON], True)
    assert after(states, prepared=False) == [Start(VLLM)]
    states[VLLM] = started(states[VLLM], 1.0)
    assert after(states, prepared=False) == []
    states[PREPARE] = exited(states[PREPARE], 0, 5.0, None)
    assert after(states, prepared=False) == [Start(MASTER)]
    states[MASTER] = started(states[MASTER], 5.0)
    assert after(states) == [Start(AGENT)]
    states[AGENT] = started(states[AGENT], 5.0)
    assert after(states) == []


def test_a_sidecar_that_comes_back_leaves_the_others_alone() -> None:
    states = fresh() | {PREPARE: State("exited"), MASTER: RUNNING, VLLM: RUNNING, AGENT: RUNNING}
    states[MEGATRON] = State("exited", since=100.0, code=-9, failures=1)
    assert after(states, 100.4) == []
    assert after(states, 100.5) == [Start(MEGATRON)]
    assert after(states, 100.5, prepared=False) == [Start(MEGATRON)]


def test_the_job_succeeds_when_the_master_ends_well() -> None:
    states = fresh() | {PREPARE: State("exited"), MASTER: State("exited"), AGENT: State("exited", code=1, failures=9)}
    assert after(states) == [Succeed()]


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (State("exited", code=2, failures=1), Fail("configuration", AGENT)),
        (State("exited", code=1, failures=3), Fail("back-off", AGENT)),
        (State("exited", code=1, failures=2), Start(AGENT)),
        (State("exited", code=-11, failures=1), Start(AGENT)),
        (State("exited", code=0, failures=1), None),
    ],
)
def test_what_follows_an_end(state: State, action: Action | None) -> None:
    states = fresh() | {PREPARE: State("exited"), MASTER: RUNNING, MEGATRON: RUNNING, VLLM: RUNNING, AGENT: state}
    assert after(states, 1000.0) == ([action] if action else [])


def test_a_sidecar_has_no_good_end() -> None:
    states = fresh() | {PREPARE: State("exited"), MASTER: RUNNING, MEGATRON: RUNNING, AGENT: RUNNING}
    states[VLLM] = exited(started(State(), 0.0), 0, 1.0, None)
    assert after(states, 2.0) == [Start(VLLM)]


def test_the_delay_doubles_up_to_a_bound() -> None:
    assert [delay(n, Limits(first_delay=0.5, longest_delay=5.0)) for n in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_failures_in_a_row_count_only_without_progress_between_them() -> None:
    state = State()
    for expected, progress in ((1, (1, 0)), (2, (1, 0)), (1, (2, 1)), (2, (2, 1)), (3, (2, 1))):
        state = exited(started(state, 0.0), 1, 0.0, progress)
        assert state.failures == expected


def test_what_does_not_come_up_or_hangs_is_ended() -> None:
    states = fresh() | {PREPARE: State("exited"), MASTER: RUNNING, VLLM: RUNNING, AGENT: RUNNING}
    states[MEGATRON] = started(State(), 10.0)
    assert after(states, 70.0) == []
    (kill,) = after(states, 70.1)
    assert kill == Kill(MEGATRON, "did not answer its probe within 60 s of its start")
    states[MEGATRON] = probed(states[MEGATRON], True)
    for _ in range(2):
        states[MEGATRON] = probed(states[MEGATRON], False)
    assert after(states, 99.0) == []
    states[MEGATRON] = probed(states[MEGATRON], False)
    assert after(states, 99.0) == [Kill(MEGATRON, "did not answer 3 probes in a row")]
    states[MEGATRON] = replace(states[MEGATRON], killed=True)
    assert after(states, 99.0) == []


def test_the_deadline_ends_the_job() -> None:
    limits = replace(LIMITS, deadline=60.0)
    assert after(fresh(), 60.0, prepared=False, limits=limits) == [Start(PREPARE), Start(MEGATRON)]
    assert after(fresh(), 60.1, limits=limits) == [Fail("deadline")]


def test_a_stop_ends_main_containers_before_sidecars_and_the_last_sidecar_first() -> None:
    states = fresh() | {PREPARE: State("exited"), MASTER: RUNNING, MEGATRON: RUNNING, VLLM: RUNNING, AGENT: RUNNING}
    order = []
    for _ in range(3):
        actions = decide_stop(PLAN, states, 0.0)
        order.append(actions)
        for action in actions:
            assert isinstance(action, Terminate)
            states[action.key] = State("exited")
    assert order == [[Terminate(MASTER), Terminate(AGENT)], [Terminate(VLLM)], [Terminate(MEGATRON)]]
    assert decide_stop(PLAN, states, 0.0) == []


def test_what_ignores_sigterm_is_killed_after_its_grace() -> None:
    states = fresh() | {MASTER: replace(RUNNING, signalled=10.0)}
    assert decide_stop(PLAN, states, 15.0) == []
    assert decide_stop(PLAN, states, 15.1) == [Kill(MASTER, "did not end within 5 s of SIGTERM")]


def test_a_stop_in_a_hurry_kills_at_once() -> None:
    states = fresh() | {MASTER: RUNNING, AGENT: replace(RUNNING, signalled=1.0)}
    assert [type(a) for a in decide_stop(PLAN, states, 1.0, hurry=True)] == [Kill, Kill]


def test_a_changed_plan_says_who_begins_and_who_leaves() -> None:
    def rollout(number: int) -> Pod:
        return Pod("rollout", f"rollout-{number}", (container("agent", ""),))

    def roles(*pods: Pod) -> tuple[str, ...]:
        return tuple(pod.name for pod in pods)

    alone, two = PLAN, replace(PLAN, pods=(*PLAN.pods, rollout(0), rollout(1)))
    there = {pod.name: pod for pod in alone.pods}
    begins, leaving = roll(two, there, frozenset())
    assert (roles(*begins), leaving) == (("rollout-0", "rollout-1"), frozenset())
    there |= {pod.name: pod for pod in begins}
    assert roll(two, there, frozenset()) == ((), frozenset())
    begins, leaving = roll(alone, there, frozenset())
    assert (begins, leaving) == ((), frozenset({"rollout-0", "rollout-1"}))
    assert roll(two, there, leaving) == ((), leaving), "what leaves goes on leaving"
    del there["rollout-1"]
    begins, leaving = roll(two, there, frozenset({"rollout-0"}))
    assert (roles(*begins), leaving) == (("rollout-1",), frozenset({"rollout-0"})), "and begins anew once it is gone"
