"""What the agent makes of the answers it gets."""

import json
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.checkpoint_engine.twins import manifest_of, metrics
from tests.master.virtual import run

from rljob.api import ConfigurationError, InfrastructureError, RLJobError
from rljob.checkpoint_engine.act import attest, mean_gap
from rljob.checkpoint_engine.arena import TensorFile, TensorSpec
from rljob.checkpoint_engine.clients import HttpEngine, HttpMaster, HttpShim, HttpTrainer, LocalArena, parse_label
from rljob.checkpoint_engine.outcome import AttestationFailed, ChecksumMismatch, MasterAway, WrongState, backoff, exit_error, telling_line
from rljob.checkpoint_engine.state import EngineState
from rljob.rollout.client import EngineClient
from rljob.wire.node import NodeDesired, NodeReport, TrainTask
from rljob.wire.pieces import PullReport
from rljob.wire.shim import ShimStatus, StartRequest
from rljob.wire.trainer import TASK_HEADER, LoadCommand, OffloadCommand


def answering(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://twin")


def always(status: int, body: object) -> httpx.AsyncClient:
    return answering(lambda _: httpx.Response(status, json=body))


def nobody(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody listens")


@pytest.mark.parametrize(("status", "error"), [(409, WrongState), (422, ConfigurationError), (500, InfrastructureError)])
def test_a_trainers_error_has_its_type(status: int, error: type[RLJobError]) -> None:
    trainer = HttpTrainer(always(status, {"error": "no room"}))
    with pytest.raises(error, match="no room") as caught:
        run(trainer.load(LoadCommand(version=1, path="/x")))
    assert type(caught.value) is error


def test_a_dead_trainer_is_an_infrastructure_error_and_has_no_status() -> None:
    trainer = HttpTrainer(answering(nobody))
    with pytest.raises(InfrastructureError, match="the trainer went away during /v1/offload"):
        run(trainer.offload(OffloadCommand()))
    assert run(trainer.status()) is None


def test_a_task_travels_in_the_header_and_the_batch_in_the_body() -> None:
    task = TrainTask(version=4, kind="rl", steps=2, iteration=4)

    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.url.path, request.content) == ("/v1/train", b"batch")
        assert TrainTask.model_validate_json(request.headers[TASK_HEADER]) == task
        return httpx.Response(200, text=metrics(4).model_dump_json())

    assert run(HttpTrainer(answering(handler)).train(task, b"batch")) == metrics(4)


def test_a_shim_that_does_not_answer_has_no_status() -> None:
    shim = HttpShim(answering(nobody), "vllm shim")
    assert run(shim.status()) is None
    with pytest.raises(InfrastructureError, match="the vllm shim does not answer /v1/start"):
        run(shim.start(StartRequest(incarnation="a")))
    assert run(HttpShim(always(200, ShimStatus(state="exited").model_dump()), "x").status()) == ShimStatus(state="exited")


def test_a_master_that_is_away_is_no_failure_of_the_node() -> None:
    for http in (answering(nobody), always(503, {"error": "starting"})):
        with pytest.raises(MasterAway):
            run(HttpMaster(http, "worker-0").batch(3))


REPORT = NodeReport(node="worker-0", kind="worker", incarnation="i", seen_revision=0, step="idle", step_started=0.0)
PULL = PullReport(node="worker-0", url="http://here", checksum="c3", have="0")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("<html>busy</html>", r"Invalid JSON.*found b'<html>busy</html>'"),
        ('{"news": 7}', "[a-z]+: Field required, found {'news': 7}"),
    ],
)
def test_what_is_no_word_of_this_jobs_master_counts_as_a_master_that_is_away(answer: str, why: str) -> None:
    """A proxy's page, say: it is asked again, and the agent lives on."""
    master = HttpMaster(answering(lambda _: httpx.Response(200, text=answer)), "worker-0")
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "nodes/worker-0/sync": lambda: master.sync(REPORT, 0),
        "weights/3": lambda: master.manifest(3),
        "nodes": master.addresses,
        "weights/3/pull": lambda: master.pull(3, PULL),
    }
    for path, call in calls.items():
        with pytest.raises(MasterAway, match=f"^what answers /v1/{path} at the master's address is no [A-Z].*{why}"):
            run(call())


def test_a_field_that_only_a_newer_master_knows_is_named() -> None:
    wanted = NodeDesired(revision=1, phase="idle", version=0, checksum=None)
    http = always(200, {**json.loads(wanted.model_dump_json()), "news": 7})
    with pytest.raises(MasterAway, match="is no NodeDesired, news: Extra inputs are not permitted, found 7; all of a job's processes"):
        run(HttpMaster(http, "worker-0").sync(REPORT, 0))


NO_NUMBER = {**json.loads(metrics(4).model_dump_json()), "loss": None}
"""What becomes of a loss that is not a number."""


def test_what_a_trainer_answers_and_nobody_can_read_is_its_failure() -> None:
    with pytest.raises(InfrastructureError, match=r"what the trainer answers /v1/train is no TrainMetrics, loss: .* found None"):
        run(HttpTrainer(always(200, NO_NUMBER)).train(TrainTask(version=4, kind="rl", steps=2, iteration=4), b""))
    with pytest.raises(InfrastructureError, match="what the vllm shim answers /v1/start is no ShimStatus, pages: "):
        run(HttpShim(always(200, {"pages": 1}), "vllm shim").start(StartRequest(incarnation="a")))


