"""A submission against tests. Here, outside the sandbox, outputs meet what was expected of them; inside there is only one test's input.

What passes: the program ended by itself with exit status 0 within its limits, its whole output was kept, and the comparison finds no
difference. A status of ours (`sandbox_error`) makes the whole verdict one of ours: a count that lacks a test is no reward.
"""

import asyncio
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic_core import from_json

from rljob.sandbox.checkers import compare_text, compare_value
from rljob.sandbox.harness import HARNESSES, call_text
from rljob.sandbox.isolation import Program
from rljob.wire.sandbox import (
    Case,
    Checker,
    JudgeRequest,
    JudgeResult,
    Output,
    RunRequest,
    RunResult,
    Status,
    Test,
    check_finite,
    check_tests,
)

Verdict = Literal["passed", "wrong_answer"] | Status
_LONG = 1 << 16
"""Characters; longer outputs are compared in a thread, so that the service answers others meanwhile."""
_BRIEFEST = 0.01
"""Wall seconds of a test that another one beside it has left nothing."""
_LONGEST_REASON = 300
_REASONS = 100
"""Of so many tests at most the reason is sent back: programs write them, and whoever asks takes no answer of any length."""
_BELOW = re.compile(r"\s+(at |\w+: )|\s*[\]}],?$|Require stack:$|- /|Node\.js v")
"""A line that says where the error was or what else is known of it, or whose interpreter says so."""
_TAIL = 1 << 14
"""Characters of a standard error in which the error is looked for."""
_COMPILER_SAYS = 8192
"""Characters of a compiler's output that are sent back; a submission can make it megabytes long."""


class CheckerFault(Exception):
    """A checker program ends without a verdict whatever it is asked about: the request is to blame, not the submission."""


class Turns(Protocol):
    """Slots for the runs of one request."""

    @property
    def free(self) -> int:
        """Slots that nobody holds or waits for."""
        ...

    async def build(self, request: RunRequest) -> Program:
        """Compile, in a slot."""
        ...

    async def run(self, request: RunRequest) -> RunResult:
        """Run, in a slot."""
        ...

    async def run_program(self, program: Program, request: RunRequest, stdin: str, left: Callable[[], float]) -> RunResult:
        """Run what was built of a request, in a slot, for no longer than are `left` once it has one."""
        ...


def program_of(request: JudgeRequest) -> RunRequest:
    """What is built and run for each test; without any test in it."""
    code, files = request.code, dict(request.files)
    if any(test.call for test in request.tests):
        harness = HARNESSES[request.language]
        files[harness.submission] = code
        code = harness.main
    return RunRequest(language=request.language, code=code, files=files, limits=request.limits, compile_limits=request.compile_limits)


def check(request: JudgeRequest) -> RunRequest:
    """Whether a request means something; its program.

    Raises:
        ValueError: it does not; one line that names the field.
    """
    check_tests(request)
    return program_of(request)


