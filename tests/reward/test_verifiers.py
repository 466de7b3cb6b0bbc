"""What each verifier calls right. Verifiers that need no process of their own are asked directly."""

import random
import sys
import time
import unicodedata
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljob.api.verifiers import InstructionOptions, Place
from rljob.reward.registry import VERIFIERS, check, parse_options
from rljob.reward.verifier import Verifier
from rljob.reward.verifiers.extraction import extract, last_boxed, without_thoughts
from rljob.reward.verifiers.instruction import broken
from rljob.reward.verifiers.words import composed
from rljob.wire.reward import ScoreItem

MARKED = "x" + "\u0316" * 70
"""A letter with more accents than are put in order together."""


def _right(verifier: str, answer: str, reference: Any, **options: Any) -> bool:
    item = ScoreItem(id="a", verifier=verifier, prompt="", answer=answer, reference=reference, finished=True)
    found = VERIFIERS[verifier]
    assert isinstance(found, Verifier)
    return found.judge(item, parse_options(found, options)).right


@pytest.mark.parametrize(
    ("answer", "reference", "options", "right"),
    [
        ("yes", "yes", {}, True),
        (" yes\n", "yes", {}, True),
        ("Yes", "yes", {}, False),
        ("Yes", "yes", {"ignore_case": True}, True),
        ("yes, it is", "yes", {}, False),
        ("b", ["a", "b"], {}, True),
        ("", "yes", {}, False),
        ("cafe\u0301", "caf\u00e9", {}, True),
        (MARKED + " cafe\u0301", MARKED + " caf\u00e9", {}, True),
        (MARKED, MARKED + "\u0316", {}, False),
    ],
)
def test_exact(answer: str, reference: Any, options: dict[str, Any], right: bool) -> None:
    assert _right("exact", answer, reference, **options) is right


@pytest.mark.parametrize(
    ("answer", "reference", "options", "right"),
    [
        ("42", "42", {}, True),
        ("42", 42, {}, True),
        ("The answer is 42.", 42, {}, True),
        ("1,234.50", "1234.5", {}, True),
        ("It was 7, now it is 8", 8, {}, True),
        ("It was 8, now it is 7", 8, {}, False),
        ("\\boxed{8} of 9", 8, {}, True),
        ("8", 8, {"place": "boxed"}, False),
        ("about 3.14", 3.14159, {"tolerance": 0.01}, True),
        ("about 3.14", 3.14159, {}, False),
        ("1001", 1000, {"relative_tolerance": 0.01}, True),
        ("1/3", "1/3", {}, True),
        ("-5", 5, {}, False),
        ("10-5", 5, {}, True),
        ("The result is x = −5.", -5, {}, True),
        ("The result is x = −5.", 5, {}, False),
        ("−5", "x = −5", {"pick": "only"}, True),
        ("5 apples", 5, {"pick": "only"}, False),
        (" $5$ ", 5, {"pick": "only"}, True),
        ("1e3", 1000, {}, True),
        ("1/0", 5, {}, False),
        ("no number", 5, {}, False),
        ("so 3 + 4 #### 7", "some steps #### 7", {}, True),
    ],
)
def test_numeric(answer: str, reference: Any, options: dict[str, Any], right: bool) -> None:
    assert _right("numeric", answer, reference, **options) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("\\boxed{\\frac{3}{4}}", "0.75", True),
        ("\\boxed{\\frac{3}{4}}", "4", False),
        ("0.75", "\\frac{3}{4}", True),
        ("-\\dfrac{1}{2}", "-0.5", True),
        ("2\\frac12", "2.5", True),
        ("2 1/2", "2.5", True),
        ("2 1/2", "0.5", False),
        ("\\boxed{1{,}000}", "1000", True),
        ("\\boxed{1\\,000}", "0", False),
        ("10000", "10,\\!000", True),
        ("\\boxed{1,\\ 2}", "12", False),
        ("The loss is -$5.", "-5", True),
        ("The loss is -$5.", "5", False),
        ("x = - 5", "-5", True),
        ("x = –5", "5", False),
        ("It is 3–5", "5", True),
        ("- a: 3\n- 12 apples", "12", True),
        ("10^6", "6", False),
        ("10^6", "10", False),
        ("it is 7, 10^{6}", "7", False),
        ("2^{10}=1024", "1024", True),
        ("3 \\times 10^8 m", "3e8", True),
        ("5 m^2", "5", True),
        ("5 m^2", "2", False),
        ("\\boxed{\\frac{-3}{4}}", "-0.75", True),
        ("The angle is 90^\\circ.", "90", True),
        ("\\boxed{90^{\\circ}}", "$90^\\circ$", True),
        ("42", "The result: \\boxed{42}.", True),
        ("41 or 42, so 41", "42", False),
        ("40, 41, 42", "41", False),
    ],
)
def test_a_number_is_read_as_it_is_written_in_latex_and_print(answer: str, reference: str, right: bool) -> None:
    assert _right("numeric", answer, reference) is right


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("1,234", "1234"),
        ("1,234,567.5", "1234567.5"),
        ("1.234", "1.234"),
        ("12.000", "12"),
        ("Das sind 1.234,56 Euro.", "1234.56"),
        ("1.234.567", "1234567"),
        ("1.234.567,8", "1234567.8"),
        ("12,5", "12.5"),
        ("0,125", "0.125"),
        ("1234,567", "1234.567"),
        ("1,5e3", "1500"),
        ("3,5 \\times 10^2", "350"),
        ("\\boxed{12{,}5}", "12.5"),
        ("12 000", "12000"),
        ("1 234 567", "1234567"),
        ("12 000,5", "12000.5"),
        ("12 000.5", "12000.5"),
        ("I have 3 500 and no more.", "3500"),
        ("-12 000", "-12000"),
        ("12\u00a0000", "12000"),
        ("12\u202f000", "12000"),
        ("12\u2009000", "12000"),
        ("12~000", "12000"),
        ("12'000", "12000"),
        ("12’000.5", "12000.5"),
        ("1 234 1/2", "1234.5"),
        ("1,234 1/2", "1234.5"),
        ("1/1,000", "0.001"),
        ("2\\frac{100}{400}", "2.25"),
        # A list, a year, what stands on another line: numbers of their own.
        ("12 000 13", "13"),
        ("12 0000", "0"),
        ("In 1990 300", "300"),
        ("12\n000", "0"),
        ("1,2,3", "3"),
        ("12,34,567", "567"),
        ("1.5,2.25", "2.25"),
        ("3, 500", "500"),
        # Nobody can tell, so nothing is paid.
        ("1 234/5", None),
        ("12 000/7", None),
        ("on 12.05.2024", None),
        ("10.0.0.1", None),
    ],
)
def test_separators_are_read_by_one_rule_and_never_as_the_end_of_a_number(answer: str, number: str | None) -> None:
    """Whatever an answer may be mistaken for: of all these references it earns the reward for one at most."""
    others = ["0", "000", "5", "13", "56", "125", "234", "500", "567", "2024", "0.2024", "0.567", "1", "7", "246.8", "12", "1.2", "47.8"]
    others += ["12000", "1234", "1234.5", "1000", "2.5", "2.3", "0.1", "2"]
    paid = {reference for reference in [*others, number] if reference is not None and _right("numeric", answer, reference)}
    assert {Fraction(reference) for reference in paid} == ({Fraction(number)} if number is not None else set())