def test_a_status_that_nobody_can_read_is_none_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    status = {"incarnation": "a", "version": 4, "resident": True}
    bodies = iter([{**status, "trained": NO_NUMBER}, {**status, "trained": NO_NUMBER}, status, {"pages": 1}])
    trainer = HttpTrainer(answering(lambda _: httpx.Response(200, json=next(bodies))))
    with caplog.at_level(logging.ERROR):
        assert [(found := run(trainer.status())) and found.version for _ in range(4)] == [None, None, 4, None]
    unread = "what the trainer answers /v1/status is no TrainerStatus, "
    assert [record.getMessage()[: len(unread) + 12] for record in caplog.records] == [f"{unread}trained.loss", f"{unread}incarnation:"]
    assert run(HttpShim(always(200, {"pages": 1}), "vllm shim").status()) is None


def test_a_master_that_knows_other_weights_by_this_version_refuses() -> None:
    with pytest.raises(ChecksumMismatch, match="not the same weights"):
        run(HttpMaster(always(409, {"error": "not the same weights"}), "worker-0").register(manifest_of(1, "c1")))


def test_an_unknown_manifest_is_none() -> None:
    assert run(HttpMaster(always(404, {"error": "no"}), "worker-0").manifest(7)) is None
    known = manifest_of(7, "c7")
    assert run(HttpMaster(always(200, json.loads(known.model_dump_json())), "worker-0").manifest(7)) == known


@pytest.mark.parametrize(
    ("label", "parsed"), [("3:abc", (3, "abc")), ("none", (None, None)), ("default", (None, None)), ("3", (None, None))]
)
def test_only_a_full_label_counts(label: str, parsed: tuple[int | None, str | None]) -> None:
    assert parse_label(label) == parsed


def test_an_engine_whose_core_is_dead_does_not_answer() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503) if request.url.path == "/health" else httpx.Response(200, json={"weight_version": "3:c3"})

    assert run(HttpEngine(EngineClient("http://twin", answering(handler))).state()) is None


def test_an_engines_state_is_what_it_says() -> None:
    answers = {"/health": {}, "/weight_info": {"weight_version": "3:c3"}, "/is_paused": {"is_paused": True}}
    http = answering(lambda request: httpx.Response(200, json=answers[request.url.path]))
    assert run(HttpEngine(EngineClient("http://twin", http)).state()) == EngineState(3, "c3", paused=True)


def test_an_engine_has_handed_back_when_everybody_has_been_answered() -> None:
    loads, asked = iter((2, 1, 0)), list[str]()

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"server_load": next(loads)} if request.url.path == "/load" else {})

    run(HttpEngine(EngineClient("http://twin", answering(handler))).hand_back())
    assert asked == ["/pause", "/load", "/load", "/load"]


class Claims:
    """An engine that says one thing and computes another."""

    def __init__(self, state: EngineState | None, logprobs: list[float]) -> None:
        self._state, self._logprobs = state, logprobs

    async def state(self) -> EngineState | None:
        return self._state

    async def logprobs(self, tokens: tuple[int, ...]) -> list[float]:
        return self._logprobs

    async def load(self, manifest: object, arena: Path, share: bool, beside: bool) -> None:
        raise NotImplementedError

    async def sleep(self) -> None:
        raise NotImplementedError

    async def wake(self) -> None:
        raise NotImplementedError

    async def hand_back(self) -> None:
        raise NotImplementedError


RIGHT = manifest_of(3, "c3")


@pytest.mark.parametrize(
    ("state", "logprobs", "why"),
    [
        (None, RIGHT.canary.logprobs, "holds nothing"),
        (EngineState(2, "c2", False), RIGHT.canary.logprobs, "holds version 2 with checksum c2"),
        (EngineState(3, "c2", False), RIGHT.canary.logprobs, "holds version 3 with checksum c2"),
        (EngineState(3, "c3", False), (-0.5, -1.0), "differ from the trainer's by"),
        (EngineState(3, "c3", False), (float("nan"), -1.0), "differ from the trainer's by nan"),
        (EngineState(3, "c3", False), (-1.0,), "differ from the trainer's by inf"),
    ],
)
def test_an_engine_that_cannot_prove_its_weights_fails(state: EngineState | None, logprobs: tuple[float, ...], why: str) -> None:
    run(attest(Claims(EngineState(3, "c3", False), list(RIGHT.canary.logprobs)), RIGHT))
    with pytest.raises(AttestationFailed, match=why):
        run(attest(Claims(state, list(logprobs)), RIGHT))


def test_the_gap_is_the_mean_per_token() -> None:
    assert mean_gap([-1.0, -2.0], [-1.5, -2.0]) == 0.25


def test_the_arenas_version_is_read_without_torch_and_only_if_complete(tmp_path: Path) -> None:
    arena = LocalArena(tmp_path / "weights.safetensors")
    assert arena.version() is None
    with TensorFile.create(arena.path, [TensorSpec("a", torch.float32, (2, 3)), TensorSpec("b", torch.bfloat16, (4,))], {}) as file:
        assert arena.version() is None
        file.set_metadata({"version": "12"})
        assert arena.version() == 12
    with arena.path.open("r+b") as cut:
        cut.truncate(arena.path.stat().st_size - 1)
    assert arena.version() is None
    arena.remove()
    arena.remove()
    assert not arena.path.exists()


def test_a_payloads_end_says_how_and_its_last_word() -> None:
    assert str(exit_error("engine", -9, "")) == "the engine was killed by signal 9"
    error = exit_error("trainer", 2, "error: no such model")
    assert isinstance(error, ConfigurationError)
    assert str(error) == "no such model"
    assert "its last output: boom" in str(exit_error("trainer", 1, "boom"))


def test_the_telling_line_is_the_last_error() -> None:
    assert telling_line(("a", "ValueError: bad", "  at x", "shim: the payload ended with status 1")) == "ValueError: bad"
    assert telling_line(("a", "b", "shim: x")) == "b"
    assert telling_line(()) == ""


def test_pauses_grow_to_half_a_minute() -> None:
    assert [backoff(n) for n in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]
