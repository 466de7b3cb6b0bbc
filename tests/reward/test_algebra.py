"""What `math` decides without a library is what math-verify decides; what it cannot decide, it says so, and soon."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljob.reward.verifiers.algebra import same

EQUAL = [
    ("1/2", "0.5"), ("1/2", "\\frac{1}{2}"), ("\\frac12", "\\dfrac{2}{4}"), ("7", "+7"), ("-3", "−3"), ("1,234", "1234"),
    ("1234567", "1,234,567"), ("\\sqrt{8}", "2\\sqrt{2}"), ("\\frac{1}{\\sqrt2}", "\\frac{\\sqrt{2}}{2}"),
    ("\\sqrt{2}\\sqrt{3}", "\\sqrt{6}"), ("\\sqrt{2}^{3}", "2\\sqrt{2}"),
    ("(3x\\sqrt{2})^{2}", "18x^2"),
    ("\\frac{3\\pi}{4}", "\\frac{3}{4}\\pi"), ("x^2+2x+1", "(x+1)^2"), ("\\frac{x}{y}", "x/y"), ("x^{-1}", "\\frac1x"), ("2^{10}", "1024"),
    ("5!", "120"), ("(1,2)", "(1, 2)"), ("(\\frac12, 3)", "(0.5, 3)"), ("\\{1,2\\}", "\\{2, 1\\}"), ("(-\\infty,3]", "(-\\infty, 3]"),
    ("[0,1)", "\\left[0,1\\right)"), ("$42$", "42"), ("2\\cdot 3", "6"), ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
]  # fmt: skip
DIFFERENT = [
    ("1/2", "0.4"), ("7", "8"), ("-3", "3"), ("\\sqrt{2}", "\\sqrt{3}"), ("\\pi", "3"), ("x+1", "x+2"), ("2x", "x^2"), ("(1,2)", "(2,1)"),
    ("\\{1,2\\}", "\\{1,3\\}"), ("100", "10"), ("\\frac{3\\pi}{4}", "\\frac{\\pi}{4}"), ("1234", "1,235"), ("[0,1]", "[0,2]"),
    ("1234567", "1234568"), ("\\pi", "3.14"), ("1/3", "0.3333"), ("2.5", "2.51"), ("\\sqrt{2}", "1.414"), ("10", "1"), ("0", "0.001"),
]  # fmt: skip
UNDECIDED = [
    ("\\pi", "3.141593"), ("1/3", "0.333333"), ("1/2x", "1/2x"), ("2\\frac12", "2.5"), ("x^10", "x^10"), ("f(x)", "f(x)"),
    ("1 234", "1234"),
    ("5", "5\\text{ cm}"), ("x=5", "5"), ("50\\%", "0.5"), ("17", "x^2"), ("x", "y"), ("(1,2)", "[1,2]"), ("1e5", "100000"), ("i", "i"),
    ("word", "word"), ("", ""), ("\\frac{1}{0}", "1"), ("1", "\\frac{1}{0}"), ("\\sqrt{-1}", "1"),
]  # fmt: skip
EXCESSIVE = [
    "9^{9^{9^{9}}}", "2^{10^{10}}", "10000000!", "{" * 1500 + "}" * 1500, "\\frac{1}{" * 150 + "2" + "}" * 150, "2^100000000", 
    "\\sqrt{2}^{1000000001}",
    "(" * 60 + "1" + ")" * 60,
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal_values_are_equal_however_they_are_written(reference: str, answer: str) -> None:
    assert same(reference, answer) is True
    assert same(answer, reference) is True


def test_a_full_stop_is_no_part_of_a_number() -> None:
    """math-verify finds no number in `7.`."""
    assert same("7", "7.") is True


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_other_values_are_not(reference: str, answer: str) -> None:
    assert same(reference, answer) is False


@pytest.mark.parametrize(("reference", "answer"), UNDECIDED)
def test_what_is_ambiguous_or_nearly_equal_is_left_to_math_verify(reference: str, answer: str) -> None:
    assert same(reference, answer) is None


@pytest.mark.parametrize("answer", EXCESSIVE, ids=range(len(EXCESSIVE)))
def test_an_excessive_answer_is_wrong_unless_the_reference_is_excessive_too(answer: str) -> None:
    assert same("7", answer) is False
    assert same(answer, answer) is None


@pytest.mark.parametrize(("reference", "answer"), EQUAL + DIFFERENT)
def test_math_verify_decides_the_same(reference: str, answer: str) -> None:
    from math_verify import parse, verify

    wanted, found = (parse(f"\\boxed{{{text.strip('$')}}}", parsing_timeout=None) for text in (reference, answer))
    assert verify(wanted, found, timeout_seconds=None) is ((reference, answer) in EQUAL)


NUMBER = st.integers(0, 40).map(str)
TERM = st.recursive(
    NUMBER | st.sampled_from(["x", "\\pi", "0.5", "\\sqrt{2}", "\\sqrt{12}"]),
    lambda inner: st.tuples(st.sampled_from(["({}+{})", "({}-{})", "{}\\cdot {}", "\\frac{{{}}}{{{}}}", "({})^2+{}"]), inner, inner).map(
        lambda parts: parts[0].format(parts[1], parts[2])
    ),
    max_leaves=5,
)


@given(TERM, TERM)
def test_equality_is_that_of_the_values(a: str, b: str) -> None:
    """Twice the same value, written in two ways, and one that is greater by one."""
    decided = same(f"({a})-({b})", f"-(({b})-({a}))")
    assert decided is not False
    if decided:
        assert same(f"({a})-({b})", f"({a})-({b})+1") is not True


FRAGMENTS = st.sampled_from(
    ["\\frac", "{", "}", "(", ")", "[", "]", "\\{", "\\}", ",", "^", "!", "1", "9", "99999", "x", "\\sqrt", "\\pi", "+", "-", "/", "*",
     ".", " ", "e"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=80).map("".join) | st.text(max_size=80))
def test_no_text_makes_it_raise(text: str) -> None:
    same("7", text)
    same(text, text)


@pytest.mark.parametrize(
    "text",
    [
        "(x+y+z+w)^{64}", "(1+x)^{64}(1+y)^{64}", "3000!/2999!", "(2999!)^{2}", "3000!!", "(3000!+1)^{3}x",
        "*".join(["2999!"] * 40), "+".join(f"1/{n}" for n in range(2, 90)),
        "9" * 300, "(a+b)" * 60, "\\sqrt{99999989}" * 20, "((((x+1)^{8}+1)^{8}+1)^{8}+1)^{8}", "(1/3+x)^{60}", "9^{9999}*9^{9999}*x",
        "\\sqrt{2}^{64}", "\\frac{1}{" * 38 + "x" + "}" * 38,
    ],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    same("7", text)
    same("x", text)
    assert time.process_time() - started < 0.3
