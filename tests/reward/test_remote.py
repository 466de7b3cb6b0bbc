"""Programs in the sandbox and a user's own service. What they do not answer is asked again, and then a failure, never a number."""

import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.reward.asked import Nobody, item

from rljob.reward.judge import standard_judge
from rljob.reward.outside import LONGEST_REPLY, Outside
from rljob.reward.registry import check
from rljob.reward.verifiers.code import last_block
from rljob.wire.reward import ScoreItem, ScoreResult
from rljob.wire.sandbox import JudgeRequest, JudgeResult

pytestmark = pytest.mark.asyncio
URL = "http://judge.example/score"


class World:
    """Services that answer from a list; what they were asked and how long was waited in between."""

    def __init__(self, *replies: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.replies = list(replies)
        self.asked: list[httpx.Request] = []
        self.waits: list[float] = []

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, httpx.Response) else reply(request)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def score(self, asked: ScoreItem, sandbox: str | None = "http://sandbox:8082/") -> ScoreResult:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer), timeout=None) as http:
            outside = Outside(http, sandbox, self.sleep, random.Random(1))
            return await standard_judge(Nobody(), 1.0, outside, frozenset([f"http {URL}"])).score(asked)


def judged(verdict: str, passed: int, total: int, reason: str = "") -> httpx.Response:
    result = JudgeResult.model_validate({"verdict": verdict, "passed": passed, "total": total, "cases": [], "reason": reason})
    return httpx.Response(200, text=result.model_dump_json())


REFERENCE = {"tests": [{"stdin": "1 2", "expected": "3"}, {"stdin": "2 2", "expected": "4"}]}
CALL = {"call": {"function": "f", "arguments": [1], "expected": 1}}
PROGRAM = "Like this:\n```python\nprint(sum(map(int, input().split())))\n```\n"


def program(answer: str = PROGRAM, reference: Any = REFERENCE, **options: Any) -> ScoreItem:
    return item("code", answer, reference, **options)


@pytest.mark.parametrize(
    ("reply", "options", "verdict", "reward"),
    [
        (judged("passed", 2, 2), {}, "right", 1.0),
        (judged("wrong_answer", 1, 2), {}, "wrong", 0.0),
        (judged("wrong_answer", 1, 2), {"partial": True}, "wrong", 0.5),
        (judged("time_limit", 0, 2), {}, "wrong", 0.0),
        (judged("compile_error", 0, 2), {"partial": True}, "wrong", 0.0),
        (judged("memory_limit", 0, 2), {}, "wrong", 0.0),
        (judged("runtime_error", 0, 2), {}, "wrong", 0.0),
    ],
)
async def test_what_a_program_does_is_right_or_wrong(reply: httpx.Response, options: dict[str, Any], verdict: str, reward: float) -> None:
    result = await World(reply).score(program(**options))
    assert (result.verdict, result.reward) == (verdict, reward)


async def test_the_sandbox_is_asked_for_what_the_reference_says() -> None:
    world = World(judged("passed", 2, 2))
    reference = REFERENCE | {"language": "cpp", "files": {"a.h": "x"}, "checker": {"kind": "exact"}}
    await world.score(program(reference=reference, memory_mb=64, cpu_seconds=1.5))
    (request,) = world.asked
    asked = JudgeRequest.model_validate_json(request.content)
    assert str(request.url) == "http://sandbox:8082/v1/judge"
    assert (asked.language, asked.code) == ("cpp", "print(sum(map(int, input().split())))\n")
    assert (asked.limits.memory_mb, asked.limits.cpu_seconds, asked.stop_at_first_failure) == (64, 1.5, True)
    assert (asked.total_wall_seconds, asked.deadline_seconds) == (40.0, 20.0)
    assert (asked.files, asked.checker.kind, len(asked.tests)) == ({"a.h": "x"}, "exact", 2)