@dataclass
class Judge:
    """Judges one request."""

    turns: Turns
    request: JudgeRequest
    taken: float = 0.0
    """Wall seconds of all runs so far, those of the checker too."""

    async def judge(self) -> JudgeResult:
        """The verdict.

        Raises:
            CheckerFault: its checker program does not work.
        """
        asked, total = program_of(self.request), len(self.request.tests)
        program = await self.turns.build(asked)
        try:
            said = _shortened(program.compile)
            if said is not None and said.status != "ok":
                return JudgeResult(verdict=said.status, passed=0, total=total, cases=(), compile=said, reason=said.reason)
            cases = await self._cases(program, asked)
        finally:
            await program.close()
        verdict, reason = _verdict(cases)
        passed = sum(case.verdict == "passed" for case in cases)
        return JudgeResult(verdict=verdict, passed=passed, total=total, cases=_brief(cases), compile=said, reason=reason)

    async def _cases(self, program: Program, asked: RunRequest) -> list[Case]:
        """All tests, or all up to the first that does not pass. One at a time, more only in slots that are free anyway."""
        done: dict[int, Case | CheckerFault] = {}
        running: dict[asyncio.Task[Case | CheckerFault], int] = {}
        begun, end = 0, len(self.request.tests)
        try:
            while begun < end or running:
                if self._left() <= 0:
                    done |= {index: self._unrun() for index in range(begun, end)}
                    begun = end
                for index in range(begun, min(end, begun + max(self.turns.free, 0 if running else 1))):
                    running[asyncio.create_task(self._case(program, asked, index))] = index
                    begun = index + 1
                if not running:
                    break
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    index = running.pop(task)
                    done[index] = case = task.result()
                    if isinstance(case, CheckerFault) or (case.verdict != "passed" and self.request.stop_at_first_failure):
                        end = min(end, index + 1)
                for task in [task for task, index in running.items() if index >= end]:
                    task.cancel()
                    del running[task]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        cases: list[Case] = []
        for index in range(end):
            case = done[index]
            if isinstance(case, CheckerFault):  # told only now: how many slots are idle decides nothing about an earlier test that fails
                raise case
            cases.append(case)
        return cases

    def _left(self) -> float:
        """Wall seconds: whoever asks waits for so long and no longer, whatever one test may take by itself."""
        return math.inf if self.request.total_wall_seconds is None else self.request.total_wall_seconds - self.taken

    def _unrun(self) -> Case:
        total = self.request.total_wall_seconds
        return Case(verdict="wall_limit", reason=f"not begun: the tests before it took all of total_wall_seconds ({total:g})")

    async def _case(self, program: Program, asked: RunRequest, index: int) -> Case | CheckerFault:
        test = self.request.tests[index]
        stdin = test.stdin if test.call is None else call_text(test.call)
        result = await self.turns.run_program(program, asked, stdin, lambda: max(_BRIEFEST, self._left()))
        run = result.run
        self.taken += run.wall_seconds if run is not None else 0.0
        try:
            verdict, reason = await self._judged(result, test, index)
        except CheckerFault as fault:
            return fault
        if run is None:
            return Case(verdict=verdict, reason=reason)
        total = self.request.total_wall_seconds
        if verdict == "wall_limit" and total is not None and run.wall_seconds < self.request.limits.wall_seconds:
            reason = f"not done when total_wall_seconds ({total:g}) were over"
        return Case(verdict=verdict, wall_seconds=run.wall_seconds, cpu_seconds=run.cpu_seconds, memory_mb=run.memory_mb, reason=reason)

    async def _judged(self, result: RunResult, test: Test, index: int) -> tuple[Verdict, str]:
        """Verdict and reason of one run."""
        run = result.run
        if run is None:
            return "sandbox_error" if result.status == "ok" else result.status, result.reason
        if result.status != "ok":
            reason = result.reason or run.reason
            return result.status, f"{reason}: {_last_line(run)}"[:_LONGEST_REASON] if result.status == "runtime_error" else reason
        if run.exit_code != 0:
            return "runtime_error", f"ended with exit status {run.exit_code}"
        if run.truncated:
            return "output_limit", "wrote more than is kept; raise limits.output_kb"
        if test.call is not None:
            try:
                found, expected = from_json(run.stdout, allow_inf_nan=False), test.call.expected
                check_finite(found)  # 1e999 is JSON, and read as infinity, which is within many a tolerance
            except ValueError:
                return "runtime_error", "ended before the function returned, or returned what is no JSON"
        else:
            found, expected = run.stdout, test.expected
        checker = self.request.checker
        if checker.kind == "program":
            return await self._ask_program(test, found, expected, index)
        compare: Callable[[Checker, Any, Any], str] = compare_value if test.call is not None else compare_text
        if len(run.stdout) > _LONG:
            difference = await asyncio.to_thread(compare, checker, found, expected)
        else:
            difference = compare(checker, found, expected)
        return ("wrong_answer", difference) if difference else ("passed", "")

    async def _ask_program(self, test: Test, found: Any, expected: Any, index: int) -> tuple[Verdict, str]:
        """The checker program's word. If it ends without one, it is asked about outputs of our own: where it gives a verdict or ends in any
        other way, the output is to blame. Otherwise a policy could stop its own training by what no checker can read."""
        said = await self._checked(test, found, expected)
        if isinstance(said, _Said):
            return ("passed", "") if said.accept else ("wrong_answer", said.reason)
        if said.status == "sandbox_error":
            return "sandbox_error", f"the checker could not be run: {said.reason}"
        for control in (expected, *(_TEXTS if test.call is None else _VALUES)):
            other = await self._checked(test, control, expected)
            if isinstance(other, RunResult) and other.status == "sandbox_error":
                return "sandbox_error", f"the checker could not be run: {other.reason}"
            if isinstance(other, _Said) or _how(other) != _how(said):
                return "wrong_answer", f"the checker ended on this output: {_how(said)}"
        raise CheckerFault(
            f"checker.code: does not work with test {index} ({_how(said)}, whatever the output is); it prints one JSON object with a truth "
            "value `accept`"
        )

    async def _checked(self, test: Test, found: Any, expected: Any) -> "_Said | RunResult":
        asked = test.stdin if test.call is None else {"function": test.call.function, "arguments": test.call.arguments}
        stdin = json.dumps({"input": asked, "output": found, "expected": expected})
        assert self.request.checker.code is not None
        result = await self.turns.run(RunRequest(language="python", code=self.request.checker.code, stdin=stdin))
        self.taken += result.run.wall_seconds if result.run is not None else 0.0
        return (_said(result.run.stdout) if result.status == "ok" and result.run is not None else None) or result


