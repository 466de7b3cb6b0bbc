"""Honest submissions in the real sandbox: what should pass passes, and what fails is told apart."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.sandbox.real import judged, real_service
from tests.sandbox.sandbox import descendants, only

from rljob.sandbox.pool import Pool, PoolSettings
from rljob.sandbox.service import Service
from rljob.wire.sandbox import RunRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

SQUARES = [{"stdin": str(n), "expected": str(n * n)} for n in (0, 3, 12)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    """The real thing."""
    async with real_service() as made:
        yield made


PROGRAMS = {
    "python": "print(int(input()) ** 2)",
    "c": '#include <stdio.h>\nint main(void) { long n; scanf("%ld", &n); printf("%ld\\n", n * n); }',
    "cpp": "#include <iostream>\nint main() { long n; std::cin >> n; std::cout << n * n << std::endl; }",
    "javascript": "const n = Number(require('fs').readFileSync(0, 'utf8')); console.log(n * n)",
    "bash": "read n; echo $((n * n))",
    "java": "import java.util.Scanner;\npublic class Main { public static void main(String[] a) "
    "{ long n = new Scanner(System.in).nextLong(); System.out.println(n * n); } }",
    "rust": "use std::io;\nfn main() { let mut s = String::new(); io::stdin().read_line(&mut s).unwrap(); "
    'let n: i64 = s.trim().parse().unwrap(); println!("{}", n * n); }',
}
"""Go is in test_go.py."""


@pytest.mark.parametrize("language", only(*PROGRAMS))
async def test_a_program_that_solves_the_problem_passes_in(service: Service, language: str) -> None:
    result = await judged(service, language=language, code=PROGRAMS[language], tests=SQUARES)
    assert (result.verdict, result.passed, result.total) == ("passed", 3, 3), result
    assert all(case.wall_seconds > 0 for case in result.cases)


FUNCTIONS = {
    ("python", "a function"): ("solve", "def solve(a, b):\n    print('thinking')\n    return {'sum': a + b, 'pair': (a, b)}"),
    ("python", "a method"): ("Solution.solve", "class Solution:\n    def solve(self, a, b): return {'sum': a + b, 'pair': [a, b]}"),
    ("python", "a lambda that prints into descriptors"): (
        "solve",
        "import os\nsolve = lambda a, b: (os.write(1, b'noise'), {'sum': a + b, 'pair': [a, b]})[1]",
    ),
    ("python", "a function of a dataclass, with imports"): (
        "solve",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Sum:\n    sum: int\n"
        "def solve(a, b):\n    return vars(Sum(a + b)) | {'pair': [a, b]}",
    ),
    ("javascript", "a function"): ("solve", "function solve(a, b) { console.log('thinking'); return { sum: a + b, pair: [a, b] } }"),
    ("javascript", "a constant"): ("solve", "const solve = (a, b) => ({ sum: a + b, pair: [a, b] })"),
    ("javascript", "an export that takes its time"): (
        "solve",
        "module.exports.solve = async (a, b) => { await null; return { sum: a + b, pair: [a, b] } }",
    ),
    ("javascript", "a method"): ("Solution.solve", "class Solution { solve(a, b) { return { sum: a + b, pair: [a, b] } } }"),
}


@pytest.mark.parametrize(("language", "kind"), FUNCTIONS)
async def test_a_right_answer_passes_if_it_is_given_by(service: Service, language: str, kind: str) -> None:
    name, code = FUNCTIONS[language, kind]
    tests = [
        {"call": {"function": name, "arguments": arguments, "expected": {"sum": sum(arguments), "pair": arguments}}}
        for arguments in ([1, 2], [-5, 5])
    ]
    result = await judged(service, language=language, code=code, tests=tests)
    assert (result.verdict, result.passed) == ("passed", 2), result


CHECKER = """
import json, sys
given = json.load(sys.stdin)
a, b = map(int, given["output"].split())
print(json.dumps({"accept": a * b == int(given["input"]) and 1 < a < int(given["input"]), "reason": f"{a} x {b}"}))"""


async def test_a_checker_program_accepts_any_right_answer_and_says_why_not(service: Service) -> None:
    tests = [{"stdin": "35"}, {"stdin": "49"}]
    checker = {"kind": "program", "code": CHECKER}
    solution = "n = int(input())\nf = next(f for f in range(2, n) if n % f == 0)\nprint(f, n // f)"
    right = await judged(service, language="python", code=solution, tests=tests, checker=checker)
    assert right.verdict == "passed", right
    wrong = await judged(service, language="python", code="print(1, input())", tests=tests, checker=checker)
    assert (wrong.verdict, wrong.cases[0].reason) == ("wrong_answer", "1 x 35")


async def test_floats_pass_within_the_tolerance(service: Service) -> None:
    tests = [{"expected": "3.14159265 done"}]
    code = "import math; print(math.pi, 'done')"
    assert (await judged(service, language="python", code=code, tests=tests, checker={"kind": "float"})).verdict == "passed"
    assert (await judged(service, language="python", code=code, tests=tests)).verdict == "wrong_answer"


@pytest.mark.parametrize("value", ["0 / 0", "[1, -Infinity]", "Promise.resolve({ a: NaN })"])
async def test_what_javascript_cannot_write_as_json_is_not_taken_for_null(service: Service, value: str) -> None:
    tests = [{"call": {"function": "f", "expected": expected}} for expected in (None, [1, None], {"a": None})]
    asked = {"language": "javascript", "tests": tests, "stop_at_first_failure": False}
    result = await judged(service, code=f"function f() {{ return {value} }}", **asked)
    assert (result.verdict, result.passed) == ("runtime_error", 0), result
    assert "which is no JSON" in result.reason


FAILURES = {
    "an exception": ("python", "1 / 0", "runtime_error"),
    "an exception in JavaScript": ("javascript", "null.x", "runtime_error"),
    "a syntax error": ("python", "print(", "runtime_error"),
    "a loop without end": ("python", "while True: pass", "time_limit"),
    "sleep": ("python", "import time; time.sleep(60)", "wall_limit"),
    "too much memory": ("python", "x = b'x' * (1 << 30)", "memory_limit"),
    "too much output": ("python", "while True: print('x' * 1000)", "output_limit"),
    "a wrong answer": ("python", "print(1)", "wrong_answer"),
    "what does not compile": ("c", "int main(void) { return }", "compile_error"),
    "a crash": ("c", "int main(void) { return *(volatile int *)0; }", "runtime_error"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_submission_is_told_that_it_failed_by(service: Service, failure: str) -> None:
    language, code, verdict = FAILURES[failure]
    limits = {"cpu_seconds": 0.5, "wall_seconds": 1.0 if failure == "sleep" else 10.0, "memory_mb": 64, "output_kb": 16}
    result = await judged(service, language=language, code=code, tests=[{"stdin": "", "expected": "2"}], limits=limits)
    assert result.verdict == verdict, result
    assert (result.passed, result.reason != "") == (0, True)
    assert "exception" not in failure or "Error: " in result.reason, "it is said which one"


async def test_what_the_compiler_said_is_part_of_the_answer(service: Service) -> None:
    result = await judged(service, language="c", code="int main(void) { return nothing; }", tests=SQUARES)
    assert result.compile is not None
    assert "nothing" in result.compile.stderr


async def test_an_input_and_an_output_of_some_size_go_through(service: Service) -> None:
    text = "\n".join(str(n) for n in range(100_000))
    result = await judged(service, language="python", code="import sys; print(sys.stdin.read())", tests=[{"stdin": text, "expected": text}])
    assert result.verdict == "passed", result.reason


async def test_a_pool_that_is_stopped_while_a_run_is_being_cancelled_makes_no_slot_anew() -> None:
    pool = Pool(PoolSettings(slots=1))
    await pool.start()
    before = asyncio.all_tasks()
    running = asyncio.create_task(pool.run(RunRequest(language="python", code="while True: pass")))
    await asyncio.wait({running}, timeout=0.2)
    running.cancel()
    await pool.stop()
    await asyncio.gather(running, return_exceptions=True)
    assert asyncio.all_tasks() <= before, "a slot is being made for nobody"


async def test_a_built_file_that_the_kernel_refuses_is_wrong_and_no_failure_of_ours(service: Service) -> None:
    refused = '__asm__(".pushsection .interp,\\"a\\"; .ascii \\"x\\"; .popsection");\nint main(void) { return 0; }'
    result = await judged(service, language="c", code=refused, tests=SQUARES)
    assert (result.verdict, "Exec format error" in result.reason) == ("runtime_error", True), result


@pytest.mark.parametrize("language", only("rust"))
async def test_a_library_instead_of_a_program_does_not_compile_and_is_no_failure_of_ours(service: Service, language: str) -> None:
    result = await judged(service, language=language, code='#![crate_type = "lib"]\npub fn f() {}', tests=SQUARES)
    reason = "the compiler made no program build/main: the code is a library, perhaps"
    assert (result.verdict, result.reason) == ("compile_error", reason), result


@pytest.mark.parametrize("moment", [0.0, 0.003, 0.03, 0.1, 0.3])
async def test_a_pool_that_is_stopped_while_a_slot_is_made_anew_leaves_nothing(moment: float) -> None:
    before = descendants(os.getpid())
    pool = Pool(PoolSettings(slots=1, retire_after=1))
    await pool.start()
    await pool.run(RunRequest(language="python", code="print(1)"))
    await asyncio.sleep(moment)
    slots = list(pool._all.values())
    await pool.stop()
    assert [folder for folder in pool._parents.parents.values() if folder.exists()] == []
    assert [slot._process for slot in slots] == [None] * len(slots)  # type: ignore[attr-defined]
    assert descendants(os.getpid()) == before
