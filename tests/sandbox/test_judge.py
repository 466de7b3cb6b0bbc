"""Verdicts. The twin's programs are what a test says they are; `test_forgery` uses real ones."""

import asyncio
import datetime
import json
import re
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sandbox.twins import Gate, TwinPool, ended, in_turn, printed

from rljob.reward.outside import LONGEST_REPLY
from rljob.reward.verifiers.code import MOST_TESTS
from rljob.sandbox.checkers import compare_text, compare_value
from rljob.sandbox.judge import CheckerFault, _brief, _last_line, check
from rljob.sandbox.queue import Place
from rljob.sandbox.service import Service
from rljob.wire.sandbox import Case, Checker, JudgeRequest, JudgeResult, Output, RunRequest, RunResult


def asked(*tests: dict[str, Any], **more: Any) -> JudgeRequest:
    return JudgeRequest.model_validate({"language": "python", "code": "submission", "tests": tests} | more)


ONE = {"stdin": "1", "expected": "1"}
TWO = {"stdin": "2", "expected": "2"}
SIX = {"stdin": "6", "expected": "6"}
WRONG = {"stdin": "5", "expected": "6"}


async def judged(pool: TwinPool, request: JudgeRequest) -> JudgeResult:
    return await Service(pool, capacity=10).judge(request, Place(1))


def verdicts(result: JudgeResult) -> list[str]:
    return [case.verdict for case in result.cases]


@pytest.mark.asyncio
async def test_a_submission_passes_if_every_output_is_the_expected_one() -> None:
    result = await judged(TwinPool(), asked(ONE, TWO))
    assert (result.verdict, result.passed, result.total, verdicts(result)) == ("passed", 2, 2, ["passed", "passed"])
    assert result.reason == ""


@pytest.mark.asyncio
async def test_judging_stops_at_the_first_failure() -> None:
    pool = TwinPool(slots=1)
    result = await judged(pool, asked(ONE, WRONG, TWO))
    assert (result.verdict, result.passed, result.total, verdicts(result)) == ("wrong_answer", 1, 3, ["passed", "wrong_answer"])
    assert [run.stdin for run in pool.seen] == ["1", "5"]
    assert result.reason == "test 1: word 1 is '5'"


@pytest.mark.asyncio
async def test_all_tests_run_if_that_is_asked_for() -> None:
    result = await judged(TwinPool(slots=1), asked(ONE, WRONG, TWO, stop_at_first_failure=False))
    assert (result.verdict, result.passed, verdicts(result)) == ("wrong_answer", 2, ["passed", "wrong_answer", "passed"])


@pytest.mark.asyncio
async def test_tests_use_idle_slots_and_the_verdict_is_that_of_the_first_in_order() -> None:
    gate = Gate()
    pool = TwinPool(gate, slots=3)
    judging = asyncio.create_task(judged(pool, asked(ONE, WRONG, TWO, SIX)))
    assert [await gate.begun.get() for _ in range(3)] == ["1", "5", "2"]
    gate.let("2", "5")
    for _ in range(20):
        await asyncio.sleep(0)
    gate.let("1")
    result = await judging
    assert verdicts(result) == ["passed", "wrong_answer"]
    assert "6" not in [run.stdin for run in pool.seen]


@pytest.mark.asyncio
async def test_what_runs_behind_a_failure_is_ended() -> None:
    gate = Gate()
    pool = TwinPool(gate, slots=2)
    judging = asyncio.create_task(judged(pool, asked(WRONG, TWO)))
    await gate.begun.get()
    await gate.begun.get()
    gate.let("5")
    assert verdicts(await judging) == ["wrong_answer"]
    assert (pool.cancelled, pool.running) == (1, 0)


@pytest.mark.asyncio
async def test_a_program_is_built_once_and_closed() -> None:
    pool = TwinPool()
    await judged(pool, asked(ONE, TWO, language="cpp"))
    assert [program.closed for program in pool.programs] == [True]
    assert len(pool.seen) == 2


