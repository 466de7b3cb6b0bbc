"""The service over HTTP: order of results, verdicts, metrics, and its process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rljob.api import RLJob
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.prepare.data_sources import stored
from rljob.reward.app import create_app
from rljob.reward.pool import WorkerPool
from rljob.wire.reward import ScoreItem, ScoreRequest, ScoreResponse


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    folder = tmp_path_factory.mktemp("reward")
    spec = {"model": {"source": {"path": "x"}}, "data": {"train": {"path": "x.jsonl"}}, "reward": {"timeoutSeconds": 2}}
    job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": spec})
    (folder / "job.json").write_text(job.model_dump_json(by_alias=True))
    port = _free_port()
    given = {"RLJOB_JOB": str(folder / "job.json"), "RLJOB_LISTEN_REWARD": f"127.0.0.1:{port}"}
    started = subprocess.Popen([sys.executable, "-m", "rljob.reward"], env=dict(os.environ) | given)
    address = f"http://127.0.0.1:{port}"
    _await_health(address, started)
    yield started, address
    if started.poll() is None:
        started.terminate()
    started.wait(20)


def _await_health(address: str, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert started.poll() is None, "the service ended"
        try:
            if httpx.get(f"{address}/healthz", verify=False).status_code == 200:
                return
        except httpx.TransportError:
            continue
    raise TimeoutError("the service did not get ready")


def _score(address: str, *items: dict[str, Any]) -> ScoreResponse:
    made = [ScoreItem.model_validate({"id": str(i), "prompt": "", "finished": True} | item) for i, item in enumerate(items)]
    answer = httpx.post(f"{address}/v1/score", content=ScoreRequest(items=tuple(made)).model_dump_json(), timeout=60)
    assert answer.status_code == 200, answer.text
    return ScoreResponse.model_validate_json(answer.text)


def test_results_come_in_the_order_of_the_request(process: tuple[subprocess.Popen[bytes], str]) -> None:
    entry = stored(_sum())
    generated = {"verifier": "reasoning-gym", "reference": {"dataset": "chain_sum", "parameters": {}, "entry": entry}}
    response = _score(
        process[1],
        {"verifier": "math", "answer": "\\boxed{9^{9^{9^{9}}}}", "reference": "1"},
        {"verifier": "exact", "answer": "a", "reference": "a"},
        generated | {"answer": f"\\boxed{{{entry['answer']}}}"},
        generated | {"answer": "\\boxed{nonsense}"},
        {"verifier": "nobody", "answer": "a"},
        {"verifier": "numeric", "answer": "7", "reference": 8},
        {"verifier": "instruction", "answer": "Dogs bark.", "options": {"max_words": 2}},
    )
    assert [r.id for r in response.results] == list("0123456")
    assert [r.verdict for r in response.results] == ["wrong", "right", "right", "wrong", "failed", "wrong", "right"]
    assert [r.reward for r in response.results] == [0.0, 1.0, 1.0, 0.0, None, 0.0, 1.0]


def test_nobody_can_name_code_or_an_address_that_the_job_does_not(process: tuple[subprocess.Popen[bytes], str]) -> None:
    response = _score(
        process[1],
        {"verifier": "import", "answer": "a", "options": {"path": "os:system"}},
        {"verifier": "http", "answer": "a", "options": {"url": "http://169.254.169.254/"}},
    )
    assert [(r.verdict, r.reward) for r in response.results] == [("failed", None)] * 2
    assert all("only the job may name code or an address" in r.reason for r in response.results)


def _sum() -> dict[str, Any]:
    import reasoning_gym

    entry: dict[str, Any] = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0]
    return entry


async def _hung(silent: str) -> ScoreResponse:
    """What a service says of one answer whose judge is silent, and of 63 others, when the time of the call is over."""
    hung = {"verifier": "http", "options": {"url": silent}}
    items = [{"verifier": "exact", "reference": "a"} if number else hung for number in range(64)]
    made = [ScoreItem.model_validate({"id": str(i), "prompt": "", "answer": "a", "finished": True} | one) for i, one in enumerate(items)]
    app = create_app(WorkerPool(1, {}), 1.0, warm=False, named=frozenset([f"http {silent}"]), answering=0.2)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward") as http:
        answer = await http.post("/v1/score", content=ScoreRequest(items=tuple(made)).model_dump_json())
    return ScoreResponse.model_validate_json(answer.text)


def test_one_judgement_that_takes_too_long_takes_no_verdict_from_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first, *others = asyncio.run(_hung(f"http://127.0.0.1:{silent.getsockname()[1]}/")).results
    assert [(one.id, one.verdict) for one in others] == [(str(number), "right") for number in range(1, 64)]
    assert (first.id, first.verdict, first.reward) == ("0", "failed", None)
    assert first.reason.startswith("verifier http: no judgement within 0.2 s; ")


def test_health_answers_while_a_judgement_runs_without_end(process: tuple[subprocess.Popen[bytes], str]) -> None:
    body = ScoreRequest(items=(ScoreItem(id="a", verifier="math", prompt="", answer="\\boxed{10000000!}", reference="1", finished=True),))
    with httpx.Client(timeout=30) as client, client.stream("POST", f"{process[1]}/v1/score", content=body.model_dump_json()) as slow:
        assert httpx.get(f"{process[1]}/healthz").status_code == 200
        assert json.loads(slow.read())["results"][0]["verdict"] == "wrong"


def test_what_is_no_request_is_refused(process: tuple[subprocess.Popen[bytes], str]) -> None:
    answer = httpx.post(f"{process[1]}/v1/score", content='{"items": [{"id": 3}]}')
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("not a ScoreRequest: ")


def test_metrics_count_verdicts(process: tuple[subprocess.Popen[bytes], str]) -> None:
    _score(process[1], {"verifier": "exact", "answer": "a", "reference": "a"})
    metrics = httpx.get(f"{process[1]}/metrics").text
    assert 'rljob_reward_judgements_total{verdict="right",verifier="exact"}' in metrics
    assert 'rljob_reward_judge_tokens_total{kind="prompt"} 0.0' in metrics


def test_a_service_without_the_key_that_the_job_names_does_not_start(tmp_path: Path) -> None:
    judge = {"verifier": "judge", "options": {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "key_variable": "NO_SUCH_KEY"}}
    reward = {"verifier": "weighted", "options": {"terms": [{"verifier": "exact"}, judge]}}
    spec = {"model": {"source": {"path": "x"}}, "data": {"train": {"path": "x.jsonl"}}, "reward": reward}
    job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": spec})
    (tmp_path / "job.json").write_text(job.model_dump_json(by_alias=True))
    given = {"RLJOB_JOB": str(tmp_path / "job.json"), "RLJOB_LISTEN_REWARD": "127.0.0.1:0"}
    ended = subprocess.run([sys.executable, "-m", "rljob.reward"], env=dict(os.environ) | given, capture_output=True, text=True, timeout=60)
    assert ended.returncode == EXIT_CONFIGURATION
    assert ended.stderr.startswith(
        "error: spec.reward.options: option key_variable: NO_SUCH_KEY holds no API key where the reward service runs"
    )


def test_no_worker_survives_the_service_even_if_it_is_killed(process: tuple[subprocess.Popen[bytes], str]) -> None:
    children = _children(process[0].pid)
    assert children
    process[0].send_signal(signal.SIGKILL)
    process[0].wait(20)
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a worker lives on"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_service_whose_workers_cannot_start_ends_at_once_and_says_why(tmp_path: Path) -> None:
    spec = {"model": {"source": {"path": "x"}}, "data": {"train": {"path": "x.jsonl"}}}
    job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": spec})
    (tmp_path / "job.json").write_text(job.model_dump_json(by_alias=True))
    broken = 'import sys\nif "rljob.reward.worker" in sys.orig_argv:\n    sys.exit("ModuleNotFoundError: No module named \'sympy\'")\n'
    (tmp_path / "sitecustomize.py").write_text(broken)
    given = {"RLJOB_JOB": str(tmp_path / "job.json"), "RLJOB_LISTEN_REWARD": f"127.0.0.1:{_free_port()}"}
    given["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run([sys.executable, "-m", "rljob.reward"], env=dict(os.environ) | given, capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CONFIGURATION
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the workers of the reward service cannot start (exit status 1): ")
    assert "ModuleNotFoundError: No module named 'sympy'" in last
    assert "install" in last
