"""The shim around a sidecar, with real processes for payloads."""

import asyncio
import errno
import io
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rljob.checkpoint_engine.payloads import LONGEST_LINE, EnginePayload, Tail, rank_environments, verdict
from rljob.checkpoint_engine.processes import Child, adopt_orphans
from rljob.checkpoint_engine.shim import Sidecar
from rljob.wire.shim import StartRequest

SHIM = """
import asyncio, sys
from pathlib import Path
from rljob.checkpoint_engine import shim
from rljob.checkpoint_engine.payloads import EnginePayload, TrainerPayload
kind = {"trainer": TrainerPayload, "vllm": EnginePayload}[sys.argv[1]]
asyncio.run(shim.serve(sys.argv[1], Path(sys.argv[2]), lambda _, tail: kind(sys.argv[3:], tail)))
"""

ZYGOTE = textwrap.dedent("""
    import json, os, selectors, signal, sys
    # A zygote without vLLM: argv[0] of a start is Python code that the fork runs.
    child = None
    def ended(*_):
        global child
        pid, status = os.waitpid(child, 0)
        child = None
        print(json.dumps({"exited": {"pid": pid, "status": os.waitstatus_to_exitcode(status)}}), flush=True)
    print("a library talks")
    print(json.dumps({"ready": 0.1}), flush=True)
    signal.signal(signal.SIGCHLD, ended)
    for line in iter(sys.stdin.readline, ""):
        start = json.loads(line)["start"]
        if start["argv"][0] == "die":
            os._exit(7)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            log = os.open(start["log"], os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1); os.dup2(log, 2)
            os.environ.update(start["env"])
            exec(start["argv"][0])
            os._exit(0)
        print(json.dumps({"started": child}), flush=True)
    if child is not None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.killpg(child, signal.SIGKILL)
""")

# Says what it is, then waits for good. A grandchild in its own session, without a parent, ignores SIGTERM.
STUBBORN = textwrap.dedent("""
    import os, signal
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, b"grandchild %d\\n" % os.getpid())
            signal.pause()
        os._exit(0)
    os.wait()
    os.write(1, b"child %d\\n" % os.getpid())
    signal.pause()
""")
WAITS = "import signal; print('up', flush=True); signal.pause()"


class Shim:
    """A running shim and a client of it."""

    def __init__(self, kind: str, path: Path, *command: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SHIM, kind, str(path), *command], stdout=subprocess.PIPE)
        self.client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path), retries=0), base_url="http://shim", timeout=30)
        poll(lambda: answers(path))

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/v1/status", params={"memory": 1}).json()
        return answer

    def start(self, incarnation: str, *argv: str, **env: str) -> httpx.Response:
        return self.client.post("/v1/start", json={"argv": argv, "env": env, "incarnation": incarnation})

    def stop(self, grace: float = 10) -> dict[str, Any]:
        answer = self.client.post("/v1/stop", json={"grace_seconds": grace})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until_logged(self, word: str) -> list[str]:
        """The log's lines once `word` stands in them."""
        lines: list[str] = poll(lambda: next((s for s in [self.status()["last_log_lines"]] if any(word in line for line in s)), None))
        return lines

    def until(self, state: str) -> dict[str, Any]:
        status: dict[str, Any] = poll(lambda: next((s for s in [self.status()] if s["state"] == state), None))
        return status