async def test_without_a_program_nobody_is_asked() -> None:
    result = await World().score(program(answer="I cannot program."))
    assert (result.verdict, result.reason) == ("wrong", "no closed ``` block in the answer")


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(429, headers={"retry-after": "3"}),
        httpx.Response(503),
        httpx.Response(502, text="bad gateway"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        judged("sandbox_error", 0, 2, "no slot"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, text='{"verdict": "passed", "passed": 1, "total": 2, "cases": []}'),
        httpx.Response(200, content=b" " * (LONGEST_REPLY + 1)),
    ],
    ids=range(9),
)
async def test_trouble_of_the_sandbox_is_tried_again_and_then_a_failure(trouble: httpx.Response | Exception) -> None:
    def again(request: httpx.Request) -> httpx.Response:
        if isinstance(trouble, Exception):
            raise trouble
        return httpx.Response(trouble.status_code, headers=trouble.headers, content=trouble.content)

    world = World(again, again, judged("passed", 2, 2))
    assert (await world.score(program())).verdict == "right"
    assert len(world.waits) == 2
    world = World(*[again] * 3)
    result = await world.score(program())
    assert (result.verdict, result.reward, len(world.waits)) == ("failed", None, 2)
    assert result.reason.startswith("verifier code: http://sandbox:8082/v1/judge ")


async def test_waits_double_are_spread_and_heed_the_service() -> None:
    world = World(*[httpx.Response(503)] * 3, httpx.Response(200, json={"reward": 1}))
    await world.score(item("http", "a", url=URL, attempts=4))
    assert [0.5 <= wait / full <= 1.0 for wait, full in zip(world.waits, (0.25, 0.5, 1.0), strict=True)] == [True] * 3
    world = World(httpx.Response(429, headers={"retry-after": "5"}), judged("passed", 2, 2))
    await world.score(program())
    assert 2.5 <= world.waits[0] <= 5.0


async def test_a_question_that_is_refused_for_good_is_not_asked_again() -> None:
    world = World(httpx.Response(422, text="no language 'cobol'"))
    result = await world.score(program())
    assert (result.verdict, world.waits) == ("failed", [])
    assert "answered 422: no language 'cobol'" in result.reason


async def test_a_job_without_a_sandbox_says_what_to_set() -> None:
    assert (await World().score(program(), None)).reason == (
        "verifier code: there is no sandbox to run programs in; set spec.sandbox.enabled: true"
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "`reference`: Input should be a valid dictionary"),
        ({"tests": []}, "`reference.tests`: Tuple should have at least 1 item"),
        ({"tests": [{"stdin": "1"}]}, "a test has neither `expected` nor `call`"),
        ({"tests": [{"input": "1"}]}, "`reference.tests.0.input`: Extra inputs"),
        ({"tests": [{"stdin": "1", "expected": "1"}, CALL]}, "`reference`: tests.1: all tests of a request either call a function or"),
        ({"tests": [CALL | {"expected": "1"}]}, "`reference`: tests.0: has a call, so that stdin and expected mean nothing"),
        ({"tests": [{"call": {"function": "f"}}]}, "`reference.tests.0.call` has no `expected`, so `pass` would be right"),
        ({"tests": [{"call": {"function": "f(1)", "expected": 1}}]}, "`reference`: tests.0.call.function: is 'f(1)'; name a function"),
        ({"tests": [CALL], "language": "c"}, "`reference`: language: is c, and functions are called in python and javascript only"),
        ({"tests": [CALL], "files": {"submission.py": ""}}, "`reference`: files: submission.py is where the submission itself goes"),
        ({"tests": REFERENCE["tests"] * 4001}, "`reference.tests`: Tuple should have at most 4000 items"),
        ({"tests": [{"call": {"function": "f", "expected": math.inf}}]}, "`reference`: tests.0.call: holds NaN or an infinity"),
        (REFERENCE | {"checker": {"kind": "float", "absolute": math.inf}}, "`reference.checker.absolute`: Input should be a finite"),
        (REFERENCE | {"language": "cobol"}, "`reference.language`: Input should be 'python', 'c', "),
        (REFERENCE | {"files": {"../x": ""}}, "`reference`: '../x' is no relative path below the working folder"),
        (REFERENCE | {"checker": {"kind": "program"}}, "`reference`: checker.code: goes with checker.kind program"),
        (REFERENCE | {"checker": {"code": "print(1)"}}, "`reference`: checker.code: goes with checker.kind program"),
    ],
)
async def test_a_reference_that_cannot_judge_programs_says_why(reference: Any, message: str) -> None:
    result = await World().score(program(reference=reference))
    assert result.verdict == "failed"
    assert message in result.reason
    with pytest.raises(ValueError, match=re.escape(message)):
        check("code", {}, reference)


async def test_a_call_may_be_expected_to_return_nothing() -> None:
    check("code", {}, {"tests": [{"call": {"function": "f", "expected": None}}]})


