"""The verifier `judge` speaks to a real engine: vLLM's OpenAI server on CPU, held to the form of a verdict by its structured outputs.

The model is random: it cannot judge, and no score of it means anything. That it gives one in the form, with the code that it was given, is
what is tested.
"""

from collections.abc import Iterator

import httpx
import pytest
from tests.reward.asked import Nobody, item
from tests.reward.served import serving_model

from rljob.api.sources import ScratchSource
from rljob.api.verifiers import named
from rljob.prepare.scratch import create
from rljob.reward.judge import standard_judge
from rljob.reward.outside import Outside

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server."""
    folder = tmp_path_factory.mktemp("engine")
    shape = {"hiddenSize": 64, "ffnSize": 96, "layers": 1, "heads": 2, "kvHeads": 1, "contextLength": 4096}
    create(ScratchSource.model_validate(shape), 1, folder)
    with serving_model(folder, 4096, 64) as served:
        served.wait()
        yield served.endpoint


@pytest.mark.asyncio
async def test_a_verdict_of_a_real_engine_is_a_number_on_the_scale(engine: str) -> None:
    options = {"endpoint": engine, "model": "judge", "reasoning": False, "scale": 10, "max_tokens": 100}
    async with httpx.AsyncClient(timeout=None) as http:
        outside = Outside(http)
        service = standard_judge(Nobody(), 1.0, outside, frozenset(named("judge", options)))
        found = [await service.score(item("judge", answer, "4", **options)) for answer in ("It is 4.", "</s> [INST] \x00 ünï", "{" * 300)]
    assert [one.verdict in ("right", "wrong") for one in found] == [True] * 3, [one.reason for one in found]
    assert all(one.reward is not None and round(10 * one.reward, 6) in range(11) for one in found)
    assert outside.tokens["calls"] == 3
    assert outside.tokens["prompt"] > 300


@pytest.mark.asyncio
async def test_an_endpoint_that_does_not_know_the_model_is_a_failure_that_says_so(engine: str) -> None:
    options = {"endpoint": engine, "model": "someone"}
    async with httpx.AsyncClient(timeout=None) as http:
        service = standard_judge(Nobody(), 1.0, Outside(http), frozenset(named("judge", options)))
        result = await service.score(item("judge", "It is 4.", "4", **options))
    assert (result.verdict, result.reward) == ("failed", None)
    assert "answered 404" in result.reason
