"""From a batch to micro-batches: rows of real tokens in which the answers of one prompt share it. Pure, numpy only.

A row is `prompt, answer, answer, ..., prompt, answer, ...`. An answer's positions go on from its prompt's end and its tokens attend to
their prompt and to what stands before them in their own answer, so that the row computes exactly what separate sequences would,
with each prompt computed once and no padding in any linear layer. An answer is cut after the last token that has a successor to
predict; what a sample leaves out of the loss at its end is not computed at all.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rljob.wire.batch import Batch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

WASTE = 1.25
"""A block's query × key area may be so much larger than that of its sequences."""
SMALL = 1 << 15
"""... unless it is smaller than this: another block costs a dozen kernel launches a layer."""


@dataclass(frozen=True)
class Answer:
    """One sample of the batch that takes part in a step. Its numbers are as the batch has them: every rank has all answers, and widens only
    those of a row."""

    index: int
    """Place in the batch, counted over all groups."""
    tokens: npt.NDArray[np.integer]
    mask: npt.NDArray[np.bool_]
    engine_logprobs: npt.NDArray[np.floating]
    advantage: float

    @cached_property
    def inputs(self) -> int:
        """Tokens that go through the model: all before the last one in the loss."""
        return int(np.flatnonzero(self.mask)[-1]) if self.mask.any() else 0


@dataclass(frozen=True)
class Part:
    """A prompt with some or all of its answers: what stays together in a row."""

    prompt: Ints
    answers: tuple[Answer, ...]

    @property
    def size(self) -> int:
        """Tokens in the row."""
        return len(self.prompt) + sum(a.inputs for a in self.answers)


@dataclass(frozen=True)
class Row:
    """One micro-batch. T tokens, N predictions (answer tokens in the loss), S samples."""

    tokens: Ints
    """[T]"""
    positions: Ints
    """[T] Position of each token in its own sequence."""
    spans: tuple[tuple[int, int, int, int], ...]
    """(prompt start, prompt length, answer start, answer length) in the row of every sequence whose tokens are queries; a prompt on its
    own has answer length 0 and its own tokens as queries."""
    predictors: Ints
    """[N] Token whose hidden state predicts."""
    targets: Ints
    """[N] Token that is predicted."""
    sample: Ints
    """[N] Which of the row's samples a prediction belongs to."""
    engine_logprobs: Floats
    """[N]"""
    indices: Ints
    """[S] Place of each sample in the batch."""
    advantages: Floats
    """[S]"""
    counted: bool = True
    """False for a copy that only keeps data-parallel ranks in step; it must contribute nothing."""


def answers_of(batch: Batch) -> list[Part]:
    """The groups of a batch as parts, samples numbered through."""
    parts, index = [], 0
    for group in batch.groups:
        members = []
        for s in group.samples:
            members.append(Answer(index, s.tokens, s.loss_mask.astype(bool), s.logprobs, s.advantage))
            index += 1
        parts.append(Part(group.prompt.astype(np.int64), tuple(members)))
    return parts


def needed(parts: Iterable[Part], regularised: bool) -> list[Part]:
    """Without what adds nothing to the gradient: samples without a token in the loss and, unless regularised, without advantage."""

    def useful(answer: Answer) -> bool:
        return bool(answer.mask.any()) and (regularised or answer.advantage != 0.0)

    kept = (replace(part, answers=tuple(a for a in part.answers if useful(a))) for part in parts)
    return [part for part in kept if part.answers]


def rl_steps(parts: Sequence[Part], steps: int, seed: Sequence[int]) -> list[list[Part]]:
    """Deal groups to optimizer steps: shuffled by `seed`, those that carry a gradient first, so that every step gets its share of them."""
    order = np.random.default_rng(list(seed)).permutation(len(parts))
    flat = [all(a.advantage == 0.0 for a in parts[i].answers) for i in order]
    dealt = [i for i, f in zip(order, flat, strict=True) if not f] + [i for i, f in zip(order, flat, strict=True) if f]
    return [[parts[i] for i in dealt[step::steps]] for step in range(steps)]


def sft_steps(parts: Sequence[Part], steps: int) -> list[list[Part]]:
    """Split demonstrations into steps of (nearly) equal size in the order given."""
    single = [replace(part, answers=(answer,)) for part in parts for answer in part.answers]
    edges = np.linspace(0, len(single), steps + 1).round().astype(int)
    return [regroup(single[a:b]) for a, b in itertools.pairwise(edges.tolist())]


def bins(parts: Sequence[Part], budget: int, ranks: int) -> list[list[Part]]:
    """Micro-batches of at most `budget` tokens, longest first, their number a multiple of `ranks`.

    A part over the budget is split by answers; one answer over the budget makes its own micro-batch. Empty bins (fewer samples than
    ranks) are given as empty lists.
    """
    pieces = sorted((piece for part in parts for piece in _within(part, budget)), key=lambda p: (-p.size, p.answers[0].index))
    filled, sizes = list[list[Part]](), list[int]()
    for piece in pieces:
        size = piece.size
        room = next((i for i, held in enumerate(sizes) if held + size <= budget), None)
        if room is None:
            filled.append([piece])
            sizes.append(size)
        else:
            filled[room].append(piece)
            sizes[room] += size
    while len(filled) % ranks:
        _split_largest(filled)
    return filled