@pytest.mark.parametrize(
    ("answer", "block"),
    [
        ("```\na\n```", "a\n"),
        ("```python\na\n```\nor\n```\nb\n```\n", "b\n"),
        ("~~~ c\na\n~~~", "a\n"),
        ("````\n```\na\n```\n````", "```\na\n```\n"),
        ("```\na\n```\n```\nnot closed", "a\n"),
        ("```\na", None),
        ("`a`", None),
        ("```a``` inline", None),
        ("```\n```", ""),
        ("   ```\na\n   ```", "a\n"),
        ("```\r\na\r\n```\r\n", "a\r\n"),
        ("    ```\na\n    ```", None),
        ("1. First:\n    ```python\n    a\n      b\n    ```", "a\n  b\n"),
        ("- a\n\n  ```\n  b\n\n  c\n  ```\n", "b\n\nc\n"),
        ("1. a\nno list\n    ```\nb\n    ```", None),
        ("```\na\n    ```\n    b\n    ```\n```", "a\n    ```\n    b\n    ```\n"),
    ],
)
async def test_the_last_closed_block_is_the_program(answer: str, block: str | None) -> None:
    assert last_block(answer) == block


@pytest.mark.parametrize(
    ("reply", "verdict", "reward"),
    [
        ({"reward": 1}, "right", 1.0),
        ({"reward": 0.5, "reason": "half"}, "wrong", 0.5),
        ({"reward": 0.5, "right": True}, "right", 0.5),
        ({"reward": 0}, "wrong", 0.0),
        ({"reward": 1.0000000000000002}, "right", 1.0),
        ({"reward": 0.9999999999999999}, "right", 1.0),
        ({"reward": -1e-17}, "wrong", 0.0),
    ],
)
async def test_a_users_own_service_gives_the_reward(reply: dict[str, Any], verdict: str, reward: float) -> None:
    world = World(httpx.Response(200, json=reply))
    result = await world.score(item("http", "an answer", {"a": 1}, url=URL, options={"strict": True}))
    assert (result.verdict, result.reward, result.reason) == (verdict, reward, reply.get("reason", ""))
    assert json.loads(world.asked[0].content) == {
        "id": "a", "prompt": "p", "answer": "an answer", "reference": {"a": 1}, "options": {"strict": True}
    }  # fmt: skip


@pytest.mark.parametrize(
    "reply", ['{"reward": 1.5}', '{"reward": null}', '{"reward": NaN}', '{"right": true}', "1", "", '{"reward": 1, "x": 2}']
)
async def test_a_reply_that_is_no_reward_is_a_failure(reply: str) -> None:
    result = await World(*[httpx.Response(200, text=reply) for _ in range(2)]).score(item("http", "a", url=URL, attempts=2))
    assert (result.verdict, result.reward) == ("failed", None)


async def test_of_what_a_service_says_so_much_is_kept() -> None:
    found = await World(httpx.Response(200, json={"reward": 0, "reason": "x" * 1000})).score(item("http", "a", url=URL))
    assert found.reason == "x" * 300


async def test_a_redirect_is_not_followed() -> None:
    world = World(*[httpx.Response(302, headers={"location": "http://169.254.169.254/"})] * 2)
    assert (await world.score(item("http", "a", url=URL, attempts=2))).verdict == "failed"
    assert {str(request.url) for request in world.asked} == {URL}


async def test_the_log_says_once_that_a_service_does_not_answer_and_once_that_it_does_again(caplog: pytest.LogCaptureFixture) -> None:
    down: list[httpx.Response | Exception] = [httpx.ConnectError("refused"), httpx.Response(503)]
    refused, well = httpx.Response(404), httpx.Response(200, text='{"reward": 1}')
    world = World(*down, *down, *down, refused, well, well, *down)
    async with httpx.AsyncClient(transport=httpx.MockTransport(world.answer), timeout=None) as http:
        judge = standard_judge(Nobody(), 1.0, Outside(http, sleep=world.sleep), frozenset([f"http {URL}"]))
        found = [await judge.score(item("http", text, None, url=URL, attempts=2)) for text in "abcdefg"]
    assert [one.verdict for one in found] == ["failed"] * 4 + ["right"] * 2 + ["failed"]
    silent, again = f"{URL} answered 503: ; what it is to judge waits and is asked again", f"{URL} answers again"
    assert [record.getMessage() for record in caplog.records if record.name == "rljob.reward.outside"] == [silent, again, silent]
