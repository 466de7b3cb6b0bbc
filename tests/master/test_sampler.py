"""The sampler: exact walks, and distributions."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rljob.api.algorithm import Sampling
from rljob.master.decisions.sampler import FLOOR, Draw, Statistics, draw

UNIFORM, PRIORITIZED = Sampling(), Sampling(strategy="prioritized")


def curriculum(iterations: int) -> Sampling:
    return Sampling(strategy="curriculum", curriculum_iterations=iterations)


@given(size=st.integers(1, 40), counts=st.lists(st.integers(0, 15), max_size=12), seed=st.integers(0, 1000))
def test_a_uniform_walk_sees_every_prompt_once_per_epoch_however_it_is_cut(size: int, counts: list[int], seed: int) -> None:
    drawn: list[int] = []
    for iteration, count in enumerate(counts, 1):
        drawn += draw(Draw(seed, iteration, len(drawn), count), UNIFORM, True, [0.0] * size, [Statistics()] * size, ())
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))


def test_the_walk_is_shuffled_anew_for_every_epoch_and_seed() -> None:
    def walk(seed: int, position: int) -> tuple[int, ...]:
        return draw(Draw(seed, 1, position, 30), UNIFORM, True, [0.0] * 30, [Statistics()] * 30, ())

    assert walk(0, 0) == walk(0, 0)
    assert len({walk(0, 0), walk(0, 30), walk(1, 0)}) == 3


def test_file_order_is_kept_when_asked_for() -> None:
    assert draw(Draw(0, 1, 4, 4), UNIFORM, False, [0.0] * 6, [Statistics()] * 6, ()) == (4, 5, 0, 1)


@given(size=st.integers(2, 60), iteration=st.integers(1, 12), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_curriculum_draws_from_the_easiest_share_that_has_opened(size: int, iteration: int, count: int, seed: int) -> None:
    difficulties = [float((7 * i) % size) for i in range(size)]
    chosen = draw(Draw(seed, iteration, 0, count), curriculum(10), True, difficulties, [Statistics()] * size, ())
    opened = max(-(-size * min(iteration, 10) // 10), min(count, size))
    hardest = sorted(difficulties)[opened - 1]
    assert all(difficulties[i] <= hardest for i in chosen)
    assert len(set(chosen)) == min(count, opened)


def test_a_part_of_a_prompt_opens_the_whole_one() -> None:
    """A quarter of ten prompts are three."""
    drawn = {draw(Draw(seed, 1, 0, 1), curriculum(4), True, list(map(float, range(10))), [Statistics()] * 10, ())[0] for seed in range(40)}
    assert drawn == {0, 1, 2}


def test_a_curriculum_prefers_what_was_drawn_least() -> None:
    statistics = [Statistics(draws=1)] * 4 + [Statistics()] * 2
    assert set(draw(Draw(0, 10, 4, 2), curriculum(5), True, [0.0] * 6, statistics, ())) == {4, 5}


def test_prioritized_sampling_draws_in_proportion_to_one_minus_the_success_rate() -> None:
    statistics = [Statistics(1, 10, successes) for successes in (0, 5, 8, 10)] + [Statistics()]
    counts = Counter(draw(Draw(0, i, 0, 1), PRIORITIZED, True, [0.0] * 5, statistics, ())[0] for i in range(20_000))
    weights = [1.0, 0.5, 0.2, 0.001, 1.0]
    for index, weight in enumerate(weights):
        expected = weight / sum(weights)
        # Four standard errors of a proportion of 20,000 draws.
        assert abs(counts[index] / 20_000 - expected) < 4 * (expected * (1 - expected) / 20_000) ** 0.5 + 1e-9


def test_what_is_always_answered_right_is_still_seen_now_and_then() -> None:
    assert Statistics(draws=1, samples=10, successes=10).priority == FLOOR > 0


@given(size=st.integers(1, 30), count=st.integers(0, 30), open_count=st.integers(0, 30), iteration=st.integers(1, 9))
def test_prompts_in_progress_come_last(size: int, count: int, open_count: int, iteration: int) -> None:
    in_progress = set(range(min(open_count, size)))
    for sampling in (PRIORITIZED, curriculum(1)):
        chosen = draw(Draw(3, iteration, 0, count), sampling, True, [0.0] * size, [Statistics()] * size, in_progress)
        assert len(chosen) == count
        free = size - len(in_progress)
        assert not in_progress & set(chosen[:free])
        assert len(set(chosen[:size])) == min(count, size)


def test_a_draw_is_a_function_of_seed_and_iteration() -> None:
    for sampling in (PRIORITIZED, curriculum(3)):
        first, again, later, other = (
            draw(Draw(seed, iteration, 0, 10), sampling, True, [0.0] * 50, [Statistics()] * 50, ())
            for seed, iteration in ((1, 2), (1, 2), (1, 3), (2, 2))
        )
        assert first == again
        assert first not in (later, other)
