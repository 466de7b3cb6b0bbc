"""Tests for code problems: which inputs become tests, which problems are kept; no program of a problem runs outside the sandbox."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import yaml
from tests.sandbox.real import real_service

from rljob.api import ConfigurationError
from rljob.api.sources import DataSource
from rljob.api.testcases import TestCaseGeneration
from rljob.api.verifiers import CodeOptions
from rljob.curate.testcases.majority import decide, same
from rljob.curate.testcases.problem import Located, Problem, Submission, load, record
from rljob.curate.testcases.programs import Programs, packages
from rljob.curate.testcases.run import Progress, choose, generate, shown
from rljob.prepare.data_sources import load as load_records
from rljob.reward.outside import NoAnswerError, Outside
from rljob.reward.registry import check
from rljob.sandbox.app import create_app
from rljob.sandbox.checkers import compare_text
from rljob.wire.sandbox import Checker, RunRequest, RunResult

EXAMPLE = Path(__file__).parents[2] / "examples" / "testcases" / "problems.yaml"
DOUBLE = {"prompt": "Double it.", "id": "double", "generator": "def generate(case, cases): return str(case)"}
LANGUAGES = {"languages": [{"name": "python", "version": "", "compiled": False, "calls": True}], "limits": {}, "protections": {}}
RIGHT, WRONG = "print(2 * int(input()))", "print(3 * int(input()))"


async def at_once(seconds: float) -> None:
    """A wait that takes no time."""


def spec(**more: Any) -> TestCaseGeneration:
    given = {"source": "in.jsonl", "out": "out.jsonl", "sandbox": "http://sandbox"}
    few = {"cases": 4, "submissions": 3, "agree": 2, "passing": 3, "min_cases": 2}
    return TestCaseGeneration.model_validate(given | few | more)


def outputs(*rows: str) -> Sequence[Sequence[str | None]]:
    """A row for each submission, a sign for each input; `-` where there is no output."""
    return [[None if sign == "-" else sign for sign in row] for row in rows]


@pytest.mark.parametrize(
    ("said", "fate", "tests", "passing"),
    [
        (outputs("abcd", "abcd", "abcd"), "kept", "abcd", 3),
        (outputs("abcd", "abcd", "abcx"), "too few pass", "abcd", 2),
        (outputs("abcd", "abcx", "abcy"), "kept", "abc", 3),
        (outputs("ab--", "abc-", "abcd"), "too few pass", "abc", 2),
        (outputs("aacd", "abcx", "axxy"), "too few pass", "ac", 2),
        (outputs("abcd", "xyzu", "efgh"), "too few tests", "", 0),
        (outputs("aaaa", "aaaa", "aaaa"), "one answer", "aaaa", 3),
        (outputs("----", "----", "----"), "too few tests", "", 0),
    ],
)
def test_the_majority_says_what_is_expected_and_enough_submissions_have_to_agree(
    said: Sequence[Sequence[str | None]], fate: str, tests: str, passing: int
) -> None:
    outcome = decide(["1", "2", "3", "4"], said, "tokens", spec())
    assert (outcome.fate, "".join(expected for _, expected in outcome.tests), outcome.passing) == (fate, tests, passing)


def test_numbers_of_the_paper_are_the_defaults() -> None:
    made = TestCaseGeneration(source="a.jsonl", out="b.jsonl", sandbox="http://s")
    assert (made.cases, made.submissions, made.agree, made.passing, made.min_cases) == (50, 10, 7, 9, 40)


def test_in_training_an_answer_has_the_limits_that_the_submissions_had() -> None:
    made, asked = spec(cases=16, cpu_seconds=12.0, memory_mb=512), list[RunRequest]()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(RunRequest.model_validate_json(await request.aread()))
        return httpx.Response(200, text=RunResult(status="time_limit").model_dump_json())

    async def go() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            await Programs(Outside(http), made).output(Submission(code=RIGHT), "1")

    asyncio.run(go())
    problem = Problem.model_validate({"record": {"prompt": "p"}, "generator": "", "submissions": [RIGHT]})
    options = CodeOptions.model_validate(record(problem, [("1", "2")], made.options).options)
    had = asked[0].limits
    assert (options.cpu_seconds, options.wall_seconds, options.memory_mb) == (had.cpu_seconds, had.wall_seconds, had.memory_mb)
    assert options.total_seconds >= made.cases * made.cpu_seconds


def test_the_sandbox_gives_what_the_slowest_programs_may_take(tmp_path: Path) -> None:
    found = in_sandbox(tmp_path, [DOUBLE | {"submissions": [RIGHT] * 3}], cpu_seconds=12)
    assert found["fates"]["kept"] == 1


def test_what_is_the_same_is_what_the_checker_finds_the_same() -> None:
    spaced = [["a b\n", "c"], ["a  b", "c\n\n"], ["a b \n", "c"]]
    assert decide(["1", "2"], spaced, "tokens", spec()).tests == (("1", "a b"), ("2", "c"))
    assert decide(["1", "2"], spaced, "exact", spec()).fate == "too few pass"


@pytest.mark.parametrize("output", ["a\u3000b\n", "x\u2028y\n", "x\fy \n", "\xa0a\r\n\r\n"])
@pytest.mark.parametrize("checker", ["tokens", "exact"])
def test_what_is_expected_is_what_the_checker_takes_for_the_outputs_themselves(output: str, checker: Literal["tokens", "exact"]) -> None:
    assert compare_text(Checker(kind=checker), output, same(output, checker)) == ""


def test_a_line_may_hold_what_unicode_takes_for_an_end_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text("\ufeff" + json.dumps(DOUBLE | {"prompt": "Double\u2028it.", "submissions": [RIGHT]}, ensure_ascii=False) + "\r\n")
    assert [located.problem.record["prompt"] for located in load(file)] == ["Double\u2028it."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs `prompt`"),
        (DOUBLE, "`submissions`: Field required; a problem has prompt, generator, submissions, checker"),
        (DOUBLE | {"submissions": []}, "`submissions`: Tuple should have at least 1 item"),
        (DOUBLE | {"submissions": [RIGHT], "checker": "float"}, "`checker`: Input should be 'tokens' or 'exact'"),
        (DOUBLE | {"submissions": [RIGHT], "tests": []}, "`tests`: Extra inputs are not permitted"),
        ([], "a problem is an object, this is list"),
    ],
)
def test_a_problem_that_cannot_be_used_is_named_with_its_field(row: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value).startswith("in.jsonl line 1: ")
    assert message in str(caught.value)


def test_two_problems_of_one_id_and_a_file_without_any_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text(yaml.safe_dump([DOUBLE | {"submissions": [RIGHT]}] * 2))
    with pytest.raises(ConfigurationError, match="has the id 'double' 2 times"):
        load(tmp_path / "in.yaml")
    (tmp_path / "in.yaml").write_text("- generator: a\n  generator: b\n")
    with pytest.raises(ConfigurationError, match=r"^IN: .*in\.yaml: line 2: \[0\]\.generator: stands twice"):
        load(tmp_path / "in.yaml")
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(ConfigurationError, match="has no problems"):
        load(tmp_path / "in.jsonl")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "none.jsonl")


def test_the_same_submissions_are_drawn_each_time() -> None:
    problem = Problem.model_validate({"record": {"id": "x"}, "generator": "", "submissions": [str(n) for n in range(9)]})
    drawn = choose(Located("", problem), spec())
    assert len(set(one.code for one in drawn)) == 3
    assert drawn == choose(Located("", problem), spec())


def test_problems_are_not_replaced_by_their_records(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(DOUBLE | {"submissions": [RIGHT] * 3}))
    made = spec(source=str(tmp_path / "in.jsonl"), out=str(tmp_path / "in.jsonl"))
    with pytest.raises(ConfigurationError, match=r"in\.jsonl is read, and would be replaced"):
        asyncio.run(generate(made, Programs(Outside(httpx.AsyncClient()), made), Progress()))
    assert "generator" in (tmp_path / "in.jsonl").read_text()


def in_sandbox(folder: Path, problems: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The report of a run on real slots. `folder` gets in.jsonl, out.jsonl and the report."""
    (folder / "in.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    made = spec(source=str(folder / "in.jsonl"), out=str(folder / "out.jsonl"), **more)

    async def go() -> dict[str, Any]:
        async with real_service() as service, httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), timeout=None) as http:
            return await generate(made, Programs(Outside(http), made), Progress())

    return asyncio.run(go())