def answers(path: Path) -> bool:
    """Whether somebody accepts connections; the file alone is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(str(path)) == 0


def poll(condition: Any, seconds: float = 30) -> Any:
    """The first true value of `condition`; select is the pause."""
    for _ in range(int(seconds / 0.02)):
        if value := condition():
            return value
        select.select([], [], [], 0.02)
    raise AssertionError(f"not within {seconds} s: {condition}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def logged_pid(lines: list[str], name: str) -> int:
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture
def trainer(sockets: Path) -> Iterator[Shim]:
    yield from running(Shim("trainer", sockets / "megatron-shim.sock", sys.executable, "-c"))


@pytest.fixture
def engine(sockets: Path) -> Iterator[Shim]:
    yield from running(Shim("vllm", sockets / "vllm-shim.sock", sys.executable, "-c", ZYGOTE))


def running(shim: Shim) -> Iterator[Shim]:
    yield shim
    shim.process.terminate()
    assert shim.process.wait(30) in (0, -signal.SIGKILL)


def test_it_starts_the_payload_once_per_incarnation_and_stops_it_for_good(trainer: Shim) -> None:
    assert trainer.status()["state"] == "stopped"
    first = trainer.start("a", WAITS).json()
    assert first["state"] == "running"
    assert alive(first["pid"])
    assert trainer.start("a", WAITS).json()["pid"] == first["pid"]
    refused = trainer.start("b", WAITS)
    assert refused.status_code == 409
    assert "stop it before b" in refused.json()["error"]
    trainer.until_logged("up")
    assert trainer.status()["memory"] > 1_000_000
    stopped = trainer.stop()
    assert (stopped["state"], stopped["incarnation"], stopped["pid"]) == ("stopped", None, None)
    assert not alive(first["pid"])
    assert trainer.stop()["state"] == "stopped"
    assert trainer.start("b", WAITS).json()["pid"] != first["pid"]


def test_a_grandchild_that_left_session_and_parent_is_ended_too(trainer: Shim) -> None:
    trainer.start("a", STUBBORN)
    lines = trainer.until_logged("child ")
    grandchild = logged_pid(trainer.until_logged("grandchild"), "grandchild")
    assert alive(grandchild)
    trainer.stop(grace=0.3)
    assert not alive(grandchild)
    assert lines


def test_a_killed_payload_is_reported_with_its_signal_and_last_lines(trainer: Shim) -> None:
    pid = trainer.start("a", STUBBORN).json()["pid"]
    trainer.until_logged("child ")
    grandchild = logged_pid(trainer.until_logged("grandchild"), "grandchild")
    os.kill(pid, signal.SIGKILL)
    status = trainer.until("exited")
    assert (status["exit_status"], status["incarnation"], status["pid"]) == (-signal.SIGKILL, "a", None)
    assert any(line.startswith("grandchild") for line in status["last_log_lines"])
    assert not alive(grandchild)
    assert trainer.start("b", WAITS).json()["state"] == "running"


def test_a_rank_that_ends_ends_all_ranks(trainer: Shim) -> None:
    code = "import os, signal\nos.write(1, f'rank {os.environ[\"RANK\"]} {os.getpid()}\\n'.encode())\n"
    code += "if os.environ['LOCAL_RANK'] == '1': raise SystemExit(2)\nsignal.pause()"
    trainer.start("a", code, LOCAL_WORLD_SIZE="2")
    status = trainer.until("exited")
    assert status["exit_status"] == 2
    ranks = [line.split() for line in status["last_log_lines"] if line.startswith("rank")]
    assert "1" in {rank for _, rank, _ in ranks}
    assert not any(alive(int(pid)) for _, _, pid in ranks)


def test_the_incarnation_and_environment_reach_the_payload(trainer: Shim) -> None:
    trainer.start("abc", "import os; print('got', os.environ['RLJOB_INCARNATION'], os.environ['COLOUR'])", COLOUR="blue")
    assert "got abc blue" in trainer.until_logged("blue")


def test_a_payload_that_cannot_be_started_has_exited(sockets: Path) -> None:
    for shim in running(Shim("trainer", sockets / "s.sock", "/nonexistent/program")):
        status = shim.start("a").json()
        assert (status["state"], status["exit_status"]) == ("exited", 1)
        assert any("could not be started" in line for line in status["last_log_lines"])


def test_a_request_that_is_none_is_refused(trainer: Shim) -> None:
    assert trainer.client.post("/v1/start", json={"argv": "x"}).status_code == 422


def test_sigterm_ends_the_payload_and_exits_with_zero(trainer: Shim) -> None:
    pid = trainer.start("a", WAITS).json()["pid"]
    trainer.process.terminate()
    assert trainer.process.wait(30) == 0
    assert not alive(pid)


def test_a_killed_shim_takes_the_trainer_with_it(trainer: Shim) -> None:
    pid = trainer.start("a", WAITS).json()["pid"]
    trainer.process.kill()
    poll(lambda: not alive(pid))


def test_an_engine_is_forked_stopped_and_forked_again(engine: Shim) -> None:
    first = engine.start("a", WAITS).json()
    assert first["state"] == "running"
    engine.until_logged("up")
    assert engine.stop()["state"] == "stopped"
    assert not alive(first["pid"])
    second = engine.start("b", WAITS).json()
    assert second["pid"] != first["pid"]
    assert "a library talks" in second["last_log_lines"]


def test_a_killed_engine_has_exited_and_the_zygote_stays(engine: Shim) -> None:
    pid = engine.start("a", STUBBORN).json()["pid"]
    grandchild = logged_pid(engine.until_logged("grandchild"), "grandchild")
    engine.until_logged("child ")
    os.kill(pid, signal.SIGKILL)
    assert engine.until("exited")["exit_status"] == -signal.SIGKILL
    assert not alive(grandchild)
    assert engine.status()["ready"]


def test_a_dead_zygote_takes_its_engine_with_it_and_is_replaced(engine: Shim) -> None:
    pid = engine.start("a", WAITS).json()["pid"]
    zygote = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(zygote, signal.SIGKILL)
    assert engine.until("exited")["exit_status"] == -signal.SIGKILL
    assert not alive(pid)
    assert engine.start("b", WAITS).json()["state"] == "running"


def test_a_zygote_that_dies_of_a_start_fails_that_start_only(engine: Shim) -> None:
    status = engine.start("a", "die").json()
    assert (status["state"], status["exit_status"]) == ("exited", 1)
    assert engine.start("b", WAITS).json()["state"] == "running"


def test_a_killed_shim_takes_the_engine_with_it(engine: Shim) -> None:
    pid = engine.start("a", WAITS).json()["pid"]
    engine.process.kill()
    poll(lambda: not alive(pid))


class Disk(io.BytesIO):
    """What the shim's output goes to."""

    full = False

    def __init__(self) -> None:
        super().__init__()
        self.up = asyncio.Event()

    def write(self, data: Any) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if b"up" in data:
            self.up.set()
        return super().write(data)


