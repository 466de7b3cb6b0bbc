"""From a file of problems to records with tests, and a report."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob.api.outputs import check_outputs
from rljob.api.testcases import TestCaseGeneration
from rljob.curate.testcases.finished import Finished
from rljob.curate.testcases.majority import FATES, Outcome, decide, report
from rljob.curate.testcases.problem import Located, Submission, load, record
from rljob.curate.testcases.programs import GeneratorFault, Programs, packages
from rljob.prepare.files import write_atomically

_PROBLEMS = 4
"""Worked on at a time: enough to keep the sandbox busy, few enough to hold what their programs print."""


@dataclass(frozen=True)
class Progress:
    """Who is told how far it is."""

    begin: Callable[[int], None] = lambda programs: None
    """So many programs will be run at most."""
    skip: Callable[[int], None] = lambda programs: None
    """So many need not be run after all."""


async def generate(spec: TestCaseGeneration, programs: Programs, progress: Progress) -> dict[str, Any]:
    """Make tests, choose problems, write `spec.out` and its report; the report.

    Raises:
        ConfigurationError: problems cannot be read, or need what is not here; or nothing can be written.
        InfrastructureError: the sandbox does not answer. Nothing is written but the problems that are finished: the same run again goes on.
    """
    check_outputs((Path(spec.out),), (Path(spec.source),))
    located = load(Path(spec.source))
    for one in located:
        packages(one.problem.generator)
    await programs.check({submission.language for one in located for submission in one.problem.submissions})
    progress.begin(len(located) * (1 + spec.cases * spec.submissions))
    finished = Finished(spec)
    gate, few = asyncio.Semaphore(spec.concurrency), asyncio.Semaphore(_PROBLEMS)

    async def outcome(one: Located) -> Outcome:
        if (known := finished.get(one)) is not None:
            progress.skip(1 + spec.cases * spec.submissions)
            return known
        async with few:
            made = await _outcome(one, spec, programs, gate, progress)
        finished.put(one, made)
        return made

    outcomes = await _together(outcome(one) for one in located)
    found = report([one.name for one in located], outcomes)
    _write(spec, located, outcomes, found)
    finished.remove()
    return found


async def _together[T](work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first failure ends the others."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _outcome(one: Located, spec: TestCaseGeneration, programs: Programs, gate: asyncio.Semaphore, progress: Progress) -> Outcome:
    chosen = choose(one, spec)
    if len(chosen) < spec.submissions:
        progress.skip(1 + spec.cases * spec.submissions)
        return Outcome("too few submissions", reason=f"has {len(chosen)} submissions, {spec.submissions} are asked for")
    try:
        async with gate:
            inputs = await programs.inputs(one.problem.generator)
    except GeneratorFault as fault:
        progress.skip(spec.cases * spec.submissions)
        return Outcome("generator failed", reason=str(fault))
    progress.skip((spec.cases - len(inputs)) * spec.submissions)

    async def output(submission: Submission, stdin: str) -> str | None:
        async with gate:
            return await programs.output(submission, stdin)

    said = await _together(output(submission, stdin) for submission in chosen for stdin in inputs)
    outputs = [said[place : place + len(inputs)] for place in range(0, len(said), len(inputs))] if inputs else []
    return decide(inputs, outputs, one.problem.checker, spec)


def choose(one: Located, spec: TestCaseGeneration) -> Sequence[Submission]:
    """At most so many submissions of a problem, by chance; the same ones each time."""
    some = one.problem.submissions
    if len(some) <= spec.submissions:
        return some
    return random.Random(f"{spec.seed} {one.name}").sample(some, spec.submissions)


def _write(spec: TestCaseGeneration, located: Sequence[Located], outcomes: Sequence[Outcome], found: Mapping[str, Any]) -> None:
    kept = [
        record(one.problem, outcome.tests, spec.options) for one, outcome in zip(located, outcomes, strict=True) if outcome.fate == "kept"
    ]
    lines = [one.model_dump(mode="json", exclude_defaults=True) for one in kept]
    out = Path(spec.out)
    write_atomically(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    made = {"spec": spec.model_dump(mode="json", by_alias=True)} | dict(found)
    write_atomically(out.with_suffix(".report.json"), json.dumps(made, indent=1, ensure_ascii=False) + "\n")


def shown(found: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    counts = found["fates"]
    lines = [f"{counts['kept']} of {found['problems']} problems kept, with {found['tests']} tests"]
    for fate in FATES[1:]:
        some = [entry for entry in found["each"] if entry["fate"] == fate]
        lines += [f"  {fate}: {len(some)}"] if some else []
        lines += [f"    {entry['problem']}: {entry['reason']}" for entry in some]
    return lines
