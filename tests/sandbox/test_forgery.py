"""Attacks on the verdict. Each is a submission that was not written to solve anything, named by what it tries; none may pass.

The expected output is random for every judgement and known to the judge alone, but an attack knows what it looks like (`PATTERN`), so
whatever leaks it anywhere is found. After every attack an honest submission passes in the same slots.
"""

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.sandbox.forgeries import CALLS, CARELESS, CHECKER, ECHOING, NEAR, OTHERS, OUTPUTS, PATTERN, PRINTS, SCRIPTS
from tests.sandbox.real import judged, real_service
from tests.sandbox.sandbox import HERE, only

from rljob.sandbox.languages import TABLE
from rljob.sandbox.pool import Pool, PoolSettings
from rljob.sandbox.service import Service
from rljob.wire.sandbox import JudgeResult

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = {"cpu_seconds": 2, "wall_seconds": 5}


def secret() -> str:
    return f"forge-{secrets.token_hex(16)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    """The real thing."""
    async with real_service() as made:
        yield made


async def attacked(service: Service, **request: Any) -> JudgeResult:
    """All tests of a submission, with little patience."""
    return await judged(service, limits=LIMITS, stop_at_first_failure=False, **request)


async def assert_worthless(service: Service, result: JudgeResult) -> None:
    """Nothing passed, for a reason that is the submission's own; and the service goes on."""
    assert result.passed == 0, result
    assert result.verdict not in ("passed", "sandbox_error"), result
    honest = await judged(service, language="python", code="print(int(input()) ** 2)", tests=[{"stdin": "12", "expected": "144"}])
    assert honest.verdict == "passed", honest
    assert service.pool.slots_rebuilt == 0, "a slot was lost"


# ---- standard output


@pytest.mark.parametrize("checker", ["exact", "tokens", "float"])
@pytest.mark.parametrize("attack", PRINTS)
async def test_no_reward_for_a_program_that(service: Service, attack: str, checker: str) -> None:
    code = PRINTS[attack]
    tests = [{"stdin": "1", "expected": secret()}, {"stdin": "2", "expected": secret()}]
    result = await attacked(service, language="python", code=code, tests=tests, checker={"kind": checker})
    await assert_worthless(service, result)


# ---- function calls


@pytest.mark.parametrize("attack", CALLS)
async def test_no_reward_for_a_function_that(service: Service, attack: str) -> None:
    tests = [{"call": {"function": "solve", "arguments": [n], "expected": expected}} for n, expected in ((1, secret()), (2, [secret()]))]
    result = await attacked(service, language="python", code=CALLS[attack], tests=tests)
    await assert_worthless(service, result)


async def test_infinity_is_not_within_the_tolerance_of_a_checker_program(service: Service) -> None:
    code = (
        'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b"1e999"); os._exit(0)\n    except OSError: pass\ndef solve(x): return 1'
    )
    tests = [{"call": {"function": "solve", "arguments": [1], "expected": 5}}]
    result = await attacked(service, language="python", code=code, tests=tests, checker={"kind": "program", "code": NEAR})
    await assert_worthless(service, result)


async def test_a_truth_value_is_no_number_and_the_other_way_round(service: Service) -> None:
    tests = [{"call": {"function": "solve", "arguments": [v], "expected": e}} for v, e in ((True, 1), (1, True), (0, False), (0, None))]
    await assert_worthless(service, await attacked(service, language="python", code="def solve(x): return x", tests=tests))


# ---- other languages


async def test_every_language_has_an_attack_on_the_verdict() -> None:
    assert {"python", *(language for language, _ in OTHERS)} == {row.name for row in TABLE}


@pytest.mark.parametrize(("language", "attack"), [key for key in OTHERS if key[0] in only(*HERE) and key[0] != "go"])  # see test_go
async def test_no_reward_for_a_program_in(service: Service, language: str, attack: str) -> None:
    tests = [{"stdin": "1", "expected": secret()}]
    await assert_worthless(service, await attacked(service, language=language, code=OTHERS[language, attack], tests=tests))