@pytest.mark.asyncio
async def test_a_compile_error_is_the_verdict_and_nothing_runs() -> None:
    pool = TwinPool(compiles=lambda request: Output(status="compile_error", exit_code=1, stderr="main.cpp:1"))
    result = await judged(pool, asked(ONE, language="cpp"))
    assert (result.verdict, result.passed, result.total, result.cases) == ("compile_error", 0, 1, ())
    assert result.compile is not None
    assert result.compile.stderr == "main.cpp:1"
    assert (pool.seen, pool.programs[0].closed) == ([], True)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", ["runtime_error", "time_limit", "wall_limit", "memory_limit", "output_limit", "disk_limit"])
async def test_the_right_output_of_a_run_that_ended_badly_does_not_pass(status: str) -> None:
    bad = printed("1", status=status)
    assert verdicts(await judged(TwinPool(in_turn(bad)), asked(ONE))) == [status]


@pytest.mark.asyncio
async def test_the_right_output_with_another_exit_status_does_not_pass() -> None:
    assert verdicts(await judged(TwinPool(in_turn(printed("1", exit_code=3))), asked(ONE))) == ["runtime_error"]


@pytest.mark.asyncio
async def test_the_kept_part_of_a_longer_output_does_not_pass() -> None:
    assert verdicts(await judged(TwinPool(in_turn(printed("1", truncated=True))), asked(ONE))) == ["output_limit"]


@pytest.mark.asyncio
async def test_a_failure_of_ours_is_tried_again() -> None:
    pool = TwinPool(in_turn(ended("sandbox_error"), ended("sandbox_error"), printed("1")))
    assert verdicts(await judged(pool, asked(ONE))) == ["passed"]


@pytest.mark.asyncio
async def test_a_failure_of_ours_that_stays_is_the_verdict_even_if_an_earlier_test_failed() -> None:
    broken = [ended("sandbox_error", "no slot")] * 3
    request = asked(WRONG, TWO, ONE, stop_at_first_failure=False)
    result = await judged(TwinPool(in_turn(printed("5"), *broken, printed("1")), slots=1), request)
    assert verdicts(result) == ["wrong_answer", "sandbox_error", "passed"]
    assert (result.verdict, result.reason) == ("sandbox_error", "test 1: no slot")


@pytest.mark.asyncio
async def test_a_compiler_that_could_not_be_run_is_tried_again() -> None:
    said = [Output(status="sandbox_error"), Output(status="ok", exit_code=0)]
    pool = TwinPool(compiles=lambda request: said.pop(0))
    assert (await judged(pool, asked(ONE, language="cpp"))).verdict == "passed"
    assert [program.closed for program in pool.programs] == [True, True]


@pytest.mark.asyncio
@pytest.mark.parametrize("stops", [True, False])
async def test_a_submission_that_takes_its_time_in_every_test_is_not_waited_for(stops: bool) -> None:
    pool = TwinPool(in_turn(*(printed(str(n), wall_seconds=4.0) for n in range(4))), slots=1)
    tests = [{"stdin": str(n), "expected": str(n)} for n in range(6)]
    result = await judged(pool, asked(*tests, total_wall_seconds=10, stop_at_first_failure=stops))
    assert verdicts(result) == ["passed"] * 3 + ["wall_limit"] * 3
    assert (result.verdict, result.passed, len(pool.seen)) == ("wall_limit", 3, 3)
    assert result.reason == "test 3: not begun: the tests before it took all of total_wall_seconds (10)"


@pytest.mark.asyncio
async def test_no_test_goes_on_for_longer_than_all_of_them_may() -> None:
    """Or a program that sleeps would be answered after whoever asks has left."""
    pool = TwinPool(in_turn(printed("1", wall_seconds=7.5), ended("wall_limit", "not done after 2.5 s")), slots=1)
    result = await judged(pool, asked(ONE, TWO, limits={"wall_seconds": 300}, total_wall_seconds=10))
    assert [run.limits.wall_seconds for run in pool.seen] == [10, 2.5]
    assert (verdicts(result), result.reason) == (["passed", "wall_limit"], "test 1: not done when total_wall_seconds (10) were over")


