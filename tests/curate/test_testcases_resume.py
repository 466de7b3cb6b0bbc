"""`rljob data testcases` that is interrupted: what is finished is not made again, and the result is that of one run."""

import asyncio
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import pytest

from rljob.api.testcases import TestCaseGeneration
from rljob.curate.testcases.problem import Submission
from rljob.curate.testcases.programs import Programs
from rljob.curate.testcases.run import Progress, generate
from rljob.reward.outside import NoAnswerError, Outside


class Scripted(Programs):
    """Runs nothing: a generator's text is its only input, a submission prints the input; some generators find no sandbox."""

    def __init__(self, spec: TestCaseGeneration, failing: str, files: int) -> None:
        super().__init__(Outside(httpx.AsyncClient()), spec)
        self.failing, self.files, self.asked = failing, files, list[str]()
        self.unfinished = Path(spec.out).with_suffix(".unfinished")

    async def check(self, languages: Collection[str]) -> None:
        """There is no sandbox to ask."""

    async def inputs(self, generator: str) -> list[str]:
        self.asked.append(generator)
        if generator == self.failing:
            while len(list(self.unfinished.glob("*.json"))) < self.files:  # noqa: ASYNC110 - nothing tells a sandbox what is written elsewhere
                await asyncio.sleep(0)  # the others come first
            raise NoAnswerError("the sandbox is gone")
        return [f"{generator} {case}" for case in range(4)]

    async def output(self, submission: Submission, stdin: str) -> str | None:
        return stdin


def problems(folder: Path, *names: str) -> None:
    rows = [{"prompt": "p", "id": name, "generator": name, "submissions": ["a", "b", "c"]} for name in names]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def spec(folder: Path, **more: Any) -> TestCaseGeneration:
    numbers = {"cases": 4, "submissions": 3, "agree": 2, "passing": 3, "min_cases": 2}
    given = {"source": str(folder / "in.jsonl"), "out": str(folder / "out.jsonl"), "sandbox": "http://sandbox"}
    return TestCaseGeneration.model_validate(given | numbers | more)


def run(folder: Path, failing: str = "", files: int = 5, **more: Any) -> list[str]:
    """Generators that were asked for inputs. `failing` fails when there are so many finished files."""
    made = spec(folder, **more)
    programs = Scripted(made, failing, files)
    try:
        asyncio.run(generate(made, programs, Progress()))
    except NoAnswerError:
        assert failing
    return sorted(programs.asked)


NAMES = ("one", "two", "three", "four", "five", "last")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    problems(tmp_path, *NAMES)
    assert "last" in run(tmp_path, failing="last")
    assert not (tmp_path / "out.jsonl").exists()
    assert len(list((tmp_path / "out.unfinished").glob("*.json"))) == 5
    return tmp_path


def test_what_is_finished_is_not_made_again_and_the_result_is_that_of_one_run(interrupted: Path) -> None:
    assert run(interrupted) == ["last"]
    resumed = [(interrupted / name).read_text() for name in ("out.jsonl", "out.report.json")]
    assert not (interrupted / "out.unfinished").exists()
    assert run(interrupted) == sorted(NAMES), "a run that came to its end leaves nothing to go on from"
    assert [(interrupted / name).read_text() for name in ("out.jsonl", "out.report.json")] == resumed


def test_a_changed_problem_and_other_numbers_are_worked_on_anew(interrupted: Path) -> None:
    rows = [json.loads(line) for line in (interrupted / "in.jsonl").read_text().splitlines()]
    rows[0]["submissions"] = ["a", "b", "d"]
    (interrupted / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(interrupted, failing="last", files=6) == ["last", "one"]
    assert run(interrupted, failing="last", files=11, seed=1) == sorted(NAMES)
    assert run(interrupted, concurrency=1) == ["last"], "how many programs run at a time changes no result"


def test_a_result_that_was_cut_off_while_it_was_written_is_made_again(interrupted: Path) -> None:
    for file in (interrupted / "out.unfinished").glob("*.json"):
        file.write_text(file.read_text()[:9])
    assert run(interrupted) == sorted(NAMES)
