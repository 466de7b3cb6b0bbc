"""Multiple choice, regular expressions, graded terms and their weighted combination; whose code and which address may judge."""

from typing import Any

import pytest
from tests.reward.asked import Nobody, item

from rljob.api.verifiers import named
from rljob.reward.judge import Judge, standard_judge
from rljob.reward.pool import WorkerPool
from rljob.reward.registry import VERIFIERS, check
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.repetition import repeated
from rljob.wire.reward import ScoreItem, ScoreResult

pytestmark = pytest.mark.asyncio


async def score(asked: ScoreItem) -> ScoreResult:
    return await standard_judge(Nobody(), 1.0).score(asked)


@pytest.mark.parametrize(
    ("answer", "reference", "options", "verdict"),
    [
        ("\\boxed{B}", "B", {}, "right"),
        ("\\boxed{\\text{B}}", "B", {}, "right"),
        ("\\boxed{(b)}", "B", {}, "right"),
        ("B", "B", {}, "right"),
        (" (B). ", "B", {}, "right"),
        ("**B**", 1, {}, "right"),
        ("I think so.\nThe answer is (B).", "B", {}, "right"),
        ("Answer: **B**", "B", {}, "right"),
        ("The answer is A. No, the answer is B.", "B", {}, "right"),
        ("The answer is a number.", "A", {}, "wrong"),
        ("The answer is Apple.", "A", {}, "wrong"),
        ("A, B, C or D", "B", {}, "wrong"),
        ("\\boxed{A B C D}", "B", {}, "wrong"),
        ("\\boxed{A}, the answer is B", "B", {}, "wrong"),
        ("\\boxed{E}", "B", {"choices": "ABCD"}, "wrong"),
        ("", "B", {}, "wrong"),
        ("\\boxed{A, C}", "AC", {"several": True}, "right"),
        ("\\boxed{CA}", ["A", "C"], {"several": True}, "right"),
        ("\\boxed{A and C}", ["A", "C"], {"several": True}, "right"),
        ("\\boxed{A, B, C}", "AC", {"several": True}, "wrong"),
        ("\\boxed{A}", "AC", {"several": True}, "wrong"),
    ],
)
async def test_a_choice_is_one_letter_and_no_other_can_be_meant(answer: str, reference: Any, options: dict[str, Any], verdict: str) -> None:
    assert (await score(item("choice", answer, reference, **options))).verdict == verdict


async def named_choices(answer: str) -> str:
    """The letters for which an answer is right."""
    return "".join([letter for letter in "ABCDEFGHIJ" if (await score(item("choice", answer, letter))).verdict == "right"])


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("The answer is C. Option B is wrong because penguins cannot fly.", "C"),
        ("The correct answer is **C**.\n\nExplanation: option A confuses mass and weight, option D has the wrong unit.", "C"),
        ("The answer is B. C has the wrong unit.", "B"),
        ("The answer is B, C is wrong.", "B"),
        ("The answer is B, I think.", "B"),
        ("The answer I choose is B.", "B"),
        ("Answer:\nB", "B"),
        ("**Answer**\n\nB", "B"),
        ("The correct answer is \\(B\\).", "B"),
        ("The answer is $\\text{B}$.", "B"),
        ("the answer is b) Paris", "B"),
        ("The answer is option B.", "B"),
        ("Option A is wrong. Option D has the wrong unit. So option C.", "C"),
        ("I choose option B because it fits.", "B"),
        ("My choice is B", "B"),
        ("Option B", "B"),
        ("Option B is correct.", "B"),
        ("B) Paris", "B"),
        ("**B.** Paris", "B"),
        ("\\boxed{\\textbf{(B)}\\ 4}", "B"),
        ("\\boxed{\\text{B) Paris}}", "B"),
        ("The answer is I.", "I"),
        ("Answer: B\n\nA: wrong unit\nC: too long", "B"),
        ("Answer: B\nA. Penguins cannot fly.", "B"),
        ("So it should be C? No, the answer should be B.", "B"),
        ("<answer>\nB\n</answer>", "B"),
        ("The answer is B; A and C are wrong", "B"),
        ("The answer is B; A, C and D are wrong.", "B"),
        ("The answer is (B); (A) and (C) are wrong.", "B"),
        ("The answer is **B**, **A** and **C** are wrong.", "B"),
        ("The answer is B, and A is wrong.", "B"),
        ("The answer is B; and A, C or D cannot be right.", "B"),
        ("The answer is B - A and C confuse mass and weight.", "B"),
        ("The answer is B (A and C are both wrong).", "B"),
        ("The answer is B: A and C are not correct.", "B"),
        ("The answer is B; options A and C are wrong.", "B"),
        ("The answer is B, not A or C.", "B"),
        ("The answer is B; neither A nor C fits.", "B"),
        ("A and C are wrong; the answer is B", "B"),
        ("I choose option B; A and C are too long.", "B"),
        ("Answer: B\nA and C are too long", "B"),
    ],
)
async def test_a_choice_is_found_in_the_words_of_a_model_that_explains_itself(answer: str, choice: str) -> None:
    assert await named_choices(answer) == choice


