"""The service over HTTP, in the test's own event loop: answers, refusals, batches, metrics."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.sandbox.twins import Gate, TwinPool, until

from rljob.sandbox.app import create_app
from rljob.sandbox.queue import Pace
from rljob.sandbox.service import Service
from rljob.wire.sandbox import Checker, JudgeRequest, JudgeResult, Languages, Output, RunRequest, RunResult

pytestmark = pytest.mark.asyncio


def client(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://sandbox")


def run_of(stdin: str, **more: Any) -> dict[str, Any]:
    return {"language": "python", "code": "", "stdin": stdin} | more


def judge_of(*tests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"language": "python", "code": "", "tests": tests} | more


async def test_a_run_is_answered_with_its_result() -> None:
    async with client(Service(TwinPool(), 10)) as http:
        answer = await http.post("/v1/run", content=RunRequest(language="python", code="", stdin="hello").model_dump_json())
    result = RunResult.model_validate_json(answer.text)
    assert (answer.status_code, result.status, result.run and result.run.stdout) == (200, "ok", "hello")


async def test_a_submission_is_answered_with_its_verdict() -> None:
    request = JudgeRequest.model_validate(judge_of({"stdin": "1", "expected": "1"}, {"stdin": "1", "expected": "2"}))
    async with client(Service(TwinPool(), 10)) as http:
        answer = await http.post("/v1/judge", content=request.model_dump_json())
    assert JudgeResult.model_validate_json(answer.text).verdict == "wrong_answer"


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/run", "{", "body: Invalid JSON: EOF while parsing an object at line 1 column 1 (not a RunRequest, see /openapi.json)"),
        ("/v1/run", '{"language": "python"}', "code: Field required (not a RunRequest, see /openapi.json)"),
        ("/v1/run", json.dumps(run_of("", speed=1)), "speed: Extra inputs are not permitted (not a RunRequest, see /openapi.json)"),
        ("/v1/run", json.dumps(run_of("", language="cobol")), "language: is 'cobol', this sandbox has python, cpp, javascript"),
        ("/v1/judge", json.dumps({"language": "python", "code": "", "tests": []}), "tests: is empty; give at least one"),
        (
            "/v1/run:batch",
            json.dumps({"items": [run_of(""), run_of("", language="cobol")]}),
            "items.1.language: is 'cobol', this sandbox has python, cpp, javascript",
        ),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_one_line(path: str, body: str, error: str) -> None:
    async with client(Service(TwinPool(), 10)) as http:
        answer = await http.post(path, content=body)
    assert (answer.status_code, answer.json()) == (422, {"error": error})


async def test_a_batch_is_answered_line_by_line_as_its_items_end() -> None:
    gate = Gate()
    async with client(Service(TwinPool(gate, slots=3), 10)) as http:
        asking = asyncio.create_task(http.post("/v1/run:batch", json={"items": [run_of("a"), run_of("b"), run_of("c")]}))
        for _ in range(3):
            await gate.begun.get()
        for stdin in "cab":
            gate.let(stdin)
            for _ in range(20):
                await asyncio.sleep(0)
        answer = await asking
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [(line["index"], line["status"], line["result"]["run"]["stdout"]) for line in lines] == [
        (2, 200, "c"),
        (0, 200, "a"),
        (1, 200, "b"),
    ]


async def test_an_item_past_its_deadline_is_a_line_with_its_own_status() -> None:
    gate = Gate()
    service = Service(TwinPool(gate, slots=1), 10)
    async with client(service) as http:
        asking = asyncio.create_task(http.post("/v1/run:batch", json={"items": [run_of("a"), run_of("b", deadline_seconds=0.01)]}))
        await gate.begun.get()
        await until(lambda: service.slots.waiting == 0)
        gate.let("a")
        lines = [json.loads(line) for line in (await asking).text.splitlines()]
    assert sorted((line["index"], line["status"]) for line in lines) == [(0, 200), (1, 503)]


async def test_a_batch_of_submissions_is_judged() -> None:
    test = {"stdin": "1", "expected": "1"}
    items = [judge_of(test), judge_of(test, test)]
    async with client(Service(TwinPool(), 10)) as http:
        answer = await http.post("/v1/judge:batch", json={"items": items})
    lines = sorted((json.loads(line) for line in answer.text.splitlines()), key=lambda line: int(line["index"]))
    assert [(line["result"]["verdict"], line["result"]["total"]) for line in lines] == [("passed", 1), ("passed", 2)]


async def test_a_full_service_says_when_to_come_again_and_a_batch_is_taken_whole_or_not_at_all() -> None:
    gate = Gate()
    service = Service(TwinPool(gate, slots=1), 2)
    async with client(service) as http:
        first = asyncio.create_task(http.post("/v1/run", json=run_of("a")))
        await gate.begun.get()
        refused = await http.post("/v1/run:batch", json={"items": [run_of("b"), run_of("c")]})
        second = asyncio.create_task(http.post("/v1/run", json=run_of("b")))
        await until(lambda: service.admission.requests_in == 2)
        also_refused = await http.post("/v1/run", json=run_of("c"))
        gate.let("a", "b")
        assert [(await first).status_code, (await second).status_code] == [200, 200]
        assert (await http.post("/v1/run", json=run_of("a"))).status_code == 200
    assert [refused.status_code, also_refused.status_code] == [429, 429]
    assert refused.headers["retry-after"] == "1"
    assert also_refused.json() == {"error": "2 requests are waiting or running; try again in 1 s"}


async def test_a_batch_that_never_fits_is_refused_for_good() -> None:
    async with client(Service(TwinPool(), 1)) as http:
        answer = await http.post("/v1/run:batch", json={"items": [run_of("a"), run_of("b")]})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("items: are 2 with ")


async def test_a_request_past_its_deadline_is_answered_503() -> None:
    gate = Gate()
    async with client(Service(TwinPool(gate, slots=1), 10)) as http:
        first = asyncio.create_task(http.post("/v1/run", json=run_of("a")))
        await gate.begun.get()
        late = await http.post("/v1/run", json=run_of("b", deadline_seconds=0.01))
        gate.let("a")
        assert (await first).status_code == 200
    assert (late.status_code, late.json()["error"].split(";")[0]) == (503, "the deadline passed before there was a slot")


async def test_priority_decides_who_runs_next() -> None:
    gate = Gate()
    service = Service(TwinPool(gate, slots=1), 10)
    async with client(service) as http:
        asking = [asyncio.create_task(http.post("/v1/run", json=run_of("first")))]
        assert await gate.begun.get() == "first"
        for stdin, priority in (("low", -1), ("high", 1)):
            asking.append(asyncio.create_task(http.post("/v1/run", json=run_of(stdin, priority=priority))))
            await until(lambda: service.slots.waiting == len(asking) - 1)
        gate.let("first", "low", "high")
        await asyncio.gather(*asking)
        assert [gate.begun.get_nowait() for _ in range(2)] == ["high", "low"]


async def test_a_stopping_service_is_not_ready_takes_nothing_new_and_ends_what_runs() -> None:
    gate = Gate()
    service = Service(TwinPool(gate, slots=1), 10)
    async with client(service) as http:
        assert (await http.get("/readyz")).status_code == 200
        running = asyncio.create_task(http.post("/v1/run", json=run_of("a")))
        await gate.begun.get()
        waiting = asyncio.create_task(http.post("/v1/run", json=run_of("b")))
        await until(lambda: service.slots.waiting == 1)
        service.drain()
        refused = [(await http.get("/readyz")).status_code, (await http.post("/v1/run", json=run_of("c"))).status_code]
        assert [*refused, (await waiting).status_code, (await http.get("/healthz")).status_code] == [503, 503, 503, 200]
        gate.let("a")
        assert (await running).status_code == 200


async def test_a_service_without_a_slot_that_can_be_made_anew_lives_and_is_not_ready() -> None:
    async with client(Service(TwinPool(works=False), 10)) as http:
        assert [(await http.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 503]


@pytest.mark.parametrize(("language", "runs"), [("python", 1), ("cpp", 2)])
async def test_the_pace_is_that_of_runs_and_of_builds_that_do_something(language: str, runs: int) -> None:
    class Counted(Pace):
        observed = 0

        def observe(self, seconds: float) -> None:
            self.observed += 1

    service = Service(TwinPool(), 10)
    service.pace = pace = Counted()
    async with client(service) as http:
        await http.post("/v1/judge", json=judge_of({"stdin": "1", "expected": "1"}, language=language))
    assert pace.observed == runs


async def test_languages_say_what_may_be_asked_for() -> None:
    async with client(Service(TwinPool(), 10)) as http:
        said = Languages.model_validate_json((await http.get("/v1/languages")).text)
    assert [(known.name, known.compiled, known.calls) for known in said.languages] == [
        ("python", False, True),
        ("cpp", True, False),
        ("javascript", False, True),
    ]
    assert said.protections == {"user": True, "seccomp": True, "cgroup_memory": False}


async def test_metrics_count_runs_verdicts_refusals_and_protections() -> None:
    async with client(Service(TwinPool(), 10)) as http:
        await http.post("/v1/run", json=run_of("a"))
        await http.post("/v1/judge", json=judge_of({"stdin": "1", "expected": "2"}))
        await http.post("/v1/run", json={})
        page = (await http.get("/metrics")).text
    for line in (
        'rljob_sandbox_runs_total{language="python",status="ok"} 2.0',
        'rljob_sandbox_verdicts_total{language="python",verdict="wrong_answer"} 1.0',
        'rljob_sandbox_refused_total{reason="invalid"} 1.0',
        'rljob_sandbox_kills_total{reason="memory_limit"} 0.0',
        'rljob_sandbox_slots{state="free"} 2.0',
        'rljob_sandbox_protection{name="cgroup_memory"} 0.0',
        'rljob_sandbox_request_seconds_count{call="judge"} 1.0',
        "rljob_sandbox_queue 0.0",
    ):
        assert line in page, line


async def test_a_compiler_that_is_ended_by_force_counts_as_a_run_that_is() -> None:
    pool = TwinPool(compiles=lambda request: Output(status="time_limit"))
    async with client(Service(pool, 10)) as http:
        await http.post("/v1/judge", json=judge_of({"stdin": "1", "expected": "2"}, language="cpp"))
        page = (await http.get("/metrics")).text
    assert 'rljob_sandbox_runs_total{language="cpp",status="time_limit"} 1.0' in page
    assert 'rljob_sandbox_kills_total{reason="time_limit"} 1.0' in page


async def test_a_checker_that_does_not_work_is_the_fault_of_the_request() -> None:
    checker = Checker(kind="program", code="x")
    request = JudgeRequest.model_validate(judge_of({"stdin": "1", "expected": "1"}, checker=checker))
    async with client(Service(TwinPool(), 10)) as http:
        answer = await http.post("/v1/judge", content=request.model_dump_json())
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("checker.code: does not work with test 0")
