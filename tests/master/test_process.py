"""`python -m rljob.master` as a process: exit status and the one line that it says."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.master.twins import inputs, job
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rljob.wire.node import NodeReport


def environment(root: Path, listen: str) -> dict[str, str]:
    """What a plan would give the process."""
    found = inputs()
    for name in ("model", "data"):
        (root / name).mkdir(exist_ok=True)
    (root / "data" / "prepared.json").write_text(found.prepared.model_dump_json())
    (root / "data" / "train.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in found.train))
    Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(root / "model" / "tokenizer.json"))
    (root / "job.json").write_text(json.dumps(job().model_dump(mode="json", by_alias=True)))
    folders = {f"RLJOB_DIR_{name.upper()}": str(root / name) for name in ("model", "data", "state", "output", "checkpoints")}
    return {
        **os.environ,
        **folders,
        "RLJOB_JOB": str(root / "job.json"),
        "RLJOB_LISTEN_MASTER": listen,
        "RLJOB_URL_REWARD": "http://127.0.0.1:9",
    }


def master(variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "rljob.master"], env=variables, stderr=subprocess.PIPE, text=True)


def test_a_missing_variable_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    variables = environment(tmp_path, "127.0.0.1:0")
    del variables["RLJOB_DIR_STATE"]
    process = master(variables)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors == "error: environment variable RLJOB_DIR_STATE is not set; a plan starts this process (see `rljob plan`)\n"


def test_a_taken_port_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = master(environment(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}"))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: cannot listen on 127.0.0.1:")
    assert errors.count("\n") == 1


def test_unreadable_data_and_damaged_state_are_one_line_and_exit_status_2(tmp_path: Path) -> None:
    variables = environment(tmp_path, "127.0.0.1:0")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "master.sqlite").write_text("this is no database, but long enough to look at " * 50)
    _, errors = master(variables).communicate(timeout=60)
    assert "cannot be read (file is not a database)" in errors.splitlines()[-1]
    (tmp_path / "data" / "prepared.json").write_text("{}")
    process = master(variables)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1].startswith("error: the prepared data in")) == (2, True)


def _serving(root: Path) -> tuple[subprocess.Popen[str], str]:
    """A master that serves, and its address."""
    process = master(environment(root, "127.0.0.1:0"))
    assert process.stderr is not None
    return process, next(line for line in process.stderr if "listening on" in line).split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_when_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    process, address = _serving(tmp_path)
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=60) as answer:
        assert answer.read() == b"ok\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == "stopped; start again on the same state to go on\n"


def test_open_requests_do_not_keep_it_from_stopping_and_leave_no_trace(tmp_path: Path) -> None:
    """One node waits in a long poll, one has said that a report is coming and never sends it; a second signal changes nothing."""
    process, address = _serving(tmp_path)
    host, port = address.split(":")
    report = NodeReport(node="a", kind="worker", incarnation="1", seen_revision=0, step="idle", step_started=0.0)
    with httpx.Client(base_url=f"http://{address}", timeout=60) as client, socket.create_connection((host, int(port))) as silent:
        revision = client.post("/v1/nodes/a/sync", content=report.model_dump_json()).json()["revision"]
        silent.sendall(b"POST /v1/nodes/b/sync HTTP/1.1\r\nHost: master\r\nContent-Length: 10\r\n\r\n")
        with ThreadPoolExecutor(1) as pool:
            seen = report.model_copy(update={"seen_revision": revision, "step": "load"}).model_dump_json()
            poll = pool.submit(client.post, "/v1/nodes/a/sync?wait=30", content=seen)
            while [node["step"] for node in httpx.get(f"http://{address}/v1/status", verify=False).json()["nodes"]] != ["load"]:
                assert not poll.done()
            began = time.monotonic()
            process.terminate()
            process.terminate()
            assert poll.result().json()["revision"] == revision
            assert silent.recv(100).startswith(b"HTTP/1.1 503 ")
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "stopped; start again on the same state to go on"