@pytest.mark.asyncio
async def test_a_test_that_waits_for_a_slot_has_what_is_left_when_it_gets_one() -> None:
    """Or tests that were to run side by side, and then follow each other, would take the time of all several times."""
    gate = Gate()

    async def behave(request: RunRequest) -> RunResult:
        result = await gate(request)
        return printed(result.run.stdout, wall_seconds=7.5) if result.run else result

    pool = TwinPool(behave, slots=3)
    service = Service(pool, capacity=10)
    both = [asked(ONE, TWO, limits={"wall_seconds": 300}, total_wall_seconds=10) for _ in range(2)]
    judging = [asyncio.create_task(service.judge(request, Place(order))) for order, request in enumerate(both)]
    for _ in range(pool.slots):
        await gate.begun.get()
    gate.let("1")
    await gate.begun.get()
    gate.let("2")
    await asyncio.gather(*judging)
    assert sorted(run.limits.wall_seconds for run in pool.seen) == [2.5, 10, 10, 10]


@pytest.mark.asyncio
async def test_the_time_of_the_checker_is_part_of_that_of_all_tests() -> None:
    """An output may be made to be long to check."""
    pool = TwinPool(in_turn(printed("1", wall_seconds=1.0), printed('{"accept": true}', wall_seconds=9.5)), slots=1)
    checker = {"kind": "program", "code": "check"}
    result = await judged(pool, asked(ONE, TWO, checker=checker, total_wall_seconds=10, stop_at_first_failure=False))
    assert verdicts(result) == ["passed", "wall_limit"]


@pytest.mark.asyncio
async def test_a_compiler_that_is_made_to_say_megabytes_is_cut_short() -> None:
    pool = TwinPool(compiles=lambda request: Output(status="compile_error", exit_code=1, stderr="error " * 1_000_000))
    result = await judged(pool, asked(ONE, language="cpp"))
    assert len(result.model_dump_json()) < 20_000
    assert result.compile is not None
    assert result.compile.truncated


@pytest.mark.asyncio
async def test_a_submission_cannot_make_the_answer_about_many_tests_long_and_its_first_reasons_are_there() -> None:
    tests = [{"stdin": str(n), "expected": ""} for n in range(600)]
    failed = ended("runtime_error", "it ended with exit status 1", stderr="\x01" * 1000)
    result = await judged(TwinPool(in_turn(*[failed] * 600)), asked(*tests, stop_at_first_failure=False))
    assert len(result.model_dump_json()) < LONGEST_REPLY / 2
    assert (result.verdict, len(result.cases), result.cases[99].reason != "") == ("runtime_error", 600, True)
    assert result.reason.startswith("test 0: it ended with exit status 1")
    longest = _brief([Case(verdict="process_limit", wall_seconds=123.456789, cpu_seconds=123.456789, memory_mb=1023.123)] * MOST_TESTS)
    assert len(result.model_copy(update={"cases": longest}).model_dump_json()) < LONGEST_REPLY * 3 / 4, "as many tests as a record may have"


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("Traceback:\n  File main.py\nValueError: no number\n", "ValueError: no number"),
        ("main.js:1\nthrow x\n^\n\nTypeError: x\n    at f (main.js:1:7)\n    at node:internal\n\nNode.js v20.20.2\n", "TypeError: x"),
        (
            "Error: Cannot find module 'x'\nRequire stack:\n- /tmp/work/main.js\n    at f (node:internal) {\n  code: 'NONE',\n"
            "  requireStack: [ '/tmp/work/main.js' ]\n}\n\nNode.js v20.20.2\n",
            "Error: Cannot find module 'x'",
        ),
        ("terminate called after throwing an instance of 'x'\n  what():  no such thing\n", "what():  no such thing"),
        ('Exception in thread "main" Oops: x\n\tat Main.main(Main.java:3)\n', 'Exception in thread "main" Oops: x'),
        (" at f\n" * 1000, ""),
        ("", ""),
    ],
)
def test_the_reason_of_an_error_is_the_line_that_says_what_it_was(stderr: str, reason: str) -> None:
    assert _last_line(Output(status="runtime_error", stderr=stderr)) == reason


