"""Between the reward service (or anybody) and the code sandbox: `POST {sandbox}/v1/run` and `POST {sandbox}/v1/judge`.

Expected outputs never enter a run: they are compared outside, by the service. `sandbox_error` is a failure of ours: the caller tries again,
and it is never a reward.
"""

import ast
import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import from_json, to_json

from rljob.wire.base import Message

Status = Literal[
    "ok",
    "runtime_error",
    "time_limit",
    "wall_limit",
    "memory_limit",
    "output_limit",
    "process_limit",
    "disk_limit",
    "compile_error",
    "sandbox_error",
]


BLANK = " \t\r\n\v\f"
"""White space to every checker; other spaces of Unicode are part of a word."""


_FUNCTION = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*(\.[A-Za-z_$][A-Za-z0-9_$]*)?")
"""A function, or a method of a class that is made without arguments: `solve`, `Solution.solve`."""
CALLED = {"python": "submission.py", "javascript": "submission.js"}
"""Languages whose functions tests can call, and the file that the submission then is."""


_LONGEST_PATH, _LONGEST_NAME, _DEEPEST = 1024, 255, 32
"""Of files: bytes of a path and of each of its parts, and how many parts."""


class Limits(Message):
    """What one run may use. The service refuses more than its own ceiling (`GET /v1/languages` says what that is)."""

    cpu_seconds: Annotated[float, Field(gt=0)] = 2.0
    wall_seconds: Annotated[float, Field(gt=0)] = 6.0
    memory_mb: Annotated[int, Field(ge=16)] = 256
    """All processes of the run and the files they write, MiB."""
    processes: Annotated[int, Field(ge=1)] = 32
    """Processes and threads."""
    output_kb: Annotated[int, Field(ge=1)] = 1024
    """Kept of each of stdout and stderr, KiB; a run that writes sixteen times as much is killed."""
    disk_mb: Annotated[int, Field(ge=1)] = 64
    """Files written, MiB."""


COMPILE_LIMITS = Limits(cpu_seconds=20, wall_seconds=30, memory_mb=1024, processes=64, disk_mb=256)
"""Of a compiler, unless the request says otherwise; with less memory where the service's ceiling is lower."""


class RunRequest(Message):
    """One program and one input."""

    language: str
    """A name of `GET /v1/languages`: python, c, cpp, javascript, bash, java, go, rust, where the image has it."""
    code: str
    """The main file."""
    files: dict[str, str] = Field(default_factory=dict)
    """More files of the working folder by relative path, UTF-8."""
    arguments: tuple[str, ...] = ()
    stdin: str = ""
    limits: Limits = Limits()
    compile_limits: Limits = COMPILE_LIMITS
    fetch: tuple[str, ...] = ()
    """Files of the working folder to send back; only regular ones."""
    priority: int = 0
    """Higher goes first."""
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None
    """Not worth starting after so many seconds; then the answer is 503."""


class Output(Message):
    """One program that ran (or, for `compile`, its compiler)."""

    status: Status
    exit_code: int | None = None
    """None if a signal ended it."""
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    """Bytes that are not UTF-8 become U+FFFD."""
    truncated: bool = False
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0
    """The most that its biggest process had, MiB. Never less than the some 13 that each begins with; `limits.memory_mb` counts all of them
    together."""
    reason: str = ""
    """One line for people."""


class RunResult(Message):
    """What became of a RunRequest."""

    status: Status
    """That of the compiler if it failed, else that of the run."""
    run: Output | None = None
    """None if it was never started."""
    compile: Output | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """What was fetched."""
    reason: str = ""


class Checker(Message):
    """How an output is compared with what was expected."""

    kind: Literal["exact", "tokens", "float", "program"] = "tokens"
    """`exact`: byte for byte but for trailing white space of lines and of the end. `tokens`: words. `float`: words, numbers within a
    tolerance. `program`: `code` (Python) run in the sandbox with `{"input", "output", "expected"}` as JSON on stdin; it accepts by printing
    `{"accept": true}`."""
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-9
    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6
    code: str | None = None

    @field_validator("code")
    @classmethod
    def _is_python(cls, code: str | None) -> str | None:
        """Read, not run: such a checker would call every output wrong, or judge none."""
        try:
            with warnings.catch_warnings(action="ignore"):
                ast.parse(code or "")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"checker.code is no Python: {error}") from None
        return code


class Call(Message):
    """A function call instead of an input: `function(*arguments)` of the submission; JSON values in and out."""

    function: str
    arguments: tuple[Any, ...] = ()
    expected: Any = None


class Test(Message):
    """One test: stdin and expected output, or a call."""

    stdin: str = ""
    expected: str | None = None
    call: Call | None = None