def test_the_worked_example_keeps_twenty_problems_and_each_filter_drops_one(tmp_path: Path) -> None:
    rows = yaml.safe_load(EXAMPLE.read_text())
    assert len(rows) == 25
    assert sum("cyaron" in row["generator"] for row in rows) == 6
    found = in_sandbox(tmp_path, rows, cases=8, submissions=5, agree=4, passing=4, min_cases=4)
    dropped = {entry["problem"]: entry["fate"] for entry in found["each"] if entry["fate"] != "kept"}
    assert dropped == {
        "two-wrong": "too few pass",
        "several-answers": "too few tests",
        "always-yes": "one answer",
        "broken-generator": "generator failed",
        "too-few": "too few submissions",
    }
    assert found["fates"]["kept"] == 20
    records = load_records(DataSource(path=str(tmp_path / "out.jsonl")), "OUT", Path(), Path())
    assert [one.record.id for one in records] == [row["id"] for row in rows if row["id"] not in dropped]
    for one in records:
        check("code", one.record.options or {}, one.record.reference, frozenset())
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert {name: report[name] for name in found} == found
    assert shown(found)[0] == f"20 of 25 problems kept, with {found['tests']} tests"


@pytest.mark.parametrize(
    ("generator", "reason"),
    [
        ("raise ValueError('no')", "runtime_error: ValueError: no"),
        ("def generate(case, cases): return 1", "returned something else than a text"),
        ("import os\nos.write(1, b'[' * 400000); os._exit(0)", "returned something else than a text"),
        ("import os\nos.write(1, b'[\"a\"]'); os._exit(0)", "there are 1 inputs, 4 were asked for"),
        ('import os\nos.write(1, b\'["\\\\ud800", "", "", ""]\'); os._exit(0)', "returned something else than a text"),
        ("def generate(case, cases): return 'x' * 300000", "more than 512 KiB in all"),
        ("def generate(case, cases):\n    while True: pass", "time_limit"),
        ("import sys\nprint('\\x1b[31m', file=sys.stderr); sys.exit('\\x1b]0;x')", "runtime_error: ?]0;x"),
    ],
)
def test_whatever_a_generator_does_it_is_a_dropped_problem_with_a_reason(generator: str, reason: str, tmp_path: Path) -> None:
    problem = DOUBLE | {"generator": generator, "submissions": [RIGHT] * 3}
    found = in_sandbox(tmp_path, [problem, DOUBLE | {"id": "good", "submissions": [RIGHT] * 3}], cpu_seconds=0.1)
    (bad, good) = found["each"]
    assert (bad["fate"], good["fate"]) == ("generator failed", "kept")
    assert reason in bad["reason"]