@pytest.mark.parametrize(
    "answer",
    [
        "Answer: A or B",
        "The answer is A/B",
        "The answer is A, B, C or D.",
        "The answer is either A or B",
        "Answer: A B C D",
        "Answer: A\nB\nC",
        "Answer: A; B",
        "The answer is A; B and C",
        "The answer is A and C are wrong",
        "The answer is A, B, and C",
        "The answer is A; B and C are correct as well",
        "The answer is A; B and C are also right.",
        "The answer is A, B is right.",
        "The answer is A, and B is also correct.",
        "The answer is A, B too",
        "The answer is A, B, C or D are possible",
        "Answer: (A), (B)",
        "Answer: A (or B)",
        "Answer: A... or B",
        "Answer: ABCD",
        "Option A, B or C",
        "A) 3  B) 4  C) 5  D) 22",
        "A. No wait, B.",
        "\\boxed{A) 3 B) 4 C) 5}",
        "\\boxed{A. or B}",
        "\\boxed{C, since A}",
        "The answer is not B.",
        "I reject answer B.",
        "Option B is wrong.",
        "The answer I think of",
        "The answer is C++",
        "e.g. this",
    ],
)
async def test_an_answer_that_names_several_choices_or_refuses_one_is_right_for_none(answer: str) -> None:
    assert await named_choices(answer) == ""


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("<think>Maybe the answer is C? No.</think>\nB", "right"),
        ("<think>\\boxed{C} hm</think>\n**B**", "right"),
        ("No tag opens these, \\boxed{C}.</think>B", "right"),
        ("<think>\n\n</think>\n\nB", "right"),
        ("<think>\\boxed{B}</think>I do not know", "wrong"),
        ("<think>The answer is B.", "wrong"),
        ("B <think>", "wrong"),
        ("<think>a</think>B<think>c</think>", "wrong"),
        ("B</think>C", "wrong"),
        ("<think>C</think>B: `<think>` begins it.", "right"),
        ("B: `<think>` begins it.", "right"),
    ],
)
async def test_what_a_model_thinks_is_no_answer(answer: str, verdict: str) -> None:
    assert (await score(item("choice", answer, "B"))).verdict == verdict
    terms = [{"verifier": "choice"}, {"verifier": "length"}]
    assert (await score(item("weighted", answer, "B", terms=terms))).verdict == verdict


async def test_thoughts_count_for_the_form_of_an_answer(pool: WorkerPool) -> None:
    thoughts = "<think>one two three</think> yes"
    assert (await score(item("length", thoughts, full_at=1, zero_at=7))).reward == 0.5
    found = await standard_judge(pool, 5.0).score(item("regex", thoughts, pattern="<think>.+</think> yes", match="full"))
    assert found.verdict == "right"
    assert (await score(item("exact", thoughts, "yes"))).verdict == "right"


@pytest.mark.parametrize(
    ("answer", "options", "reward"),
    [
        ("w " * 100, {}, 1.0),
        ("w " * 600, {}, 0.5),
        ("w " * 2000, {}, 0.0),
        ("w " * 50, {"full_at": 100, "zero_at": 0}, 0.5),
        ("abcd", {"unit": "characters", "full_at": 0, "zero_at": 8}, 0.5),
        ("", {}, 1.0),
    ],
)
async def test_length_is_graded(answer: str, options: dict[str, Any], reward: float) -> None:
    result = await score(item("length", answer, **options))
    assert (result.reward, result.verdict) == (reward, "right" if reward == 1.0 else "wrong")


async def test_repetition_is_graded() -> None:
    assert (await score(item("repetition", "one two three four five six"))).reward == 1.0
    assert (await score(item("repetition", "so it goes on " * 50))).reward == 0.0
    assert repeated("a b a b a", 2) == 0.5
    assert (await score(item("repetition", "a b a b a", ngram=2, zero_at=1.0))).reward == 0.5
    assert (await score(item("repetition", ""))).reward == 1.0
    assert repeated("so it goes", 3) == 0.0
    assert repeated(" ".join(map(str, range(60_000))) + " so it goes" * 20_000, 3) > 0.9, "of a long answer the end is looked at"