# ---- what enters a run


@pytest.mark.asyncio
async def test_no_expected_output_enters_the_run_of_a_submission() -> None:
    secret = "expected-8e1f"
    pool = TwinPool(in_turn(printed(secret), printed(json.dumps(secret))))
    await judged(pool, asked({"stdin": "in", "expected": secret}))
    await judged(pool, asked({"call": {"function": "f", "arguments": ["in"], "expected": secret}}))
    assert len(pool.seen) == 2
    for request in (*pool.seen, *(program.request for program in pool.programs)):
        assert secret not in request.model_dump_json()


@pytest.mark.asyncio
async def test_a_run_sees_its_own_test_and_no_other() -> None:
    pool = TwinPool(slots=1)
    await judged(pool, asked(*({"stdin": f"test-{i}-", "expected": f"test-{i}-"} for i in range(3))))
    assert [request.stdin for request in pool.seen] == ["test-0-", "test-1-", "test-2-"]
    for index, request in enumerate(pool.seen):
        assert not any(f"test-{other}-" in request.model_dump_json() for other in range(3) if other != index)


# ---- function calls


def call(expected: Any, **more: Any) -> dict[str, Any]:
    return {"call": {"function": "solve", "arguments": [1], "expected": expected} | more}


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [None, True, 0, 1.5, "", "text", [], [1, [2]], {}, {"a": [None]}])
async def test_a_returned_value_passes_if_it_is_the_expected_one(value: Any) -> None:
    result = await judged(TwinPool(in_turn(printed(json.dumps(value)))), asked(call(value)))
    assert result.verdict == "passed"


@pytest.mark.asyncio
@pytest.mark.parametrize("said", ["", "nonsense", "1 1", "1\n2", '{"accept": true}x', "NaN", "[" * 100_000, "9" * 100_000])
async def test_what_is_not_one_json_value_is_no_answer(said: str) -> None:
    assert (await judged(TwinPool(in_turn(printed(said))), asked(call(1)))).verdict in ("runtime_error", "wrong_answer")


@pytest.mark.asyncio
@pytest.mark.parametrize("said", ["1e999", '[1, {"a": -1e400}]', "9" * 400 + ".0"])
async def test_a_number_beyond_all_others_does_not_reach_a_checker_program_which_may_find_it_near_to_any(said: str) -> None:
    pool = TwinPool(in_turn(printed(said)))
    result = await judged(pool, asked(call(1), checker={"kind": "program", "code": "checker"}))
    assert (result.verdict, len(pool.seen)) == ("runtime_error", 1)


@pytest.mark.asyncio
async def test_the_submission_is_a_file_beside_the_harness() -> None:
    pool = TwinPool(in_turn(printed("1")))
    await judged(pool, asked(call(1), files={"data.txt": "x"}))
    assert pool.seen[0].files == {"submission.py": "submission", "data.txt": "x"}
    assert json.loads(pool.seen[0].stdin) == {"function": "solve", "arguments": [1]}


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        (1, True, False),
        (True, 1, False),
        (0, False, False),
        (None, False, False),
        (0, None, False),
        ("1", 1, False),
        ([], None, False),
        ([1, 2], [2, 1], False),
        ([1, 2, 3], [1, 2], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (1.0, 1, True),
        (1.0000001, 1, False),
        ([0.1 + 0.2], [0.3], False),
        ("ab", ["a", "b"], False),
        ({"a": 1}, ["a"], False),
        ([1], {"a": 1}, False),
    ],
)
def test_values_are_compared_as_json(found: Any, wanted: Any, same: bool) -> None:
    assert (compare_value(Checker(), found, wanted) == "") is same


def test_exact_tells_integers_from_other_numbers_and_float_takes_what_is_near() -> None:
    assert compare_value(Checker(kind="exact"), [1.0], [1]) != ""
    assert compare_value(Checker(kind="float"), [1.0000001], [1]) == ""
    assert compare_value(Checker(kind="float"), [1.1], [1]) != ""
    assert compare_value(Checker(kind="float"), 10**400, 1) != ""