def _within(part: Part, budget: int) -> list[Part]:
    """Cut a part so that each piece fits the budget if its longest answer does."""
    pieces: list[list[Answer]] = []
    size = 0
    for answer in sorted(part.answers, key=lambda a: -a.inputs):
        if not pieces or size + answer.inputs > budget:
            pieces.append([])
            size = len(part.prompt)
        pieces[-1].append(answer)
        size += answer.inputs
    return [Part(part.prompt, tuple(sorted(piece, key=lambda a: a.index))) for piece in pieces]


def _split_largest(filled: list[list[Part]]) -> None:
    """Add one bin by halving the bin with the most tokens that has two samples or more; an empty bin if there is none."""
    by_size = sorted(range(len(filled)), key=lambda i: -sum(p.size for p in filled[i]))
    for i in by_size:
        singles = [replace(part, answers=(answer,)) for part in filled[i] for answer in part.answers]
        if len(singles) > 1:
            half = len(singles) // 2
            filled[i : i + 1] = [regroup(singles[:half]), regroup(singles[half:])]
            return
    filled.append([])


def regroup(parts: Iterable[Part]) -> list[Part]:
    """Put answers of the same prompt array together again."""
    together: dict[int, Part] = {}
    for part in parts:
        key = id(part.prompt)
        together[key] = Part(part.prompt, (*together[key].answers, *part.answers)) if key in together else part
    return list(together.values())


def share(filled: Sequence[list[Part]], rank: int, ranks: int) -> list[Row]:
    """The rows of one data-parallel rank; every rank gets as many. In place of an empty bin stands an uncounted copy of the first."""
    mine = filled[rank::ranks]
    return [row(parts) if parts else replace(row(filled[0]), counted=False) for parts in mine]


def row(parts: Sequence[Part]) -> Row:
    """Lay parts out one after the other."""
    tokens: list[npt.NDArray[np.integer]] = []
    positions: list[Ints] = []
    spans: list[tuple[int, int, int, int]] = []
    predictors: list[Ints] = []
    targets: list[npt.NDArray[np.integer]] = []
    at = 0
    answers = [answer for part in parts for answer in part.answers]
    for part in parts:
        start, length = at, len(part.prompt)
        tokens.append(part.prompt)
        positions.append(np.arange(length))
        spans.append((start, length, start + length, 0))
        at += length
        for answer in part.answers:
            inputs = answer.inputs
            tokens.append(answer.tokens[:inputs])
            positions.append(np.arange(length, length + inputs))
            if inputs:
                spans.append((start, length, at, inputs))
            where = np.flatnonzero(answer.mask)
            predictors.append(np.where(where == 0, start + length - 1, at + where - 1))
            targets.append(answer.tokens[where])
            at += inputs
    return Row(
        tokens=np.concatenate(tokens, dtype=np.int64),
        positions=np.concatenate(positions),
        spans=tuple(spans),
        predictors=np.concatenate(predictors),
        targets=np.concatenate(targets, dtype=np.int64),
        sample=np.repeat(np.arange(len(answers)), [int(a.mask.sum()) for a in answers]),
        engine_logprobs=np.concatenate([a.engine_logprobs[a.mask] for a in answers], dtype=np.float64),
        indices=np.array([a.index for a in answers]),
        advantages=np.array([a.advantage for a in answers]),
    )


def sequence_row(tokens: Sequence[int]) -> Row:
    """One plain sequence of which every token but the first is predicted."""
    ids = np.array(tokens, np.int64)
    answer = Answer(0, ids[1:], np.ones(len(ids) - 1, bool), np.zeros(len(ids) - 1), 0.0)
    return row([Part(ids[:1], (answer,))])


def padded(row: Row, multiple: int) -> Row:
    """With so many tokens that the ranks of a context parallel group get equal shares: what is added is a sequence of its own, which no
    other sees and nothing predicts."""
    length, missing = len(row.tokens), -len(row.tokens) % multiple
    if not missing:
        return row
    return replace(
        row,
        tokens=np.concatenate([row.tokens, np.zeros(missing, np.int64)]),
        positions=np.concatenate([row.positions, np.arange(missing)]),
        spans=(*row.spans, (length, missing, length + missing, 0)),
    )


def similar(lengths: Sequence[tuple[int, int]], mixed: bool = True) -> list[list[int]]:
    """Sort sequences of (query, key) lengths and cut them into blocks that waste little. Unless `mixed`, the prompts of a block, of which a
    sequence has more keys than queries, are equally long."""

    def place(i: int) -> tuple[int, ...]:
        q, k = lengths[i]
        return (k == q, 0 if mixed else k - q, k, q, i)

    order = sorted(range(len(lengths)), key=place)
    found: list[list[int]] = []
    area = longest_q = longest_k = 0
    for i in order:
        q, k = lengths[i]
        if found and (mixed or k - q == longest_k - longest_q):
            count = len(found[-1]) + 1
            padded = count * max(longest_q, q) * max(longest_k, k)
            if padded <= max(WASTE * (area + q * k), SMALL):
                found[-1].append(i)
                area, longest_q, longest_k = area + q * k, max(longest_q, q), max(longest_k, k)
                continue
        found.append([i])
        area, longest_q, longest_k = q * k, q, k
    return found
