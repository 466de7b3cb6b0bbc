"""Runs generators and submissions, in the code sandbox and nowhere else: programs that come with a problem are a stranger's."""

import importlib.util
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import TypeAdapter, ValidationError

from rljob.api import ConfigurationError
from rljob.api.testcases import TestCaseGeneration, wall_seconds
from rljob.curate.testcases.problem import Submission
from rljob.reward.outside import Outside
from rljob.wire.sandbox import Languages, Limits, RunRequest, RunResult

CYARON = ("cyaron", "colorful", "xeger")
"""CYaRon and what it imports: Python without anything compiled, so that its files can be sent along with a generator."""
_SENT = (".py", ".txt")
_ATTEMPTS = 8
_STARTING = 15
"""Seconds that a sandbox gets to listen."""
_OUTPUT_KB = 128
"""Kept of a submission's output; what wrote more has no output."""
_GENERATED_KB = 512
"""All inputs of a problem, as JSON."""
_QUEUE_SECONDS = 120.0
_TEXTS = TypeAdapter(list[str])

_HARNESS = """\
import json, random, sys

def main():
    asked, channel = json.loads(sys.stdin.read()), sys.stdout
    sys.stdout, scope = sys.stderr, {"__name__": "generator"}
    with open("generator.py", encoding="utf-8") as file:
        exec(compile(file.read(), "generator.py", "exec"), scope)
    made = []
    for case in range(asked["cases"]):
        random.seed(f"{asked['seed']} {case}")
        made.append(scope["generate"](case, asked["cases"]))
    channel.write(json.dumps(made))
    channel.flush()

main()
"""


class GeneratorFault(Exception):
    """A generator did not make inputs; says why."""


@dataclass(frozen=True)
class Programs:
    """The sandbox, as far as it is needed here."""

    outside: Outside
    spec: TestCaseGeneration
    ended: Callable[[], None] = lambda: None
    """Called when a program has ended."""

    async def check(self, languages: Collection[str]) -> None:
        """Whether the sandbox is there and has these languages.

        Raises:
            ConfigurationError: it is not or has not; what to do.
        """
        url = f"{self.spec.sandbox.rstrip('/')}/v1/languages"
        try:
            answer = await self._first(url)
            said = Languages.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            why = f"{type(error).__name__}: {str(error).partition('\n')[0]}"
            raise ConfigurationError(
                f"--sandbox {self.spec.sandbox}: is no code sandbox ({why}); `rljob sandbox serve` starts one"
            ) from None
        known = {language.name for language in said.languages}
        for language in sorted(set(languages) - known):
            raise ConfigurationError(f"a submission is in {language!r}; the sandbox has {', '.join(sorted(known))}")
        if self.spec.memory_mb > said.limits.memory_mb:
            raise ConfigurationError(
                f"--memory-mb: is {self.spec.memory_mb}; a program of this sandbox can have {said.limits.memory_mb} MiB"
            )

    async def _first(self, url: str) -> httpx.Response:
        """The sandbox's first answer. It may have been started by the line before, so nobody at its address is asked again for a while."""
        for _ in range(_STARTING):
            try:
                return await self.outside.http.get(url, timeout=20)
            except httpx.ConnectError:
                await self.outside.sleep(1)
        return await self.outside.http.get(url, timeout=20)

    async def inputs(self, generator: str) -> list[str]:
        """What a generator makes, without repetitions.

        Raises:
            GeneratorFault: it fails.
            NoAnswerError: the sandbox does not answer.
        """
        request = RunRequest(
            language="python",
            code=_HARNESS,
            files={"generator.py": generator} | packages(generator),
            stdin=json.dumps({"cases": self.spec.cases, "seed": self.spec.seed}),
            limits=self._limits(10 * self.spec.cpu_seconds, _GENERATED_KB),
        )
        return _made(await self._run(request), self.spec.cases)

    async def output(self, submission: Submission, stdin: str) -> str | None:
        """What a submission prints; None if it does not end well within its limits.

        Raises:
            NoAnswerError: the sandbox does not answer.
        """
        limits = self._limits(self.spec.cpu_seconds, _OUTPUT_KB)
        result = await self._run(RunRequest(language=submission.language, code=submission.code, stdin=stdin, limits=limits))
        run = result.run
        return run.stdout if result.status == "ok" and run is not None and run.exit_code == 0 and not run.truncated else None

    def _limits(self, cpu: float, output_kb: int) -> Limits:
        return Limits(cpu_seconds=cpu, wall_seconds=wall_seconds(cpu), memory_mb=self.spec.memory_mb, output_kb=output_kb)

    async def _run(self, request: RunRequest) -> RunResult:
        url = f"{self.spec.sandbox.rstrip('/')}/v1/run"
        seconds = request.limits.wall_seconds + request.compile_limits.wall_seconds + _QUEUE_SECONDS
        result = await self.outside.ask(url, request.model_dump_json(), _read, seconds, _ATTEMPTS)
        self.ended()
        return result


def _made(result: RunResult, cases: int) -> list[str]:
    """The inputs in what the harness printed; a generator may have printed it in its place."""
    if result.status != "ok" or result.run is None:
        last = result.run.stderr.rstrip().rpartition("\n")[2] if result.run else ""
        why = "".join(sign if sign.isprintable() else "?" for sign in last or result.reason)
        raise GeneratorFault(f"the generator ended with {result.status}: {why}"[:300])
    if result.run.truncated:
        raise GeneratorFault(f"the generator made inputs of more than {_GENERATED_KB} KiB in all; make them smaller")
    try:
        made = _TEXTS.validate_json(result.run.stdout, strict=True)
    except ValidationError:
        raise GeneratorFault("generate(case, cases) returned something else than a text") from None
    if len(made) != cases:
        raise GeneratorFault(f"there are {len(made)} inputs, {cases} were asked for")
    return list(dict.fromkeys(made))


def _read(body: bytes) -> RunResult:
    """The result; ValueError if this is none, or says that the sandbox failed."""
    try:
        result = RunResult.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no RunResult: {error.errors()[0]['msg']}") from None
    if result.status == "sandbox_error":
        raise ValueError(f"sandbox_error {result.reason}".strip())
    return result


def packages(generator: str) -> dict[str, str]:
    """The files of CYaRon if the generator imports it, by path; they are read here and imported only in the sandbox.

    Raises:
        ConfigurationError: it is not installed here.
    """
    if not re.search(r"^\s*(import|from)\s+cyaron\b", generator, re.MULTILINE):
        return {}
    found: dict[str, str] = {}
    for name in CYARON:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigurationError(
                f"a generator imports cyaron, and {name} is not installed here: pip install '.[testcases]' in a checkout of RLJob"
            )
        folder = Path(spec.submodule_search_locations[0])
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if file.suffix in _SENT and "tests" not in inside.parts:
                found[f"{name}/{inside}"] = file.read_text(encoding="utf-8")
    return found
