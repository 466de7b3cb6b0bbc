"""Which prompts are kept, by what a policy made of them."""

from collections import Counter
from typing import Any

import pytest

from rljob.api.curation import Curation
from rljob.curate.choose import Measured, fates, histogram, report
from rljob.curate.run import shown


def spec(**more: Any) -> Curation:
    given = {"source": "in.jsonl", "out": "out.jsonl", "endpoint": "http://x/v1", "model": "m", "balance": 0}
    return Curation.model_validate(given | more)


def prompt(right: int = 5, judged: int = 10, guessed: int = 0, family: str = "") -> Measured:
    return Measured(family, right, judged, guessed)


@pytest.mark.parametrize(
    ("measured", "more", "fate"),
    [
        (prompt(), {}, "kept"),
        (prompt(right=0), {}, "kept"),
        (prompt(right=0), {"min_pass": 0.1}, "too hard"),
        (prompt(right=10), {}, "too easy"),
        (prompt(right=9), {}, "kept"),
        (prompt(right=10), {"max_pass": 1.0}, "kept"),
        (prompt(guessed=1), {}, "guessable"),
        (prompt(right=0, judged=0), {}, "unjudged"),
    ],
)
def test_a_prompt_is_kept_if_there_is_something_to_learn_and_nothing_to_guess(measured: Measured, more: dict[str, Any], fate: str) -> None:
    assert fates([measured], spec(**more)) == [fate]


def test_no_family_outgrows_the_others_and_what_is_left_of_it_spans_its_difficulties() -> None:
    large = [prompt(right=i % 10, family="large") for i in range(100)]
    prompts = [*large, *[prompt(family="a")] * 5, *[prompt(family="b")] * 5]
    found = fates(prompts, spec(balance=2.0))
    kept = [p for p, fate in zip(prompts, found, strict=True) if fate == "kept"]
    assert Counter(p.family for p in kept) == {"large": 10, "a": 5, "b": 5}
    assert sorted(p.right for p in kept if p.family == "large") == list(range(10))
    assert Counter(found)["balanced out"] == 90


def test_the_smaller_of_two_families_says_how_much_of_the_other_is_kept() -> None:
    prompts = [prompt(family="large")] * 100 + [prompt(family="small")] * 5
    assert Counter(fates(prompts, spec(balance=2.0))) == {"kept": 15, "balanced out": 90}


def test_prompts_that_nobody_could_judge_are_not_in_the_pass_rate_of_their_family() -> None:
    unjudged = prompt(right=0, judged=0, family="a")
    prompts = [prompt(family="a"), unjudged, prompt(right=0, judged=0, family="b")]
    made = report(prompts, fates(prompts, spec()))
    assert made["families"] == {"a": {"prompts": 2, "kept": 1, "pass_rate": 0.5}, "b": {"prompts": 1, "kept": 0, "pass_rate": None}}
    assert shown(prompts, made)[-2:] == ["  a: 1 of 2, 50%", "  b: 0 of 1, -"]


def test_one_family_alone_is_not_cut() -> None:
    assert set(fates([prompt()] * 50, spec(balance=1.0))) == {"kept"}


def test_the_report_counts() -> None:
    prompts = [prompt(right=0), prompt(right=1), prompt(right=10), prompt(judged=0, right=0), prompt(right=1, judged=3, family="x")]
    found = fates(prompts, spec())
    made = report(prompts, found)
    assert made["fates"] == {"kept": 3, "unjudged": 1, "guessable": 0, "too hard": 0, "too easy": 1, "balanced out": 0}
    assert histogram(prompts) == [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    families = made["families"]
    assert isinstance(families, dict)
    assert families["x"] == {"prompts": 1, "kept": 1, "pass_rate": 0.3333}


def test_a_range_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--min-pass \(0.5\) is more than --max-pass \(0.2\)"):
        spec(min_pass=0.5, max_pass=0.2)