@pytest.mark.parametrize("attack", SCRIPTS)
async def test_no_reward_for_a_javascript_function_that(service: Service, attack: str) -> None:
    tests = [{"call": {"function": "solve", "arguments": [1], "expected": secret()}}]
    result = await attacked(service, language="javascript", code=SCRIPTS[attack], tests=tests)
    await assert_worthless(service, result)


# ---- checker programs


@pytest.mark.parametrize("attack", OUTPUTS)
@pytest.mark.parametrize("checker", [CHECKER, CARELESS], ids=["a careful checker", "a careless checker"])
async def test_no_reward_from_a_checker_program_for_output_that_is(service: Service, checker: str, attack: str) -> None:
    tests = [{"stdin": "1", "expected": str(secrets.randbits(100))}]
    request = {"language": "python", "code": OUTPUTS[attack], "tests": tests, "checker": {"kind": "program", "code": checker}}
    await assert_worthless(service, await attacked(service, **request))


async def test_a_checker_that_echoes_the_output_cannot_be_made_to_accept_or_to_fail_by_it(service: Service) -> None:
    code = """print('{"accept": true}', end="")"""
    tests = [{"expected": secret()}]
    checker = {"kind": "program", "code": ECHOING}
    result = await attacked(service, language="python", code=code, tests=tests, checker=checker)
    await assert_worthless(service, result)


async def test_a_submission_cannot_leave_anything_for_the_checker_that_runs_after_it(service: Service) -> None:
    code = """
import os
for name in ("json.py", "sys.py", "/tmp/json.py", "/tmp/work/json.py", "usercustomize.py", "sitecustomize.py", "main.py"):
    try: open(name, "w").write("print('{\\"accept\\": true}'); import os; os._exit(0)")
    except OSError: pass
print("x")"""
    tests = [{"stdin": str(i), "expected": secret()} for i in range(4)]
    result = await attacked(service, language="python", code=code, tests=tests, checker={"kind": "program", "code": CHECKER})
    await assert_worthless(service, result)


# ---- files of the submission


async def test_files_beside_a_submission_cannot_take_the_place_of_the_harnesss_modules(service: Service) -> None:
    forged = "def dumps(*a, **k): return '\"passed\"'\ndef loads(*a, **k): return {'function': 'solve', 'arguments': []}\n"
    files = {"json.py": forged, "os.py": forged, "sitecustomize.py": "print('\"passed\"')", "usercustomize.py": "print('\"passed\"')"}
    tests = [{"call": {"function": "solve", "arguments": [1], "expected": secret()}}]
    result = await attacked(service, language="python", code="def solve(x): return 1", files=files, tests=tests)
    await assert_worthless(service, result)


async def test_the_tests_of_a_request_are_strangers_to_each_other(service: Service) -> None:
    code = f"""
import glob, re
text = input()
for name in glob.glob("/tmp/**", recursive=True) + glob.glob("/dev/shm/*"):
    try: text += open(name).read()
    except (OSError, ValueError): pass
open("/tmp/mine", "w").write(text)
print(" ".join(sorted(set(re.findall("{PATTERN}", text)))))"""
    inputs = [secret() for _ in range(8)]
    result = await attacked(service, language="python", code=code, tests=[{"stdin": text, "expected": text} for text in inputs])
    assert result.passed == 8, result


async def test_the_pattern_that_attacks_look_for_is_that_of_the_secret() -> None:
    assert re.fullmatch(PATTERN, secret())


async def test_slots_that_are_made_while_the_judge_knows_the_answer_do_not_know_it() -> None:
    pool = Pool(PoolSettings(slots=1, retire_after=1))
    await pool.start()
    try:
        tests = [{"stdin": str(n), "expected": secret()} for n in range(4)]
        for attack in ("reads the expected output from its own memory", "reads the expected output from its own interpreter"):
            result = await attacked(Service(pool, capacity=1), language="python", code=PRINTS[attack], tests=tests)
            assert (result.passed, result.verdict) == (0, "wrong_answer"), result
    finally:
        await pool.stop()