def test_a_full_disk_costs_lines_and_no_engine() -> None:
    _in_a_shims_process(_full_disk)


async def _full_disk() -> None:
    disk = Disk()
    payload = EnginePayload([sys.executable, "-c", ZYGOTE], Tail(disk))
    sidecar, care = Sidecar(payload), asyncio.create_task(payload.care())
    await _started(sidecar, "a")
    disk.full = True
    (zygote,) = payload.managed
    os.kill(zygote, signal.SIGKILL)
    await asyncio.sleep(0.5)
    disk.full = False
    disk.up.clear()
    await sidecar.stop(0)
    await _started(sidecar, "b")
    async with asyncio.timeout(30):
        await disk.up.wait()
    care.cancel()
    await sidecar.close()


def test_a_zygote_that_cannot_be_started_now_is_started_later() -> None:
    _in_a_shims_process(_no_process_at_first)


async def _no_process_at_first() -> None:
    starts: list[int] = []

    def child(*arguments: Any, **keywords: Any) -> Child:
        starts.append(len(starts))
        if len(starts) == 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return Child(*arguments, **keywords)

    payload = EnginePayload([sys.executable, "-c", ZYGOTE], Tail(io.BytesIO()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rljob.checkpoint_engine.payloads.Child", child)
        sidecar, care = Sidecar(payload), asyncio.create_task(payload.care())
        await _started(sidecar, "a")
    care.cancel()
    await sidecar.close()
    assert len(starts) == 2


def _in_a_shims_process(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    """A sidecar ends all that is below its process, and adopts what loses its parent there: neither is for the process of the tests."""
    process = multiprocessing.get_context("spawn").Process(target=_as_a_shim, args=(scenario,))
    process.start()
    process.join()
    assert process.exitcode == 0


def _as_a_shim(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    adopt_orphans()
    asyncio.run(scenario())


async def _started(sidecar: Sidecar, incarnation: str) -> None:
    async with asyncio.timeout(30):
        status = await sidecar.start(StartRequest(argv=(WAITS,), incarnation=incarnation))
        assert status.state == "running"


def test_of_a_line_that_begins_anew_again_and_again_the_newest_is_kept() -> None:
    """Progress bars do so, and a status says what the lines are."""
    out = io.BytesIO()
    tail = Tail(out)

    def lines_after(data: bytes) -> tuple[str, ...]:
        tail.add(data)
        return tail.lines

    for percent in range(100):
        assert lines_after(b"\rloading %d%%" % percent) == (f"loading {percent}%",)
    assert lines_after(b"\r\nnext\r") == ("loading 99%", "next")
    assert lines_after(b"\nlast\r\n") == ("loading 99%", "next", "last")
    assert out.getvalue().endswith(b"loading 99%\r\nnext\r\nlast\r\n"), "everything is passed on as it is"


def test_of_a_line_without_an_end_the_beginning_is_kept() -> None:
    tail = Tail(io.BytesIO())
    tail.add(b"ValueError: ")
    for _ in range(100):
        tail.add(b"x" * 1000)
        assert sum(map(len, tail.lines)) <= LONGEST_LINE
    tail.add(b"\n" + b"y" * (LONGEST_LINE + 1) + b"\nz\n")
    assert tail.lines == (("ValueError: " + "x" * LONGEST_LINE)[:LONGEST_LINE], "y" * LONGEST_LINE, "z")


def test_ranks_count_over_all_nodes() -> None:
    ranks = rank_environments({"LOCAL_WORLD_SIZE": "2", "NNODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "worker-0", "MASTER_PORT": "7"}, 9)
    assert [(r["RANK"], r["LOCAL_RANK"], r["WORLD_SIZE"], r["MASTER_ADDR"], r["MASTER_PORT"]) for r in ranks] == [
        ("2", "0", "6", "worker-0", "7"),
        ("3", "1", "6", "worker-0", "7"),
    ]
    assert json.dumps(rank_environments({}, 9)[0], sort_keys=True) == json.dumps(
        {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", "RANK": "0", "WORLD_SIZE": "1"}
    )


@pytest.mark.parametrize(("statuses", "expected"), [([0, 0], 0), ([0, 1], 1), ([-9, 2], 2), ([], 0), ([-15], -15)])
def test_the_exit_status_says_what_matters_most(statuses: list[int], expected: int) -> None:
    assert verdict(statuses) == expected
