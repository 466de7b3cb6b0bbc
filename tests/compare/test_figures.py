"""What verdicts come to."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljob.compare.figures import Judged, Pair, Share, pair, standing

VERDICTS = st.lists(st.tuples(st.booleans(), st.sampled_from([True, False, None]), st.sampled_from([True, False, None])), max_size=30)


def judged(*right: bool | None) -> list[Judged]:
    return [Judged(one, "", seconds=float(number)) for number, one in enumerate(right, 1)]


def test_a_failure_counts_neither_as_right_nor_as_wrong() -> None:
    found = standing([True, True, False, False, True], judged(True, False, True, False, None))
    assert (found.accuracy, found.failed) == (Share(2, 4), 1)
    assert (found.rewarded_wrongly, found.refused_wrongly) == (Share(1, 2), Share(1, 2))
    assert (found.median_seconds, found.slow_seconds) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(844, 1000, 0.8202, 0.8652), (985, 1000, 0.9754, 0.9909), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_the_interval_is_wilsons(hits: int, of: int, low: float, high: float) -> None:
    assert Share(hits, of).interval == pytest.approx((low, high), abs=1e-4)


def test_nothing_has_no_share() -> None:
    assert (Share(0, 0).value, Share(0, 0).interval) == (None, (0.0, 1.0))


def test_two_verifiers_are_compared_on_what_both_judged() -> None:
    labels = [True] * 6 + [False] * 2
    first = judged(True, True, True, True, True, None, False, False)
    second = judged(True, False, False, False, False, True, False, True)
    found = pair(labels, first, second)
    assert (found.agreement, found.only_first, found.only_second) == (Share(2, 7), 5, 0)
    assert found.p == 2 / 2**5
    assert found.kappa == pytest.approx((2 / 7 - (5 * 2 + 2 * 5) / 49) / (1 - (5 * 2 + 2 * 5) / 49))


def test_equal_verifiers_agree_fully() -> None:
    assert pair([True, False], judged(True, False), judged(True, False)) == Pair(Share(2, 2), 1.0, 0, 0, 1.0)
    assert pair([True, False], judged(True, True), judged(True, True)).kappa is None


@given(VERDICTS)
def test_figures_are_shares_and_pairs_are_symmetric(found: list[tuple[bool, bool | None, bool | None]]) -> None:
    labels = [label for label, _, _ in found]
    first, second = judged(*(a for _, a, _ in found)), judged(*(b for _, _, b in found))
    one, other = pair(labels, first, second), pair(labels, second, first)
    assert (one.agreement, one.kappa, one.only_first, one.only_second, one.p) == (
        other.agreement, other.kappa, other.only_second, other.only_first, other.p)  # fmt: skip
    assert 0.0 < one.p <= 1.0
    for share in itertools.chain([one.agreement], [standing(labels, first).accuracy] if found else []):
        low, high = share.interval
        assert 0.0 <= low <= (low if share.value is None else share.value) <= high <= 1.0