# ---- text


@pytest.mark.parametrize(
    ("kind", "output", "expected", "same"),
    [
        ("tokens", "1  2\n3\n", "1 2 3", True),
        ("tokens", "1 2", "1 2 3", False),
        ("tokens", "1 2 3 4", "1 2 3", False),
        ("tokens", "YES", "yes", False),
        ("tokens", "", "", True),
        ("tokens", "", "0", False),
        ("tokens", "1\u00a02", "1 2", False),
        ("tokens", "1.0", "1", False),
        ("exact", "a  b\n", "a  b", True),
        ("exact", "a b  \n\n", "a b", True),
        ("exact", "a  b", "a b", False),
        ("exact", " a", "a", False),
        ("exact", "a\n\nb", "a\nb", False),
        ("exact", "a\r\nb\r\n", "a\nb\n", True),
        ("float", "0.3000000001 x", "0.3 x", True),
        ("float", "3e-1", "0.3", True),
        ("float", "0.31", "0.3", False),
        ("float", "1000000008", "1000000007", True),
        ("tokens", "1000000008", "1000000007", False),
        ("float", "inf", "1", False),
        ("float", "nan", "1", False),
        ("float", "nan", "nan", True),
        ("float", "1e999", "1e999", True),
        ("float", "5", "1e999", False),
        ("float", "1e999", "5", False),
        ("float", "1_0", "10", False),
        ("float", "\u0661", "1", False),
    ],
)
def test_outputs_are_compared_as_the_checker_says(kind: str, output: str, expected: str, same: bool) -> None:
    checker = Checker.model_validate({"kind": kind})
    assert (compare_text(checker, output, expected) == "") is same


@pytest.mark.parametrize("output", ["1" * 1_000_000 + "x", "1." + "1" * 1_000_000 + "x", "1e" + "1" * 1_000_000 + "x", "1" * 1_000_000])
def test_no_output_takes_long_to_compare(output: str) -> None:
    started = time.process_time()
    assert compare_text(Checker(kind="float"), output, "1") != ""
    assert time.process_time() - started < 2


@given(st.sampled_from(["exact", "tokens", "float"]), st.text(), st.text())
def test_no_output_breaks_a_comparison(kind: str, output: str, expected: str) -> None:
    checker = Checker.model_validate({"kind": kind})
    compare_text(checker, output, expected)
    assert compare_text(checker, output, output) == ""


# ---- checker programs


def with_program(pool_says: str, **more: Any) -> tuple[TwinPool, JudgeRequest]:
    """The submission prints `out`, the checker program what is given."""

    async def behave(request: RunRequest) -> RunResult:
        return printed(pool_says) if request.code == "checker" else printed("out")

    return TwinPool(behave), asked({"stdin": "in", "expected": "exp"} | more, checker={"kind": "program", "code": "checker"})


@pytest.mark.asyncio
async def test_a_checker_program_sees_input_output_and_expectation() -> None:
    pool, request = with_program('{"accept": true}')
    assert (await judged(pool, request)).verdict == "passed"
    assert json.loads(pool.seen[1].stdin) == {"input": "in", "output": "out", "expected": "exp"}


@pytest.mark.asyncio
async def test_a_checker_program_rejects_with_its_reason() -> None:
    pool, request = with_program('{"accept": false, "reason": "too long"}')
    result = await judged(pool, request)
    assert (result.verdict, result.cases[0].reason) == ("wrong_answer", "too long")


@pytest.mark.asyncio
@pytest.mark.parametrize("said", ["", "true", '{"accept": 1}', '{"accept": "true"}', '{"accept": true} {"accept": true}', "[true]"])
async def test_a_checker_program_that_says_anything_else_is_a_fault_of_the_request(said: str) -> None:
    pool, request = with_program(said)
    with pytest.raises(CheckerFault, match=r"^checker\.code: does not work with test 0"):
        await judged(pool, request)


