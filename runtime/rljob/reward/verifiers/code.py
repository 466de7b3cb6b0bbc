"""The program in an answer's last fenced block passes tests in the code sandbox.

The reference is `{"tests": [...], "language": …, "files": …, "checker": …}` with the tests of rljob.wire.sandbox. Expected outputs never
enter the sandbox's runs. What the program does is right or wrong; what the sandbox cannot do is a failure and no reward.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rljob.api.verifiers import CodeOptions, Language
from rljob.reward.outside import NoAnswerError, Outside
from rljob.reward.verifier import Judgement, RemoteVerifier
from rljob.wire.reward import ScoreItem
from rljob.wire.sandbox import Checker, JudgeRequest, JudgeResult, Limits, Test, check_tests

LONGEST_PROGRAM = 1 << 17
"""Characters."""
MOST_TESTS = 4000
"""Of a record: the sandbox says what became of each, and no service is believed an answer of any length."""
_ITEM = re.compile(r" *(?:[-*+]|\d{1,9}[.)]) +")
"""Begins an entry of a list; what belongs to it stands as far in as its text."""
_FURTHER = 3
"""Spaces by which a block may stand further in than the text around it, and its end further than its beginning."""
_QUEUE, _ATTEMPTS = 20.0, 3
"""Seconds in the sandbox's queue, and calls. The master waits 300 s for all that it asked at once."""


class CodeReference(BaseModel):
    """What a program is judged by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tests: Annotated[tuple[Test, ...], Field(min_length=1, max_length=MOST_TESTS)]
    language: Language | None = None
    files: dict[str, str] = Field(default_factory=dict)
    checker: Checker = Checker()


def _reference(reference: Any) -> CodeReference:
    try:
        found = CodeReference.model_validate(reference)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("reference", *first["loc"])))
        raise ValueError(f"`{where}`: {first['msg']}; a reference is {{tests: [{{stdin, expected}}, …], language}}") from None
    if found.checker.kind != "program":
        for index, test in enumerate(found.tests):
            if test.expected is None and test.call is None:
                raise ValueError("a test has neither `expected` nor `call`, so every program would pass it; add one, or a checker program")
            if test.call is not None and "expected" not in test.call.model_fields_set:
                raise ValueError(f"`reference.tests.{index}.call` has no `expected`, so `pass` would be right; add it (null for None)")
    return found


def _check_reference(reference: Any, options: CodeOptions) -> None:
    """What the sandbox would refuse at the first answer is refused here."""
    request = _request("", _reference(reference), options)
    try:
        check_tests(request)
    except ValueError as error:
        raise ValueError(f"`reference`: {error}") from None


async def _ask(item: ScoreItem, options: CodeOptions, outside: Outside) -> Judgement:
    if outside.sandbox is None:
        raise NoAnswerError("there is no sandbox to run programs in; set spec.sandbox.enabled: true")
    program = last_block(item.answer)
    if program is None:
        return Judgement(False, "no closed ``` block in the answer")
    if len(program) > LONGEST_PROGRAM:
        return Judgement(False, "the program is too long")
    request = _request(program, _reference(item.reference), options)
    # Whatever a program does ends before this: else one that sleeps would be a failure of ours.
    seconds = _QUEUE + request.compile_limits.wall_seconds + options.total_seconds + options.wall_seconds + _QUEUE
    result = await outside.ask(f"{outside.sandbox.rstrip('/')}/v1/judge", request.model_dump_json(), _read, seconds, _ATTEMPTS)
    reason = "" if result.verdict == "passed" else f"{result.passed} of {result.total} tests; {result.verdict} {result.reason}".strip()
    return Judgement(result.verdict == "passed", reason[:300], result.passed / result.total if options.partial else None)


def _request(program: str, reference: CodeReference, options: CodeOptions) -> JudgeRequest:
    return JudgeRequest(
        language=reference.language or options.language,
        code=program,
        files=reference.files,
        tests=reference.tests,
        stop_at_first_failure=not options.partial,
        checker=reference.checker,
        limits=Limits(cpu_seconds=options.cpu_seconds, wall_seconds=options.wall_seconds, memory_mb=options.memory_mb),
        total_wall_seconds=options.total_seconds,
        deadline_seconds=_QUEUE,
    )


def _read(body: bytes) -> JudgeResult:
    """The verdict on the program; ValueError if this is none."""
    try:
        result = JudgeResult.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no JudgeResult: {error.errors()[0]['msg']}") from None
    if result.verdict == "sandbox_error":
        raise ValueError(f"sandbox_error {result.reason}".strip())
    if not 0 <= result.passed <= result.total or not result.total or (result.verdict == "passed") != (result.passed == result.total):
        raise ValueError(f"contradicts itself: {result.verdict} with {result.passed} of {result.total} tests passed")
    return result


def last_block(answer: str) -> str | None:
    """Content of the last closed fenced block, None if there is none.

    As in CommonMark: three or more ` or ~, closed by as many or more. A block in a list is indented as a whole, and that is taken off.
    """
    found, opened, begun, indent, margin = None, "", 0, 0, 0
    lines = answer.splitlines(keepends=True)
    for number, line in enumerate(lines):
        fence, before = _fence(line), _indent(line)
        if opened:
            if fence.startswith(opened) and line.strip() == fence and before <= indent + _FURTHER:
                found, opened = "".join(one[min(indent, _indent(one)) :] for one in lines[begun:number]), ""
        elif fence and before <= margin + _FURTHER:
            opened, begun, indent = fence, number + 1, before
        elif line.strip():
            item = _ITEM.match(line)
            margin = item.end() if item else min(margin, before)
    return found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _fence(line: str) -> str:
    """The run of fence characters that a line begins with; empty if it is too short."""
    text = line.lstrip(" ")
    for sign in "`~":
        run = len(text) - len(text.lstrip(sign))
        if run >= 3 and not (sign == "`" and "`" in text[run:]):
            return text[:run]
    return ""


VERIFIER = RemoteVerifier("code", CodeOptions, _ask, _check_reference)