class JudgeRequest(Message):
    """A submission against tests."""

    language: str
    code: str
    files: dict[str, str] = Field(default_factory=dict)
    tests: tuple[Test, ...]
    stop_at_first_failure: bool = True
    total_wall_seconds: Annotated[float, Field(gt=0)] | None = None
    """Of all tests together with their checker programs, waiting in the queue not counted. The test that runs then is ended; it and those
    that follow count as `wall_limit`. Keep it below the time for which you wait for the answer, or a program that sleeps becomes a failure
    of yours."""
    checker: Checker = Checker()
    limits: Limits = Limits()
    compile_limits: Limits = COMPILE_LIMITS
    priority: int = 0
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None


def check_path(name: str) -> None:
    """Whether a program's file can have this name. Pure.

    Raises:
        ValueError: it cannot; one line.
    """
    parts = name.split("/")
    if not name or len(name.encode(errors="replace")) > _LONGEST_PATH or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:80]!r} is no relative path below the working folder")
    if any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts) or len(parts) > _DEEPEST:
        raise ValueError(f"{name[:80]!r} is too long a path")


def check_finite(value: Any) -> None:
    """Whether a value can be written as JSON: Python reads `NaN` and `Infinity`, and `1e999` as one of them. Pure.

    Raises:
        ValueError: it cannot.
    """
    from_json(to_json(value, inf_nan_mode="constants"), allow_inf_nan=False)


def check_tests(request: JudgeRequest) -> None:
    """Whether the tests mean something, wherever the sandbox is. Pure.

    Raises:
        ValueError: they do not; one line that names the field.
    """
    checker = request.checker
    if not request.tests:
        raise ValueError("tests: is empty; give at least one")
    if (checker.code is not None) != (checker.kind == "program"):
        raise ValueError(f"checker.code: goes with checker.kind program, and with no other; the kind is {checker.kind}")
    for name in request.files:
        check_path(name)
    calls = request.tests[0].call is not None
    for index, test in enumerate(request.tests):
        if (test.call is not None) != calls:
            raise ValueError(f"tests.{index}: all tests of a request either call a function or give stdin; split the request")
        if test.call is not None and (test.stdin or test.expected is not None):
            raise ValueError(f"tests.{index}: has a call, so that stdin and expected mean nothing; expected belongs into the call")
        if test.call is not None and _FUNCTION.fullmatch(test.call.function) is None:
            raise ValueError(f"tests.{index}.call.function: is {test.call.function!r}; name a function, or Class.method")
        if test.call is not None:
            try:
                check_finite((test.call.arguments, test.call.expected))
            except ValueError:
                raise ValueError(f"tests.{index}.call: holds NaN or an infinity, which JSON has not; use finite numbers") from None
        if test.call is None and test.expected is None and checker.kind != "program":
            raise ValueError(f"tests.{index}.expected: is missing; only the checker kind program judges without it")
    if calls and request.language not in CALLED:
        raise ValueError(
            f"language: is {request.language}, and functions are called in {' and '.join(CALLED)} only; give stdin and expected"
        )
    if calls and CALLED[request.language] in request.files:
        raise ValueError(f"files: {CALLED[request.language]} is where the submission itself goes; choose another name")


class Case(Message):
    """What became of one test."""

    verdict: Literal["passed", "wrong_answer"] | Status
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0
    reason: str = ""


class JudgeResult(Message):
    """The verdict: `passed`, or that of the first test that did not pass; `sandbox_error` if any test could not be run."""

    verdict: Literal["passed", "wrong_answer"] | Status
    passed: int
    total: int
    cases: tuple[Case, ...]
    """In the order of the tests; shorter than them if it stopped at the first failure."""
    compile: Output | None = None
    """Of its outputs only the beginning."""
    reason: str = ""


class RunBatch(Message):
    """`POST /v1/run:batch`: many requests at once, taken or refused together."""

    items: Annotated[tuple[RunRequest, ...], Field(min_length=1)]


class JudgeBatch(Message):
    """`POST /v1/judge:batch`: many submissions at once, taken or refused together."""

    items: Annotated[tuple[JudgeRequest, ...], Field(min_length=1)]


class RunLine(Message):
    """One line (NDJSON) of the answer to a RunBatch. Lines come as items end, not in their order."""

    index: int
    """Place of the item in the batch, from 0."""
    status: int
    """HTTP status that the item alone would have been answered with."""
    result: RunResult | None = None
    """None unless the status is 200."""
    error: str = ""


class JudgeLine(Message):
    """One line (NDJSON) of the answer to a JudgeBatch. Lines come as items end, not in their order."""

    index: int
    """Place of the item in the batch, from 0."""
    status: int
    """HTTP status that the item alone would have been answered with."""
    result: JudgeResult | None = None
    """None unless the status is 200."""
    error: str = ""


class Language(Message):
    """A language that this sandbox has."""

    name: str
    version: str
    compiled: bool
    """Built once, then run for each test."""
    calls: bool
    """Tests may call a function."""


class Languages(Message):
    """`GET /v1/languages`: what may be asked for."""

    languages: tuple[Language, ...]
    limits: Limits
    """The most that a request may ask for."""
    protections: dict[str, bool]
    """What isolates a run, and whether it is on here."""


class Refusal(Message):
    """Body of every answer that is not 2xx."""

    error: str
    """One line: what, with the value, and what to do."""
