"""The service's process: how it is started, what it may see, how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.local.fakes import places

from rljob.api import RLJob
from rljob.local import marked
from rljob.local import places as local
from rljob.plan import plan
from rljob.sandbox.__main__ import without_secrets
from rljob.wire.sandbox import JudgeRequest, JudgeResult, Languages, RunRequest, RunResult

SETTINGS = '{"slots": 2}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: Sequence[str], port: int, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A service, ready, and a client of it."""
    process = subprocess.Popen(command, env=dict(os.environ) | environment, stderr=subprocess.PIPE)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            deadline = time.monotonic() + 60
            while not _ready(http):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline, "the service did not get ready"
            yield process, http
    finally:
        process.kill()
        process.wait(20)


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    given = {"RLJOB_SANDBOX": SETTINGS, "RLJOB_LISTEN_SANDBOX": f"127.0.0.1:{port}", "HF_TOKEN": "hf-secret", "AWS_SECRET": "aws-secret"}
    with started([sys.executable, "-m", "rljob.sandbox"], port, **given) as both:
        yield both


Both = tuple[subprocess.Popen[bytes], httpx.Client]


def test_programs_run_and_submissions_are_judged(service: Both) -> None:
    ran = service[1].post("/v1/run", content=RunRequest(language="python", code="print(input()[::-1])", stdin="abc").model_dump_json())
    result = RunResult.model_validate_json(ran.text)
    assert (result.status, result.run and result.run.stdout) == ("ok", "cba\n")
    request = JudgeRequest.model_validate({"language": "python", "code": "print(input())", "tests": [{"stdin": "1", "expected": "1"}]})
    assert JudgeResult.model_validate_json(service[1].post("/v1/judge", content=request.model_dump_json()).text).verdict == "passed"


def test_it_says_what_it_has_and_what_protects(service: Both) -> None:
    said = Languages.model_validate_json(service[1].get("/v1/languages").text)
    assert "python" in {language.name for language in said.languages}
    assert said.limits.memory_mb == 1024
    assert all(said.protections[name] for name in ("user", "pid", "mount", "net", "seccomp"))
    assert 'rljob_sandbox_protection{name="seccomp"} 1.0' in service[1].get("/metrics").text


def test_secrets_of_whoever_started_it_are_not_in_its_memory(service: Both) -> None:
    assert b"secret" not in Path(f"/proc/{service[0].pid}/environ").read_bytes()
    spied = "import glob\nfor p in glob.glob('/proc/*/environ'):\n    print(open(p, errors='replace').read())\nimport os; print(os.environ)"
    ran = service[1].post("/v1/run", content=RunRequest(language="python", code=spied).model_dump_json()).text
    assert "secret" not in ran
    assert "RLJOB_" not in ran


def test_a_program_cannot_reach_the_service(service: Both) -> None:
    code = f"import socket; socket.create_connection(('127.0.0.1', {service[1].base_url.port}), 1); print('reached')"
    result = RunResult.model_validate_json(
        service[1].post("/v1/run", content=RunRequest(language="python", code=code).model_dump_json()).text
    )
    assert result.run is not None
    assert (result.status, result.run.stdout) == ("runtime_error", "")


def test_kept_variables_are_those_that_start_python_and_say_what_to_do() -> None:
    kept = without_secrets({"PATH": "/bin", "PYTHONPATH": "x", "LC_ALL": "C", "RLJOB_SANDBOX": "{}", "HF_TOKEN": "t", "HOME": "/root"})
    assert kept == {"PATH": "/bin", "PYTHONPATH": "x", "LC_ALL": "C", "RLJOB_SANDBOX": "{}"}


def test_a_job_on_one_machine_starts_it_and_ends_all_of_it_by_its_mark(tmp_path: Path) -> None:
    spec = {"model": {"source": {"path": "m"}}, "data": {"train": {"path": "t"}}, "sandbox": {"enabled": True, "slots": 1}}
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": spec}
    planned, port = plan(RLJob.model_validate(document)), free_port()
    pod = planned.pod("sandbox")
    (container,) = pod.containers
    at = places(tmp_path, f"sandbox-{os.getpid()}", {("sandbox", "sandbox"): port})
    environment = local.environment(planned, at, pod, container, os.environ)
    belongs = marked.of_container(local.mark(at, pod, container))
    with started(local.command(at, container), port, **environment) as (process, _):
        children = _children(process.pid)
        assert process.pid in {pid for pid, mark in marked.marks().items() if belongs(mark)}
        assert marked.end_all(belongs) == []
        process.wait(20)
    _assert_gone(children)


def test_it_runs_alone_by_one_command_and_stops_by_a_signal() -> None:
    port = free_port()
    code = (
        f"from rljob.cli.main import main; import sys; sys.argv = ['rljob', 'sandbox', 'serve', '--port', '{port}', '--slots', '1']; main()"
    )
    with started([sys.executable, "-c", code], port) as (process, http):
        assert http.get("/v1/languages").status_code == 200
        children = _children(process.pid)
        assert children
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert f"the sandbox listens on http://127.0.0.1:{port} with 1 slots" in process.stderr.read().decode()
    assert not any(map(_alive, children))


def test_nothing_survives_a_service_that_is_killed() -> None:
    port = free_port()
    with started([sys.executable, "-m", "rljob.sandbox"], port, RLJOB_SANDBOX=SETTINGS, RLJOB_LISTEN_SANDBOX=f"127.0.0.1:{port}") as (
        process,
        _,
    ):
        children = _children(process.pid)
        assert children
        process.kill()
        process.wait(20)
    _assert_gone(children)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ('{"slots": 0}', "error: environment variable RLJOB_SANDBOX: slots is 0: Input should be greater than or equal to 1\n"),
        (None, "error: environment variable RLJOB_SANDBOX is not set; a plan starts this process (see `rljob plan`)\n"),
    ],
)
def test_settings_that_cannot_be_used_end_it_by_one_line(settings: str | None, error: str) -> None:
    given = {} if settings is None else {"RLJOB_SANDBOX": settings}
    ended = subprocess.run(
        [sys.executable, "-m", "rljob.sandbox"], env=dict(os.environ) | given, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (2, error)


def _children(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def _assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(_alive, pids)):
        assert time.monotonic() < deadline, "a slot lives on"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_description_is_served(service: Both) -> None:
    assert json.loads(service[1].get("/openapi.json").text)["openapi"] == "3.1.0"