@pytest.mark.asyncio
async def test_an_output_on_which_a_good_checker_program_ends_is_wrong() -> None:
    async def behave(request: RunRequest) -> RunResult:
        if request.code != "checker":
            return printed("not a number")
        return printed('{"accept": true}') if json.loads(request.stdin)["output"] == "7" else ended("runtime_error")

    result = await judged(TwinPool(behave), asked({"expected": "7"}, checker={"kind": "program", "code": "checker"}))
    assert result.verdict == "wrong_answer"


Program = Callable[[dict[str, Any]], Any]


def checked_by(checker: Program, output: str) -> TwinPool:
    """The submission prints `output`, and the checker program does what is given."""

    async def behave(request: RunRequest) -> RunResult:
        if request.code != "checker":
            return printed(output)
        try:
            return printed(json.dumps({"accept": checker(json.loads(request.stdin))}))
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            return ended("runtime_error", stderr=f"Traceback:\n{type(error).__name__}: {error}\n")

    return TwinPool(behave)


def _in_time(given: dict[str, Any]) -> bool:
    path = given["output"].split()
    return int(path[0]) == 0 and len(path) <= int(given["expected"])


def _a_pair_or_an_end(given: dict[str, Any]) -> bool:
    try:
        first, second = map(int, given["output"].split())
    except (AttributeError, ValueError):
        raise RuntimeError("no pair") from None
    return first == second


def _exactly_seven(given: dict[str, Any]) -> bool:
    assert given["output"].startswith("7")
    return True


def _marked(given: dict[str, Any]) -> bool:
    found = re.search("x=(.*)", given["output"])
    return found.group(1) == "7"  # type: ignore[union-attr]


