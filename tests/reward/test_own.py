"""A user's own function as verifier: in a process of its own, and nothing but a reward counts."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.reward.asked import item

from rljob.api.verifiers import named
from rljob.reward.judge import Judge, standard_judge
from rljob.reward.pool import WorkerPool
from rljob.wire.reward import ScoreResult

pytestmark = pytest.mark.asyncio
HERE = str(Path(__file__).parent / "own")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own() -> AsyncIterator[WorkerPool]:
    """Two workers that can import `own_judges`."""
    paths = os.pathsep.join([HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    made = WorkerPool(2, dict(os.environ) | {"PYTHONPATH": paths, "HF_TOKEN": "secret"})
    await made.start()
    yield made
    await made.stop()


def judge(pool: WorkerPool, path: str, seconds: float = 5.0) -> Judge:
    return standard_judge(pool, seconds, named=frozenset(named("import", {"path": path})))


async def score(pool: WorkerPool, name: str, answer: str = "answer", seconds: float = 5.0, **options: Any) -> ScoreResult:
    path = f"own_judges:{name}"
    return await judge(pool, path, seconds).score(item("import", answer, "answer", path=path, options=options))


@pytest.mark.asyncio(loop_scope="module")
class TestOwn:
    @pytest.mark.parametrize(
        ("name", "answer", "options", "verdict", "reward", "reason"),
        [
            ("right", "answer", {}, "right", 1.0, ""),
            ("right", "no", {}, "wrong", 0.0, ""),
            ("shorter", "x" * 20, {}, "wrong", 0.5, "20 characters"),
            ("shorter", "x" * 20, {"than": 20}, "right", 1.0, "20 characters"),
            ("full_marks", "0.7 0.2 0.1", {}, "right", 1.0, ""),
            ("full_marks", "0.2 0.4 0.3 0.1", {}, "right", 1.0, ""),
            ("full_marks", "0.3 -0.2 -0.1", {}, "wrong", 0.0, ""),
            ("full_marks", "0.999", {}, "wrong", 0.999, ""),
            ("secrets", "", {}, "right", 1.0, ""),
            ("raises", "", {}, "failed", None, "verifier import: TypeError: string indices must be integers, not 'str'"),
            ("too_much", "", {}, "failed", None, "verifier import: ValueError: own_judges:too_much returned 7.0; rewards are from 0 to 1"),
            ("nobody", "", {}, "failed", None, "verifier import: AttributeError: module 'own_judges' has no attribute 'nobody'"),
        ],
    )
    async def test_its_result_is_the_reward(
        self, own: WorkerPool, name: str, answer: str, options: dict[str, Any], verdict: str, reward: float | None, reason: str
    ) -> None:
        result = await score(own, name, answer, **options)
        assert (result.verdict, result.reward, result.reason) == (verdict, reward, reason)

    async def test_what_is_no_number_says_what_it_must_be(self, own: WorkerPool) -> None:
        result = await score(own, "text")
        assert result.verdict == "failed"
        assert "it must return a bool, a number from 0 to 1, or a pair of one and a text" in result.reason

    async def test_nothing_is_left_behind_for_the_next_answer(self, own: WorkerPool) -> None:
        assert [(await score(own, "remembers", answer)).verdict for answer in ("a", "b", "c")] == ["right"] * 3

    async def test_a_slow_one_is_called_once_and_by_as_many_workers_as_there_are(self, own: WorkerPool, tmp_path: Path) -> None:
        log = tmp_path / "log"
        found = await asyncio.gather(*(score(own, "slowly", answer, log=str(log)) for answer in "abcd"))
        assert [one.verdict for one in found] == ["right"] * 4
        lines = log.read_text().splitlines()
        assert sorted(lines) == [f"{word} {answer}" for word in ("begin", "end") for answer in "abcd"]
        assert [line.split()[0] for line in lines[:2]] == ["begin"] * 2

    async def test_it_does_not_wait_for_another_verifiers_answers_that_never_end(self, own: WorkerPool) -> None:
        others = standard_judge(own, 600.0)
        # Longer than what is judged once for all who ask, and would go on when nobody waits any more.
        endless = [asyncio.create_task(others.score(item("regex", "x" * n, "(x+x+)+y"))) for n in (5000, 5001)]
        for _ in range(5):
            assert (await score(own, "right")).verdict == "right"
        assert not any(task.done() for task in endless)
        for task in endless:
            task.cancel()
        await asyncio.gather(*endless, return_exceptions=True)

    async def test_one_that_never_ends_is_a_failure(self, own: WorkerPool) -> None:
        result = await score(own, "spins", seconds=0.8)
        assert (result.verdict, result.reason) == ("failed", "verifier import: not judged within 0.8 s")
