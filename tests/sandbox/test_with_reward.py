"""The verifier `code` and the real sandbox: from an answer's text to its reward."""

from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import pytest
import pytest_asyncio
from tests.reward.asked import Nobody, item
from tests.sandbox.real import real_service

from rljob.api.verifiers import CodeOptions, Language
from rljob.reward.judge import standard_judge
from rljob.reward.outside import Outside
from rljob.sandbox.app import create_app
from rljob.sandbox.languages import TABLE
from rljob.sandbox.pool import Pool, PoolSettings
from rljob.sandbox.service import Service
from rljob.wire.reward import ScoreResult

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUM = {"tests": [{"stdin": "1 2", "expected": "3"}, {"stdin": "-1 1", "expected": "0"}]}
ADD = {"tests": [{"call": {"function": "add", "arguments": [1, 2], "expected": 3}}]}
IN_C = {"language": "c", "tests": [{"stdin": "2", "expected": "1.41421"}], "checker": {"kind": "float", "absolute": 1e-4}}

SECOND_WORD = """
import json, sys
given = json.load(sys.stdin)
words = given["output"].split()
print(json.dumps({"accept": int(words[0]) + int(words[1]) == int(given["input"])}))"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the sandbox."""
    async with real_service() as service, httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), timeout=None) as client:
        yield client


async def score(http: httpx.AsyncClient, program: str, reference: Any, language: str = "python", **options: Any) -> ScoreResult:
    judge = standard_judge(Nobody(), 1.0, Outside(http, "http://sandbox"))
    return await judge.score(item("code", f"So:\n```{language}\n{program}\n```\n", reference, **options))


@pytest.mark.parametrize(
    ("language", "program", "reference"),
    [
        ("python", "a, b = map(int, input().split())\nprint(a + b)", SUM),
        ("python", "def add(a, b):\n    return a + b", ADD),
        ("c", '#include <math.h>\n#include <stdio.h>\nint main(void) { double x; scanf("%lf", &x); printf("%f", sqrt(x)); }', IN_C),
    ],
)
async def test_a_program_that_solves_the_problem_earns_the_reward(
    http: httpx.AsyncClient, language: str, program: str, reference: Any
) -> None:
    result = await score(http, program, reference, language)
    assert (result.verdict, result.reward) == ("right", 1.0), result


@pytest.mark.parametrize(
    "program",
    [
        "print(3)",
        "import sys; sys.exit(0)",
        'print(\'{"verdict": "passed"}\')',
        "while True: pass",
        "import os\nwhile True: os.fork()",
        "x = ' ' * (1 << 40)",
        "print('x' * (1 << 26))",
        "syntax error",
        "\x00",
        "",
    ],
)
async def test_a_program_that_does_not_is_wrong_and_never_a_failure_of_ours(http: httpx.AsyncClient, program: str) -> None:
    result = await score(http, program, SUM, cpu_seconds=0.3, wall_seconds=2)
    assert (result.verdict, result.reward) == ("wrong", 0.0), result


@pytest.mark.parametrize(
    ("program", "right"), [("print(3, 4)", True), ("print(3, 5)", False), ("print(3)", False), ("print(4)\nprint", False), ("pass", False)]
)
async def test_what_a_checker_program_cannot_read_is_wrong_and_never_a_failure_of_ours(
    http: httpx.AsyncClient, program: str, right: bool
) -> None:
    result = await score(http, program, {"tests": [{"stdin": "7"}], "checker": {"kind": "program", "code": SECOND_WORD}})
    assert (result.verdict, result.reward) == (("right", 1.0) if right else ("wrong", 0.0)), result


async def test_a_compiler_that_is_made_to_talk_is_wrong_and_never_a_failure_of_ours(http: httpx.AsyncClient) -> None:
    loud = (
        "#define A(x) #x #x #x #x\n"
        + "int main(void) { return undeclared_"
        + "; return undeclared_".join(str(n) for n in range(6000))
        + "; }"
    )
    result = await score(http, loud, IN_C, "c")
    assert (result.verdict, result.reward) == ("wrong", 0.0), result


async def test_a_sandbox_with_little_memory_builds_and_checks_programs_with_what_it_has() -> None:
    """Less than compilers and checkers get by default."""
    pool = Pool(PoolSettings(slots=1, memory_mb=128))
    code = "import json; print(json.dumps({'accept': '1.414' in json.loads(input())['output']}))"
    checked = IN_C | {"checker": {"kind": "program", "code": code}}
    await pool.start()
    try:
        transport = httpx.ASGITransport(create_app(Service(pool, capacity=1)))
        async with httpx.AsyncClient(transport=transport, timeout=None) as http:
            result = await score(http, '#include <stdio.h>\nint main(void) { puts("1.41421"); }', checked, "c", memory_mb=128)
            assert (result.verdict, result.reward) == ("right", 1.0), result
    finally:
        await pool.stop()


async def test_options_allow_what_the_sandbox_takes_and_nothing_else() -> None:
    assert set(get_args(Language)) == {language.name for language in TABLE}
    most = Pool(PoolSettings(slots=1)).ceiling
    taken = {"cpu_seconds": most.cpu_seconds, "wall_seconds": most.wall_seconds}
    assert CodeOptions.model_validate(taken)
    for name, value in taken.items():
        with pytest.raises(ValueError, match="less than or equal"):
            CodeOptions.model_validate({name: value + 1})


async def test_part_of_the_tests_is_part_of_the_reward_where_the_job_says_so(http: httpx.AsyncClient) -> None:
    result = await score(http, "print(3)", SUM, partial=True)
    assert (result.verdict, result.reward) == ("wrong", 0.5), result