_TEXTS: Sequence[Any] = (None, "", "0", "0 0")
_VALUES: Sequence[Any] = (None, 0, "", [], {})
"""Outputs of programs and of functions that have little in common (no text is None): a checker that only cannot read an output does not end
in the very same way on each of them."""


@dataclass(frozen=True)
class _Said:
    """What a checker program printed."""

    accept: bool
    reason: str


def _said(stdout: str) -> _Said | None:
    try:
        said = from_json(stdout)
    except ValueError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("accept"), bool):
        return None
    return _Said(said["accept"], str(said.get("reason", ""))[:_LONGEST_REASON])


def _shortened(output: Output | None) -> Output | None:
    if output is None:
        return None
    long = max(len(output.stdout), len(output.stderr)) > _COMPILER_SAYS
    short = {"stdout": output.stdout[:_COMPILER_SAYS], "stderr": output.stderr[:_COMPILER_SAYS], "truncated": output.truncated or long}
    return output.model_copy(update=short)


def _brief(cases: Sequence[Case]) -> tuple[Case, ...]:
    told = itertools.count()
    return tuple(case if not case.reason or next(told) < _REASONS else case.model_copy(update={"reason": ""}) for case in cases)


def _how(result: RunResult) -> str:
    if result.status == "ok":
        return "no verdict in what it printed"
    return ((result.run and _last_line(result.run)) or result.reason or result.status)[:_LONGEST_REASON]


def _last_line(run: Output) -> str:
    """Of its standard error: where interpreters say what went wrong, but for what Node.js and Java write below that."""
    lines = reversed(run.stderr[-_TAIL:].split("\n"))
    return next((line.strip() for line in lines if line.strip() and _BELOW.match(line) is None), "")


def _verdict(cases: Sequence[Case]) -> tuple[Verdict, str]:
    """That of the first test that could not be run, else of the first that did not pass."""
    failed = [index for index, case in enumerate(cases) if case.verdict != "passed"]
    ours = [index for index in failed if cases[index].verdict == "sandbox_error"]
    for index in (ours or failed)[:1]:
        return cases[index].verdict, f"test {index}: {cases[index].reason or cases[index].verdict}"
    return "passed", ""
