"""Real processes under the supervisor."""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from tests.local.fakes import SLEEP, container, master, places, plan_of

from rljob.api.status import JobStatus, LastFailure
from rljob.local.decide import Key, Limits, State
from rljob.local.marked import end_all, marks, of_run
from rljob.local.ports import is_free, pick
from rljob.local.supervisor import _PAYLOADS, Event, Outcome, Supervisor, how_it_ended
from rljob.plan.types import HttpProbe, Listen, Plan, Pod, Port, Probe, VolumePath
from rljob.wire.node import Step


class Bench:
    """Runs plans in a folder and notes what happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id = f"test{os.getpid()}{random.randrange(10**9)}"
        self.events: list[tuple[str, str]] = []
        self.on: Callable[[str], None] = lambda kind: None

    def supervisor(self, plan: Plan, limits: Limits, progress: Hashable = None) -> Supervisor:
        ports = pick([(pod.name, p.name) for pod in plan.pods for c in pod.all_containers for p in c.ports], random.Random())
        return Supervisor(plan, places(self.folder, self.run_id, ports), limits, self._note, lambda: progress)

    def _note(self, event: Event) -> None:
        self.events.append((event.kind, str(event.key)))
        self.on(event.kind)

    def run(self, plan: Plan, limits: Limits | None = None) -> Outcome:
        limits = limits or Limits(backoff_limit=2, first_delay=0.01)
        return asyncio.run(self.supervisor(plan, limits).run())

    def left(self) -> list[str]:
        return [mark for mark in marks().values() if mark.startswith(self.run_id)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    end_all(of_run(bench.run_id))


WROTE = "import os, pathlib, sys; pathlib.Path(os.environ['WORK'], {name!r}).write_text('x')"


def test_a_job_runs_in_order_and_leaves_nothing(bench: Bench) -> None:
    init = container("prepare", WROTE.format(name="prepared.json"))
    pods = (
        Pod("master", "master", master("import time; time.sleep(0.3)").containers, init_containers=(init,)),
        Pod(
            "worker",
            "worker-0",
            (container("agent", "import os, pathlib; assert pathlib.Path(os.environ['WORK'], 'prepared.json').exists(); " + SLEEP),),
            sidecars=(container("shim", SLEEP, "always"),),
            waits=(VolumePath("work", "prepared.json"),),
        ),
    )
    assert bench.run(plan_of(*pods)) == Outcome("succeeded")
    kinds = [(kind, key) for kind, key in bench.events if kind in ("started", "done")]
    assert kinds.index(("done", "master/prepare")) < kinds.index(("started", "master"))
    assert ("restart", "worker-0/agent") not in bench.events
    assert kinds.index(("started", "worker-0/shim")) < kinds.index(("started", "worker-0/agent"))
    ends = [key for kind, key in bench.events if kind == "ended"]
    assert ends == ["worker-0/agent", "worker-0/shim"]
    assert bench.left() == []


def test_an_exit_status_of_two_ends_the_job_with_its_error_line(bench: Bench) -> None:
    outcome = bench.run(plan_of(master("import sys; print('x'); print('error: spec.y is 3; set it to 2', file=sys.stderr); sys.exit(2)")))
    assert (outcome.kind, outcome.message) == ("configuration", "spec.y is 3; set it to 2")
    assert bench.events.count(("started", "master")) == 1


def test_a_container_that_keeps_dying_ends_the_job_with_its_last_lines(bench: Bench) -> None:
    outcome = bench.run(plan_of(master("print('about to fall'); raise RuntimeError('over the edge')")))
    assert outcome.kind == "failed"
    assert outcome.message == "master failed 3 times in a row without progress of the job (spec.backoffLimit is 2): exited with status 1"
    assert outcome.lines[0] == "about to fall"
    assert outcome.lines[-1] == "RuntimeError: over the edge"
    assert outcome.log == bench.folder / "job/logs/master.master.log"


def test_a_job_whose_trainer_or_engine_keeps_dying_ends_with_the_last_lines_of_that(bench: Bench) -> None:
    failure = LastFailure(stage="start-engine", pod="worker-0", reason="StepFailed", message="the engine ended with status 1")
    status = JobStatus(phase="Failed", iteration=1, iterations=2, policy_version=0, last_failure=failure).model_dump_json(by_alias=True)
    worker = Pod(
        "worker", "worker-0", (container("agent", SLEEP),), sidecars=(container("vllm", "print('the root cause', flush=True); " + SLEEP),)
    )
    lost = (
        "import os, pathlib, sys, time\n"
        "work = pathlib.Path(os.environ['WORK'])\n"
        "while 'root cause' not in (work / 'logs' / 'worker-0.vllm.log').read_text(): time.sleep(0.01)\n"
        f"(work / 'status.json').write_text({status!r})\n"
        "print('error: 2 failures in a row; the last in start-engine on worker-0: the engine ended with status 1')\n"
        "sys.exit(3)"
    )
    outcome = bench.run(plan_of(worker, master(lost)))
    assert (outcome.kind, outcome.message[:23]) == ("failed", "2 failures in a row; th")
    assert (outcome.log, outcome.lines) == (bench.folder / "job/logs/worker-0.vllm.log", ("the root cause",))


def test_the_steps_whose_failures_are_looked_up_are_those_that_a_node_names() -> None:
    assert _PAYLOADS.keys() < set(get_args(Step))


def test_what_it_said_itself_is_part_of_the_cause(bench: Bench) -> None:
    outcome = bench.run(plan_of(master("raise SystemExit('error: no space left')")), Limits(backoff_limit=0))
    assert outcome.message == "master failed and may not be restarted (spec.backoffLimit is 0): exited with status 1 (no space left)"


@pytest.mark.parametrize(("code", "words"), [(3, "exited with status 3"), (-15, "was killed by SIGTERM"), (-40, "was killed by signal 40")])
def test_how_it_ended_is_said_for_every_status(code: int, words: str) -> None:
    assert how_it_ended(State(code=code)) == words


def test_a_container_that_falls_once_is_started_again(bench: Bench) -> None:
    code = "import os, pathlib, sys; p = pathlib.Path(os.environ['WORK'], 'once'); seen = p.exists(); p.touch(); sys.exit(0 if seen else 1)"
    assert bench.run(plan_of(master(code))).kind == "succeeded"
    assert [e for e in bench.events if e[1] == "master"] == [
        ("started", "master"),
        ("restart", "master"),
        ("started", "master"),
        ("done", "master"),
    ]


def test_a_dead_container_takes_all_its_processes_with_it(bench: Bench) -> None:
    """The child is in a session of its own and its parent dies by SIGKILL, as a shim's payload would."""
    code = (
        "import os, signal, subprocess, sys, pathlib\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
        "pathlib.Path(os.environ['WORK'], 'child').write_text(str(child.pid))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    outcome = bench.run(plan_of(master(code)), Limits(backoff_limit=0))
    assert "SIGKILL" in outcome.message
    child = int((bench.folder / "job/child").read_text())
    assert not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text()


SERVE = (
    "import http.server, os, time\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "host, port = os.environ['LISTEN'].split(':')\n"
    "server = http.server.HTTPServer((host, int(port)), H)\n"
    "server.serve_forever()\n"
)


def test_a_sidecar_that_answers_its_probe_lets_the_next_one_start(bench: Bench) -> None:
    probe = Probe(HttpProbe(Listen("http"), "/"))
    server = replace(container("server", SERVE, "always", ports=(Port("http", 80),), env={"LISTEN": Listen("http")}), probe=probe)
    main = container(
        "main", "import urllib.request, os; urllib.request.urlopen('http://' + os.environ['LISTEN'])", env={"LISTEN": Listen("http")}
    )
    pod = Pod("master", "master", (main,), sidecars=(server,))
    assert bench.run(plan_of(pod)).kind == "succeeded"
    assert bench.events.index(("ready", "master/server")) < bench.events.index(("started", "master/main"))
    assert ("restart", "master/main") not in bench.events


def test_a_port_that_somebody_took_is_noticed_before_the_start(bench: Bench) -> None:
    supervisor = bench.supervisor(plan := plan_of(master(SLEEP)), Limits())
    port = supervisor._places.ports["master", "master"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free(port)
        assert asyncio.run(supervisor.run()).kind == "port-taken"
    assert supervisor.states[Key(plan.pods[0].name, "master")].phase == "waiting"


def test_a_stop_ends_what_runs(bench: Bench) -> None:
    bench.on = lambda kind: supervisor.stop() if kind == "started" else None
    supervisor = bench.supervisor(plan_of(master(SLEEP)), Limits())
    assert asyncio.run(supervisor.run()) == Outcome("stopped")
    assert [kind for kind, _ in bench.events] == ["started", "ended"]
    assert bench.left() == []


def test_pods_come_and_go_while_the_others_go_on(bench: Bench) -> None:
    """0 -> 2 -> 0 -> 1, the last while the two before are still about to leave: none runs twice, nothing of them stays."""

    def rollout(number: int) -> Pod:
        agent = container("agent", SLEEP, ports=(Port("engine", 80),))
        return Pod("rollout", f"rollout-{number}", (agent,), sidecars=(container("shim", SLEEP, "always"),))

    def planned(count: int) -> Plan:
        return replace(base, pods=(*base.pods, *(rollout(i) for i in range(count))))

    base = plan_of(master(SLEEP))
    supervisor = bench.supervisor(base, Limits())
    to_come: list[tuple[tuple[str, str], Callable[[], None]]] = [
        (("started", "master"), lambda: supervisor.adopt(planned(2))),
        (("started", "rollout-1/agent"), lambda: supervisor.adopt(planned(0))),
        (("ended", "rollout-0/agent"), lambda: supervisor.adopt(planned(1))),
        (("started", "rollout-0/agent"), supervisor.stop),
    ]

    def on(kind: str) -> None:
        if to_come and bench.events[-1] == to_come[0][0]:
            to_come.pop(0)[1]()

    bench.on = on
    assert asyncio.run(supervisor.run()) == Outcome("stopped")
    assert bench.left() == []
    assert [key for kind, key in bench.events if kind == "started"].count("master") == 1
    begun = [key for kind, key in bench.events if kind == "started" and key.startswith("rollout")]
    ended = [key for kind, key in bench.events if kind == "ended" and key.startswith("rollout")]
    assert sorted(begun) == sorted(ended) == sorted(f"rollout-{i}/{c}" for i in (0, 0, 1) for c in ("agent", "shim"))
    assert ended.index("rollout-0/agent") < ended.index("rollout-0/shim"), "first the agent, which tells the master"
    assert not list((bench.folder / "shm").glob("rollout-1"))
    ports = supervisor._places.ports
    assert len(set(ports.values())) == len(ports) == 2
