"""Packing loses nothing, doubles nothing, and keeps to its budget."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljob.trainer.packing import (
    SMALL,
    WASTE,
    Part,
    Row,
    answers_of,
    bins,
    needed,
    padded,
    rl_steps,
    row,
    sequence_row,
    sft_steps,
    share,
    similar,
)
from rljob.wire.batch import Batch, Group, Sample


def sample(length: int, advantage: float = 1.0, mask: list[int] | None = None) -> Sample:
    tokens = np.arange(length, dtype=np.int32) + 10
    return Sample(tokens, np.array(mask or [1] * length, np.uint8), np.zeros(length, np.float32), advantage)


def parts(*sizes: tuple[int, list[int]]) -> list[Part]:
    """Groups given as (prompt length, answer lengths)."""
    groups = tuple(Group(np.arange(p, dtype=np.int32), tuple(sample(n) for n in answers)) for p, answers in sizes)
    return answers_of(Batch(1, groups))


def indices(rows: list[list[Part]]) -> list[int]:
    return sorted(a.index for members in rows for part in members for a in part.answers)


def test_a_row_is_the_prompt_once_and_then_its_answers_without_their_last_tokens() -> None:
    packed = row(parts((3, [2, 4])))
    assert packed.tokens.tolist() == [0, 1, 2, 10, 10, 11, 12]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4, 5]
    assert packed.spans == ((0, 3, 3, 0), (0, 3, 3, 1), (0, 3, 4, 3))
    assert packed.predictors.tolist() == [2, 3, 2, 4, 5, 6]
    assert packed.targets.tolist() == [10, 11, 10, 11, 12, 13]
    assert packed.sample.tolist() == [0, 0, 1, 1, 1, 1]


def test_what_is_out_of_the_loss_is_context_but_not_predicted_and_not_computed_at_the_end() -> None:
    answer = replace(sample(5, mask=[0, 1, 1, 0, 0]), logprobs=-np.arange(5, dtype=np.float32))
    packed = row(answers_of(Batch(1, (Group(np.arange(2, dtype=np.int32), (answer,)),))))
    assert packed.tokens.tolist() == [0, 1, 10, 11]
    assert packed.targets.tolist() == [11, 12]
    assert packed.predictors.tolist() == [2, 3]
    assert packed.engine_logprobs.tolist() == [-1, -2]
    assert [array.dtype.name for array in (packed.tokens, packed.targets, packed.engine_logprobs)] == ["int64", "int64", "float64"]


def test_a_batch_is_not_copied_for_its_answers() -> None:
    """Every rank has all of it."""
    batch = Batch(1, (Group(np.arange(2, dtype=np.int32), (sample(5),)),))
    ((answer,),) = (part.answers for part in answers_of(batch))
    assert np.shares_memory(answer.tokens, batch.groups[0].samples[0].tokens)
    assert np.shares_memory(answer.engine_logprobs, batch.groups[0].samples[0].logprobs)


def test_samples_without_advantage_or_without_loss_tokens_are_left_out_unless_regularised() -> None:
    groups = (Group(np.arange(2, dtype=np.int32), (sample(3), sample(3, advantage=0.0), sample(3, mask=[0, 0, 0]))),)
    members = answers_of(Batch(1, groups))
    assert indices([needed(members, regularised=False)]) == [0]
    assert indices([needed(members, regularised=True)]) == [0, 1]
    assert needed(answers_of(Batch(1, (Group(np.arange(2, dtype=np.int32), (sample(3, 0.0),)),))), regularised=False) == []


sizes = st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(1, 40), min_size=1, max_size=6)), min_size=1, max_size=6)


@given(sizes, st.integers(16, 128), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_exactly_one_micro_batch_and_ranks_get_as_many(
    groups: list[tuple[int, list[int]]], budget: int, ranks: int
) -> None:
    members = parts(*groups)
    filled = bins(members, budget, ranks)
    assert indices(filled) == indices([members])
    assert len(filled) % ranks == 0
    for b in filled:
        assert sum(p.size for p in b) <= budget or sum(len(p.answers) for p in b) == 1
    shares = [share(filled, rank, ranks) for rank in range(ranks)]
    assert len({len(s) for s in shares}) == 1
    counted: list[Row] = [r for s in shares for r in s if r.counted]
    assert sorted(int(i) for r in counted for i in r.indices) == indices([members])


def test_fewer_samples_than_ranks_are_made_up_by_uncounted_copies() -> None:
    filled = bins(parts((3, [4])), 64, 2)
    first, second = share(filled, 0, 2), share(filled, 1, 2)
    assert [r.counted for r in first + second] == [True, False]


def test_a_row_is_filled_up_with_a_sequence_that_nothing_sees() -> None:
    whole = sequence_row([5, 6, 7, 8, 9])
    assert padded(whole, 4) is whole
    filled = padded(whole, 3)
    assert len(filled.tokens) == len(filled.positions) == 6
    assert filled.spans == (*whole.spans, (4, 2, 6, 0))
    assert filled.tokens[:4].tolist() == whole.tokens.tolist()
    assert filled.predictors.tolist() == whole.predictors.tolist(), "and that predicts nothing"


def test_groups_with_a_gradient_are_dealt_evenly_to_steps() -> None:
    flat, steep = [sample(3, 0.0)] * 2, [sample(3, 0.5), sample(3, 0.0)]  # one answer with a gradient is enough
    groups = tuple(Group(np.arange(2, dtype=np.int32), tuple(s)) for s in [flat, flat, steep, flat, steep, steep, flat, steep])
    members = answers_of(Batch(1, groups))
    for version in range(20):
        dealt = rl_steps(members, 2, (0, version))
        assert indices(dealt) == list(range(16))
        assert [sum(p.answers[0].advantage != 0 for p in step) for step in dealt] == [2, 2]
        assert [len(step) for step in dealt] == [4, 4]
        assert indices(dealt[:1]) == indices(rl_steps(members, 2, (0, version))[:1]), "the same seed deals the same"
    assert any(indices(dealt[:1]) != indices(rl_steps(members, 2, (0, version))[:1]) for version in range(8))


def test_demonstrations_keep_their_order() -> None:
    steps = sft_steps(parts((2, [1]), (2, [1, 1]), (2, [1]), (2, [1])), 2)
    assert [indices([s]) for s in steps] in ([[0, 1], [2, 3, 4]], [[0, 1, 2], [3, 4]])


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_blocks_hold_every_sequence_once_and_waste_little(lengths: list[tuple[int, int]]) -> None:
    lengths = [(q, q + more) for q, more in lengths]
    found = similar(lengths)
    assert sorted(i for block in found for i in block) == list(range(len(lengths)))
    for block in found:
        area = len(block) * max(lengths[i][0] for i in block) * max(lengths[i][1] for i in block)
        assert len(block) == 1 or area <= max(WASTE * sum(lengths[i][0] * lengths[i][1] for i in block), SMALL)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_blocks_that_are_not_mixed_hold_every_sequence_once_and_prompts_of_one_length(lengths: list[tuple[int, int]]) -> None:
    found = similar([(q, q + prompt) for q, prompt in lengths], mixed=False)
    assert sorted(i for block in found for i in block) == list(range(len(lengths)))
    assert all(len({lengths[i][1] for i in block}) == 1 for block in found)


def test_one_long_answer_makes_its_own_micro_batch() -> None:
    filled = bins(parts((4, [50, 3, 3])), 20, 1)
    assert sorted([a.inputs for p in b for a in p.answers] for b in filled) == [[2, 2], [49]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_empty_step_has_no_micro_batches(ranks: int) -> None:
    assert bins([], 64, ranks) == []
