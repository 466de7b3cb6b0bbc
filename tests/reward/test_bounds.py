"""Where verifiers change their mind: at a limit, at the other one of two words, at what is missing. One entry for each side."""

from typing import Any

import httpx
import pytest
from tests.reward.asked import Nobody, item
from tests.reward.test_remote import URL, World

from rljob.api.verifiers import InstructionOptions, Place
from rljob.reward.judge import standard_judge
from rljob.reward.registry import VERIFIERS, check, parse_options
from rljob.reward.verifier import CombinedVerifier
from rljob.reward.verifiers.extraction import extract, without_thoughts
from rljob.reward.verifiers.instruction import broken
from rljob.reward.verifiers.repetition import repeated


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("One two.", {"max_words": 2}, None),
        ("One two.", {"min_words": 2}, None),
        ("Dogs run.", {"mention": ["cat", "dog"]}, None),
        ("Well, sure.", {"begin": "Sure"}, "does not begin as asked"),
        ("The end. Yes.", {"end": "The end."}, "does not end as asked"),
        ("Yes.", {"uppercase": True}, "has small letters"),
        ("yes.", {"lowercase": True}, None),
    ],
)
def test_an_instruction_is_followed_up_to_its_limit_and_not_beyond(text: str, options: dict[str, Any], reason: str | None) -> None:
    assert broken(text, InstructionOptions.model_validate(options)) == reason


@pytest.mark.parametrize(
    ("answer", "place", "part"),
    [
        ("7 \\boxed{}", "auto", ""),
        ("7 \\boxed{", "auto", "7 \\boxed{"),
        (" 7 ", "auto", "7"),
        ("7", "boxed", None),
        ("7 \\boxed{8}", "whole", "7 \\boxed{8}"),
    ],
)
def test_an_empty_box_is_an_answer_and_one_that_is_not_closed_is_none(answer: str, place: Place, part: str | None) -> None:
    assert extract(answer, place) == part


def test_thoughts_may_begin_after_an_empty_line() -> None:
    assert without_thoughts("\n <think>B") is None
    assert without_thoughts("\n <think>A</think>B") == "B"


@pytest.mark.asyncio
async def test_a_character_is_no_byte() -> None:
    result = await standard_judge(Nobody(), 1.0).score(item("length", "我爱鸭子", unit="characters", full_at=0, zero_at=8))
    assert (result.reward, result.reason) == (0.5, "4 characters")


def test_loops_are_looked_for_at_the_end_of_a_long_answer() -> None:
    assert repeated(" ".join(map(str, range(60_000))) + " so it goes" * 20_000, 3) > 0.9
    assert repeated("so it goes", 3) == 0.0


@pytest.mark.parametrize("verifier", ["math", "numeric"])
def test_true_is_no_number(verifier: str) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        check(verifier, {}, True)


ASKED = item("any", "x+1", "x+1")
SERVED = {"endpoint": "http://judge.example/v1", "model": "m"}


@pytest.mark.parametrize(
    ("verifier", "options", "others"),
    [
        ("math", {}, [{"answer": "\\boxed{x+1}"}, {"reference": "x+2"}]),
        ("regex", {}, [{"options": {"ignore_case": True}}, {"options": {"match": "full"}}, {"reference": "x+2"}, {"answer": "x"}]),
        ("judge", SERVED, [{"options": SERVED | {"scale": 10}}, {"prompt": "q"}, {"reference": "x+2"}, {"answer": "x"}]),
        ("reward-model", SERVED, [{"options": SERVED | {"center": 1.0}}, {"prompt": "q"}, {"answer": "x"}]),
    ],
)
def test_a_judgement_is_remembered_for_what_it_depends_on(verifier: str, options: dict[str, Any], others: list[dict[str, Any]]) -> None:
    found = VERIFIERS[verifier]
    assert not isinstance(found, CombinedVerifier)
    asked = [ASKED.model_copy(update={"options": options} | more) for more in ({}, *others)]
    keys = [found.same(one, parse_options(found, one.options)) for one in asked]
    assert len({*keys, None}) == len(asked) + 1
    assert keys[0] == found.same(asked[0].model_copy(), parse_options(found, options))


@pytest.mark.asyncio
async def test_of_what_a_service_says_so_much_is_kept() -> None:
    found = await World(httpx.Response(200, json={"reward": 0, "reason": "x" * 1000})).score(item("http", "a", url=URL))
    assert found.reason == "x" * 300
