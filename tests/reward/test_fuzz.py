"""Whatever a policy writes is right or wrong, within the limit: no verifier raises, hangs, or fails because of an answer."""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import reasoning_gym
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.reward.scripted import completion, verdict

from rljob.api.verifiers import OPTIONS, named
from rljob.prepare.data_sources import stored
from rljob.reward.judge import Judge, standard_judge
from rljob.reward.outside import Outside
from rljob.reward.pool import WorkerPool
from rljob.wire.reward import ScoreItem
from rljob.wire.sandbox import JudgeRequest, JudgeResult

_SUM = {"dataset": "chain_sum", "parameters": {}, "entry": stored(reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0])}
JUDGE = {"endpoint": "http://model/v1", "model": "m"}
SCORER = {"endpoint": "http://scores", "model": "m"}
KINDS: list[tuple[str, Any, dict[str, Any]]] = [
    ("exact", ["a", "b"], {"ignore_case": True}),
    ("numeric", "3", {}),
    ("numeric", "3", {"pick": "only"}),
    ("math", "\\frac{1}{2}", {}),
    ("math", "x^2+1", {"place": "boxed"}),
    ("choice", "B", {}),
    ("choice", "BC", {"several": True}),
    ("regex", "(a|b)*c\\d+", {}),
    ("regex", "(x+x+)+y", {"match": "full"}),
    ("instruction", None, {"sentences": 2, "mention": ["a"], "max_words": 3, "no_commas": True}),
    ("reasoning-gym", _SUM, {}),
    ("code", {"tests": [{"stdin": "", "expected": "1"}]}, {"partial": True}),
    ("length", None, {}),
    ("repetition", None, {}),
    ("judge", "3", JUDGE),
    ("reward-model", None, SCORER),
    ("weighted", "3", {"terms": [{"verifier": "math"}, {"verifier": "repetition"}, {"verifier": "regex", "options": {"pattern": "3"}}]}),
]

LATEX = st.lists(
    st.sampled_from(
        ["\\boxed{", "}", "{", "\\frac", "\\sqrt", "^", "_", "9", "12", "x", "\\pi", "!", "(", ")", "[", "]", ",", "\\begin{pmatrix}", "&",
         "\\\\", "\\end{pmatrix}", "\\text{", "%", "=", "\\int", "\\sum_{i=1}^{10^9}", "\\lim", "\\infty", "\\cup", "\\le", "|", "$", "\0",
         "\n"]
    ),
    max_size=40,
).map("".join)  # fmt: skip
PROSE = st.lists(
    st.sampled_from(["the answer is", "(B)", "B", "```", "```python", "\n", "~~~", "a", "print(1)", "3", "-", "1e999", ".", "```\n", " "]),
    max_size=40,
).map("".join)
TEXT = st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode(errors="surrogateescape"))
LOOPED = st.sampled_from(["x", "9", "{", "\\boxed{", "(", "```\n", "1,", "$", "\ud83d", "a ", "!", "\u0316\u0301"])
LOOPS = st.tuples(LOOPED, st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1])
ANSWERS = LATEX | LATEX.map(lambda text: f"\\boxed{{{text}}}") | PROSE | TEXT | LOOPS


async def _others(request: httpx.Request) -> httpx.Response:
    """A sandbox that takes whatever is a request (the real one is tested by its own threat list), and models whose context is short."""
    if request.url.host != "sandbox" and len(await request.aread()) > 2500:
        return httpx.Response(400, text="longer than the maximum context length")
    if request.url.host == "model":
        return httpx.Response(200, json=completion(verdict(json.loads(await request.aread()), 0)))
    if request.url.host == "scores":
        return httpx.Response(200, json={"data": [{"probs": [float(len(json.loads(await request.aread())["messages"][-1]["content"]))]}]})
    tests = JudgeRequest.model_validate_json(await request.aread()).tests
    result = JudgeResult(verdict="wrong_answer", passed=0, total=len(tests), cases=())
    return httpx.Response(200, text=result.model_dump_json())


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[asyncio.Runner, Judge]]:
    with asyncio.Runner() as runner:
        pool = WorkerPool(2, dict(os.environ))
        outside = Outside(httpx.AsyncClient(transport=httpx.MockTransport(_others)), "http://sandbox", asyncio.sleep, random.Random(0))
        runner.run(pool.start())
        yield runner, standard_judge(pool, 1.0, outside, frozenset([*named("judge", JUDGE), *named("reward-model", SCORER)]))
        runner.run(pool.stop())


def test_every_verifier_is_here() -> None:
    """`import` and `http` are the user's own."""
    assert {name for name, _, _ in KINDS} | {"import", "http"} == set(OPTIONS)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(answer=ANSWERS)
def test_whatever_a_policy_writes_is_right_or_wrong(service: tuple[asyncio.Runner, Judge], answer: str) -> None:
    runner, judge = service
    items = [
        ScoreItem(id="a", verifier=name, options=options, prompt="", answer=answer, reference=reference, finished=True)
        for name, reference, options in KINDS
    ]

    async def scored() -> None:
        async with asyncio.timeout(60):
            results = await asyncio.gather(*(judge.score(one) for one in items))
        for one, result in zip(items, results, strict=True):
            assert result.verdict != "failed", (one.verifier, result.reason)
            assert result.reward is not None
            assert 0.0 <= result.reward <= 1.0

    runner.run(scored())