@pytest.mark.parametrize(
    "reference",
    [
        *("5 m^2", "9.8 m/s^2", "2024-05-01", "3:30", "1,00,000", "5 apples", "2, 3", "2 - 3", "H2", "\\sqrt{3}", "10^6"),
        *("2,5", "0,125", "1,2,3", "5 10 200", "12.05.2024", "1 234/5"),
    ],
)
def test_a_reference_that_only_holds_a_number_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="must be a number or end with one"):
        check("numeric", {}, reference)


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("… 9*2 = <<9*2=18>>18\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### -5", "-5"),
        ("3.0", "3"),
        ("50%", "50"),
        ("$18", "18"),
        ("18.", "18"),
        ("#### 12 000", "12000"),
        ("1.234,56", "1234.56"),
    ],
)
def test_a_reference_is_read_as_data_sets_write_it(reference: str, number: str) -> None:
    check("numeric", {}, reference)
    assert _right("numeric", number, reference)


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("Dogs are loyal.", {"mention": ["dog"], "min_words": 3}, None),
        ("They are loyal.", {"mention": ["dog"]}, "does not mention the topic"),
        ("A hotdog is food.", {"mention": ["dog"]}, "does not mention the topic"),
        ("Dogs.", {"min_words": 3}, "1 words, at least 3 asked"),
        ("One two.", {"min_words": 2}, None),
        ("One two three.", {"max_words": 2}, "3 words, at most 2 asked"),
        ("One two.", {"max_words": 2}, None),
        ("Dogs run.", {"mention": ["cat", "dog"]}, None),
        ("One. Two!", {"sentences": 2}, None),
        ("One. Two", {"sentences": 1}, "the last sentence does not end"),
        ("It is 3.5 km.", {"sentences": 1}, None),
        ('He said "stop."', {"sentences": 1}, None),
        ("One, two.", {"no_commas": True}, "has a comma"),
        ("A bad word.", {"avoid": ["bad"]}, "uses a word to avoid"),
        ("A badge.", {"avoid": ["bad"]}, None),
        ("Sure, yes.", {"begin": "Sure"}, None),
        ("Well, sure.", {"begin": "Sure"}, "does not begin as asked"),
        ("Yes. The end.", {"end": "The end."}, None),
        ("The end. Yes.", {"end": "The end."}, "does not end as asked"),
        ("Yes.", {"lowercase": True}, "has capital letters"),
        ("yes.", {"lowercase": True}, None),
        ("YES.", {"uppercase": True}, None),
        ("Yes.", {"uppercase": True}, "has small letters"),
        ("Dogs are loyal. A", {"sentences": 1}, "the last sentence does not end"),
        ("He said “stop.”", {"sentences": 1}, None),
        ("**Dogs are loyal.**", {"sentences": 1}, None),
        ("I love C++ and Rust.", {"avoid": ["C++"]}, "uses a word to avoid"),
        ("I use .NET daily", {"mention": [".NET"]}, None),
        ("What a day!", {"avoid": ["!"]}, "uses a word to avoid"),
        ("I don’t know", {"avoid": ["don't"]}, "uses a word to avoid"),
        ("Red， green", {"no_commas": True}, "has a comma"),
        ("我爱鸭子。", {"mention": ["鸭"]}, None),
        ("我爱鸭子。", {"avoid": ["鸭"]}, "uses a word to avoid"),
        ("我爱鸭子。", {"max_words": 3}, "4 words, at most 3 asked"),
        (MARKED + " cafe\u0301", {"avoid": ["caf\u00e9"]}, "uses a word to avoid"),
    ],
)
def test_instruction(text: str, options: dict[str, Any], reason: str | None) -> None:
    assert broken(text, InstructionOptions.model_validate(options)) == reason


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1}", "1"),
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1", None),
        ("1", None),
        ("\\boxed{}", ""),
        ("\\boxed {42}", "42"),
    ],
)
def test_the_last_box_counts(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


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


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 1_000_000,
        "1e999999999",
        "-" * 1_000_000,
        "1," * 500_000,
        "1,111" * 200_000,
        "\\boxed{" * 150_000,
        "\\boxed{" + "{" * 900_000,
        "!" * 1_000_000,
        ". " * 500_000,
        ".!?" * 300_000 + "x",
        "answer" + "\n" * 900_000,
        "choose option " * 70_000,
        "1 1/1 " * 150_000,
        "- " + "." * 900_000 + "x",
        "\\frac{" * 150_000 + "=-" * 50_000,
        "!" * 500_000 + "我" * 300_000,
        "\0\ud83d\udc00" * 1000,
        "1 111" * 200_000,
        "1,111,111 1111 " * 60_000,
        "1.111" * 200_000,
        "the answer is " + "A, " * 300_000,
        "a" + "\u0301" * 40_000 + "\u0316" * 40_000,
        "\u0f73" * 80_000,
        ("\u0301" * 29 + "a") * 30_000,
    ],
    ids=range(24),
)
@pytest.mark.parametrize("verifier", ["exact", "numeric", "instruction", "choice"])
def test_verifiers_without_a_process_of_their_own_are_fast_whatever_the_answer(verifier: str, answer: str) -> None:
    options = {"instruction": {"sentences": 1, "mention": ["x"], "avoid": ["y"]}}.get(verifier, {})
    reference = "B" if verifier == "choice" else "7"
    started = time.process_time()
    assert not _right(verifier, answer.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), reference, **options)
    assert time.process_time() - started < 2