async def test_each_character_of_chinese_and_japanese_is_a_word() -> None:
    assert (await score(item("repetition", "我爱你。" * 300))).reward == 0.0
    assert (await score(item("length", "我爱鸭子。" * 100))).reason == "400 words"
    assert (await score(item("length", "I said 「鸭」 to him!"))).reason == "5 words"
    found = await score(item("length", "我爱鸭子", unit="characters", full_at=0, zero_at=8))
    assert (found.reward, found.reason) == (0.5, "4 characters"), "and no bytes"


TERMS: list[dict[str, Any]] = [
    {"verifier": "exact", "weight": 3},
    {"verifier": "length", "options": {"unit": "characters", "full_at": 0, "zero_at": 8}},
]


@pytest.mark.parametrize(
    ("answer", "more", "verdict", "reward"),
    [
        ("yes!", {}, "right", 0.75 + 0.125),
        ("nope", {}, "wrong", 0.125),
        ("nope", {"only_if_right": True}, "wrong", 0.0),
        ("yes!", {"only_if_right": True}, "right", 0.875),
        ("yes!", {"decides": True}, "wrong", 0.875),
    ],
)
async def test_a_weighted_reward_is_the_mean_of_its_terms(answer: str, more: dict[str, Any], verdict: str, reward: float) -> None:
    result = await score(item("weighted", answer, "yes!", terms=[TERMS[0], TERMS[1] | more]))
    assert result.verdict == verdict
    assert result.reward == pytest.approx(reward)
    assert result.reason.startswith("exact ")


async def test_all_terms_at_their_best_are_exactly_one() -> None:
    terms = [{"verifier": "exact", "weight": weight} for weight in (0.1, 0.2, 0.7)]
    assert (await score(item("weighted", "a", "a", terms=terms))).reward == 1.0


async def test_a_term_that_fails_fails_the_whole() -> None:
    result = await score(item("weighted", "a", "a", terms=[{"verifier": "exact"}, {"verifier": "code"}]))
    assert (result.verdict, result.reward) == ("failed", None)
    assert result.reason.startswith("verifier code: `reference`")


@pytest.mark.parametrize("reward", [1.5, -0.5])
async def test_a_reward_beyond_one_or_below_zero_is_a_failure(reward: float) -> None:
    found = Verifier("generous", VERIFIERS["exact"].options, lambda item, options: Judgement(True, "", reward))
    result = await Judge(Nobody(), 1.0, {"generous": found}).score(item("generous", "a"))
    assert (result.verdict, result.reward) == ("failed", None)


@pytest.mark.parametrize(
    ("answer", "reference", "options", "verdict"),
    [
        ("My name is Ann.", "Ann|Bob", {}, "right"),
        ("my name is ann.", "Ann|Bob", {}, "wrong"),
        ("my name is ann.", "Ann|Bob", {"ignore_case": True}, "right"),
        ("Ann.", "Ann", {"match": "full"}, "wrong"),
        ("so \\boxed{12}", None, {"pattern": "\\d+", "match": "full", "place": "boxed"}, "right"),
        ("so 12", None, {"pattern": "\\d+", "place": "boxed"}, "wrong"),
        ("a" * 40 + "!", None, {"pattern": "(a+)+$"}, "wrong"),
        ("aaa", None, {"pattern": "(a+)+$"}, "right"),
    ],
)
async def test_a_regular_expression_matches_or_is_cut_off(
    pool: WorkerPool, answer: str, reference: Any, options: dict[str, Any], verdict: str
) -> None:
    result = await standard_judge(pool, 0.7).score(item("regex", answer, reference, **options))
    assert result.verdict == verdict, result.reason


@pytest.mark.parametrize(
    ("verifier", "options"),
    [
        ("import", {"path": "os:system"}),
        ("http", {"url": "http://169.254.169.254/latest"}),
        ("weighted", {"terms": [{"verifier": "exact"}, {"verifier": "import", "options": {"path": "os:system"}}]}),
    ],
)
async def test_no_record_can_name_code_or_an_address(verifier: str, options: dict[str, Any]) -> None:
    allowed = frozenset(named("import", {"path": "mine:judge"}))
    result = await standard_judge(Nobody(), 1.0, named=allowed).score(item(verifier, "a", "a", **options))
    assert (result.verdict, result.reward) == ("failed", None)
    assert "only the job may name code or an address" in result.reason
    with pytest.raises(ValueError, match="only the job may name code or an address"):
        check(verifier, options, "a", allowed)
    check(verifier, options, "a", frozenset(named(verifier, options)))


@pytest.mark.parametrize("terms", ["abc", [1], [{}], [{"verifier": "weighted"}], [{"verifier": "math", "options": 3}], {"a": 1}, None])
async def test_options_that_are_none_are_a_failure_that_says_so(terms: Any) -> None:
    result = await score(item("weighted", "a", "a", terms=terms))
    assert (result.verdict, result.reward) == ("failed", None)
    assert result.reason.startswith("verifier weighted: option `terms")