def test_programs_of_a_problem_see_neither_this_machine_nor_each_other(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    spy = f"import os\nopen({str(mark)!r}, 'w')\ndef generate(case, cases): return str(case)"
    found = in_sandbox(tmp_path, [DOUBLE | {"generator": spy, "submissions": [f"open({str(mark)!r}, 'w')"] * 3}])
    assert found["each"][0]["fate"] == "generator failed"
    assert not mark.exists()


def test_a_generator_that_imports_cyaron_gets_its_files_and_they_are_imported_in_the_sandbox_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"import os\nwhere = os.getcwd()\nassert os.getpid() != {os.getpid()}\n"
    for name in ("cyaron", "colorful", "xeger"):
        (tmp_path / "lib" / name / "tests").mkdir(parents=True)
        (tmp_path / "lib" / name / "__init__.py").write_text(mark)
        (tmp_path / "lib" / name / "tests" / "test.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    generator = "from cyaron import where\nimport xeger\ndef generate(case, cases): return str(case) + where[:0]"
    assert sorted(packages(generator)) == ["colorful/__init__.py", "cyaron/__init__.py", "xeger/__init__.py"]
    assert packages("# import cyaron\n") == {}
    found = in_sandbox(tmp_path, [DOUBLE | {"generator": generator, "submissions": [RIGHT] * 3}])
    assert found["each"][0]["fate"] == "kept"


def test_inputs_are_the_same_for_the_same_seed_and_others_for_another(tmp_path: Path) -> None:
    drawing = "import random\ndef generate(case, cases): return str(random.randrange(10 ** 9))"
    problem = DOUBLE | {"generator": drawing, "submissions": [RIGHT, RIGHT, RIGHT]}
    made = []
    for seed in (1, 1, 2):
        in_sandbox(tmp_path, [problem], seed=seed)
        made.append((tmp_path / "out.jsonl").read_text())
    assert made[0] == made[1] != made[2]


def test_what_the_sandbox_lacks_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a submission is in 'cobol'; the sandbox has bash"):
        in_sandbox(tmp_path, [DOUBLE | {"submissions": [{"language": "cobol", "code": ""}]}])
    with pytest.raises(ConfigurationError, match="--memory-mb: is 5000; a program of this sandbox can have 1024 MiB"):
        in_sandbox(tmp_path, [DOUBLE | {"submissions": [RIGHT]}], memory_mb=5000)


@pytest.mark.parametrize(
    ("status", "body"), [(503, "{}"), (200, "{}"), (200, '{"status": "sandbox_error", "reason": "no slot"}'), (429, "{}")]
)
def test_a_sandbox_that_fails_makes_no_test_and_drops_no_problem(status: int, body: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(DOUBLE | {"submissions": [RIGHT, RIGHT, WRONG]}) + "\n")

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=body) if request.method == "POST" else httpx.Response(200, json=LANGUAGES)

    async def go() -> None:
        made = spec(source=str(tmp_path / "in.jsonl"), out=str(tmp_path / "out.jsonl"))
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            await generate(made, Programs(Outside(http, sleep=at_once), made), Progress())

    with pytest.raises(NoAnswerError):
        asyncio.run(go())
    assert not (tmp_path / "out.jsonl").exists()


def test_a_sandbox_that_has_just_been_started_is_waited_for() -> None:
    asked: list[httpx.Request] = []

    async def starting(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) < 4:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, json=LANGUAGES)

    async def go() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(starting)) as http:
            await Programs(Outside(http, sleep=at_once), spec()).check({"python"})

    asyncio.run(go())
    assert len(asked) == 4


def test_an_address_where_no_sandbox_is_gets_one_line(tmp_path: Path) -> None:
    async def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async def go() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(nobody)) as http:
            await Programs(Outside(http, sleep=at_once), spec()).check({"python"})

    with pytest.raises(ConfigurationError, match=r"--sandbox http://sandbox: is no code sandbox .* `rljob sandbox serve` starts one"):
        asyncio.run(go())