WORKING: dict[str, tuple[Program, dict[str, Any], str]] = {
    "looks at the second word": (lambda given: sum(map(int, (given["output"].split()[0], given["output"].split()[1]))) == 7, {}, "3"),
    "looks at the second word of nothing": (lambda given: given["output"].split()[1] == "7", {}, ""),
    "looks for a mark": (_marked, {}, "7"),
    "looks for a mark and expects a measure": (_marked, {"expected": "3"}, "7"),
    "looks behind a mark": (lambda given: given["output"].split("x=")[1] == "7", {}, "7"),
    "asserts": (_exactly_seven, {}, "8"),
    "ends whatever it cannot read": (_a_pair_or_an_end, {}, "8"),
    "looks words up": (lambda given: {"7": True}[given["output"]], {}, "output"),
    "expects no output but a measure": (_in_time, {"expected": "3"}, "hello"),
    "looks at a field of a result": (lambda given: given["output"]["sum"] == 7, call(None), '"text"'),
    "looks at a field of nothing": (lambda given: given["output"]["sum"] == 7, call(None), "null"),
    "looks at an item of a result": (lambda given: given["output"][1] == 7, call([1]), "[]"),
}
BROKEN: dict[str, tuple[Program, dict[str, Any], str]] = {
    "expects something": (lambda given: given["expected"].split() == given["output"].split(), {}, "7"),
    "expects something of an output": (lambda given: given["output"].split() == given["expected"].split(), {}, "7"),
    "asks for what is not there": (lambda given: given["answer"] == given["output"], {"expected": "7"}, "7"),
    "says a number": (lambda given: int(given["output"] == given["expected"]), {"expected": "7"}, "7"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("checker", WORKING)
async def test_an_output_that_a_working_checker_cannot_read_is_wrong_for_one_that(checker: str) -> None:
    """A policy must not stop its own training by it."""
    program, test, output = WORKING[checker]
    result = await judged(checked_by(program, output), asked(test, checker={"kind": "program", "code": "checker"}))
    assert result.verdict == "wrong_answer"
    assert result.reason.startswith("test 0: the checker ended on this output: ")


@pytest.mark.asyncio
@pytest.mark.parametrize("checker", BROKEN)
async def test_the_request_is_at_fault_if_its_checker_program(checker: str) -> None:
    program, test, output = BROKEN[checker]
    with pytest.raises(CheckerFault, match="does not work with test 0"):
        await judged(checked_by(program, output), asked(test, checker={"kind": "program", "code": "checker"}))


@pytest.mark.asyncio
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("first", [False, True])
async def test_a_fault_of_the_checker_with_a_later_test_says_nothing_of_a_program_that_fails_before_it(slots: int, first: bool) -> None:
    """However many tests run side by side."""
    later = asyncio.Event()

    async def behave(request: RunRequest) -> RunResult:
        if request.code != "checker":
            return printed("out")
        if json.loads(request.stdin)["input"] == "second":
            later.set()
            return ended("runtime_error", stderr="KeyError: 'second'")
        if slots > 1:
            await later.wait()
            for _ in range(50):
                await asyncio.sleep(0)
        return printed(json.dumps({"accept": first}))

    tests = ({"stdin": "first"}, {"stdin": "second"})
    judging = judged(TwinPool(behave, slots=slots), asked(*tests, checker={"kind": "program", "code": "checker"}))
    if first:
        with pytest.raises(CheckerFault, match="does not work with test 1"):
            await judging
    else:
        assert verdicts(await judging) == ["wrong_answer"]


def test_a_checker_program_that_is_no_python_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checker\.code is no Python: .*line 2"):
        asked({"stdin": "4"}, checker={"kind": "program", "code": "import json\nprint(json"})


@pytest.mark.asyncio
async def test_a_checker_program_that_could_not_be_run_is_a_failure_of_ours() -> None:
    async def behave(request: RunRequest) -> RunResult:
        return ended("sandbox_error", "no slot") if request.code == "checker" else printed("out")

    result = await judged(TwinPool(behave), asked({"expected": "7"}, checker={"kind": "program", "code": "checker"}))
    assert (result.verdict, result.reason) == ("sandbox_error", "test 0: the checker could not be run: no slot")


# ---- requests that mean nothing


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asked(), "tests: is empty; give at least one"),
        (asked({"stdin": "1"}), "tests.0.expected: is missing; only the checker kind program judges without it"),
        (asked(ONE, call(1)), "tests.1: all tests of a request either call a function or give stdin; split the request"),
        (
            asked(call(1) | {"expected": "1"}),
            "tests.0: has a call, so that stdin and expected mean nothing; expected belongs into the call",
        ),
        (asked(call(1, function="a b")), "tests.0.call.function: is 'a b'; name a function, or Class.method"),
        (asked(ONE, checker={"kind": "program"}), "checker.code: goes with checker.kind program, and with no other; the kind is program"),
        (asked(ONE, checker={"code": "x"}), "checker.code: goes with checker.kind program, and with no other; the kind is tokens"),
        (
            asked(call(1), language="cpp"),
            "language: is cpp, and functions are called in python and javascript only; give stdin and expected",
        ),
        (asked(call(float("nan"))), "tests.0.call: holds NaN or an infinity, which JSON has not; use finite numbers"),
        (
            asked(call(1), call([1], arguments=[{"a": float("inf")}])),
            "tests.1.call: holds NaN or an infinity, which JSON has not; use finite numbers",
        ),
        (asked(call(1), files={"submission.py": ""}), "files: submission.py is where the submission itself goes; choose another name"),
    ],
)
def test_a_request_that_means_nothing_is_refused_by_one_line(request_: JudgeRequest, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared whole
        check(request_)
    assert str(refused.value) == message


def test_what_a_parquet_file_holds_is_taken_for_the_json_that_it_becomes() -> None:
    check(asked(call(datetime.date(2026, 1, 1), arguments=[Decimal("1.5")])))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e-9"])
@pytest.mark.parametrize("field", ["absolute", "relative"])
def test_a_tolerance_that_takes_everything_or_nothing_is_refused(field: str, number: str) -> None:
    with pytest.raises(ValueError, match=f"{field}\n  Input should be"):
        Checker.model_validate_json(f'{{"kind": "float", "{field}": {number}}}')