def test_texts_are_composed_as_unicode_says_unless_marks_pile_up() -> None:
    odd = [chr(number) for number in range(0x80, sys.maxunicode + 1) if unicodedata.category(chr(number))[0] in "MPS"]
    chance = random.Random(0)
    texts = ["\u21d2" * 30 + "\u0338", "a" + "\u0316\u0301" * 14, *("".join(chance.choices(odd, k=200)) for _ in range(300))]
    texts += ["".join(chance.choices(["a", "\u21d2", "\uac00", "\u0338", "\u0301", "\u0316"], k=200)) for _ in range(300)]
    assert [text for text in texts if composed(text) != unicodedata.normalize("NFC", text)] == []


@given(st.text(max_size=300))
def test_no_answer_makes_a_verifier_raise(answer: str) -> None:
    for verifier, reference, options in (
        ("exact", "a", {}),
        ("numeric", "3", {}),
        ("choice", "B", {}),
        ("instruction", None, {"sentences": 2, "mention": ["a"], "max_words": 3, "no_commas": True}),
    ):
        _right(verifier, answer, reference, **options)


@pytest.mark.parametrize(
    ("verifier", "options", "reference", "message"),
    [
        ("exact", {}, 3, "`reference` must be a text"),
        ("exact", {"case": True}, "a", r"option `case`: Extra inputs .* \(options are ignore_case\)"),
        ("numeric", {}, "none", "must be a number or end with one"),
        ("numeric", {}, True, "must be a number"),
        ("numeric", {"tolerance": -1}, 3, "option `tolerance`: Input should be greater"),
        ("math", {}, None, "must be a number or an expression"),
        ("math", {}, True, "must be a number"),
        ("reasoning-gym", {}, "42", "must hold the generator's `dataset` and `entry`"),
        ("instruction", {}, None, "no instruction is set"),
        ("instruction", {"min_words": 5, "max_words": 3}, None, r"max_words \(3\) is less than min_words \(5\)"),
    ],
)
def test_what_cannot_be_judged_is_found_before_training(verifier: str, options: dict[str, Any], reference: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(verifier, options, reference)
