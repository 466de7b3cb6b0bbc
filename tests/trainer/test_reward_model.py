"""A reward model: its loss is Bradley and Terry's, its scores are transformers', and a pair stays in one micro-batch."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.trainer.scorers import as_scorer, pair_batch

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.algorithm import RewardModelSpec
from rljob.trainer.objectives.bradley_terry import bradley_terry
from rljob.trainer.place import Place
from rljob.wire.batch import Batch, Group
from rljob.wire.node import TrainMetrics, TrainTask

PAIRS = {"stepsPerIteration": 1, "batchSize": 6, "learningRate": 1e-3, "warmupSteps": 0}


@pytest.fixture
def scorer(llama: Path, tmp_path: Path) -> Path:
    return as_scorer(llama, tmp_path)


def train(replica: Any, spec: RLJobSpec, batch: Batch, steps: int = 1, iteration: int = 1) -> TrainMetrics:
    from rljob.trainer import preferences

    task = TrainTask(version=batch.version, kind="preference", steps=steps, iteration=iteration)
    return preferences.train(replica, spec, task, batch, lambda done, total: None)


def scores(model: Any, groups: tuple[Group, ...]) -> torch.Tensor:
    """By transformers, one sequence at a time: [pairs, 2]."""
    rows = [[np.concatenate([group.prompt, s.tokens]).astype(np.int64) for s in group.samples] for group in groups]
    return torch.stack([torch.stack([model(input_ids=torch.tensor(ids)[None]).logits[0, 0] for ids in row]) for row in rows])


def test_the_loss_and_its_gradient_are_those_of_the_equation() -> None:
    chosen, rejected = (torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    chosen.requires_grad_(), rejected.requires_grad_()
    loss = bradley_terry(chosen, rejected)
    to_chosen, to_rejected = torch.autograd.grad(loss, (chosen, rejected))
    probability = 1 / (1 + torch.exp(rejected - chosen))
    assert abs(loss + torch.log(probability).sum()) < 1e-6
    assert (to_chosen - (probability - 1)).abs().max() < 1e-6, "the further a pair is from its order, the harder it pulls"
    assert (to_rejected + to_chosen).abs().max() < 1e-6, "only differences count"


def test_scores_that_lie_far_apart_give_finite_losses_and_gradients() -> None:
    chosen, rejected = torch.tensor([1e4, -1e4], requires_grad=True), torch.tensor([-1e4, 1e4])
    loss = bradley_terry(chosen, rejected)
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert loss.item() == pytest.approx(2e4)
    assert gradient.tolist() == [0.0, -1.0]


def test_one_step_is_the_step_that_transformers_and_plain_torch_take(scorer: Path, replica: Any, spec: Callable[..., RLJobSpec]) -> None:
    from transformers import AutoModelForSequenceClassification

    data, job = pair_batch(held_out=3), spec(rewardModel=PAIRS)
    made = replica(scorer, job)
    metrics = train(made, job, data)
    model = AutoModelForSequenceClassification.from_pretrained(scorer, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    with torch.no_grad():
        before = scores(model, data.groups[6:])
    pairs = scores(model, data.groups[:6])
    loss = bradley_terry(pairs[:, 0], pairs[:, 1]) / 6
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    named, masters = dict(model.named_parameters()), made.masters()
    for piece in made.pieces:
        mine, theirs = piece.of(masters[piece.parameter], named[piece.name])
        assert (mine - theirs).abs().max() < 2e-5, piece.name  # of a step of 1e-3
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-4)
    assert metrics.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert metrics.pairs is not None
    assert metrics.pairs.right == float((pairs[:, 0] > pairs[:, 1]).float().mean())
    assert metrics.pairs.held_out_before == pytest.approx((before[:, 0] - before[:, 1]).tolist(), abs=1e-4)
    with torch.no_grad():
        after = scores(model, data.groups[6:])
    assert metrics.pairs.held_out == pytest.approx((after[:, 0] - after[:, 1]).tolist(), abs=1e-3)


def test_a_checkpoint_is_a_folder_that_transformers_loads_and_training_goes_on_from_it(
    scorer: Path, replica: Any, spec: Callable[..., RLJobSpec], megatron: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    from rljob.trainer import checkpoint, weights

    job, folder = spec(rewardModel=PAIRS), tmp_path / "version-000001"
    first, second = pair_batch(held_out=2), pair_batch(held_out=2, version=2, seed=1)
    made = replica(scorer, job)
    trained = train(made, job, first)
    record = checkpoint.save(made, megatron, folder, 1, trained, scorer, "a")
    assert record is not None
    assert record.steps["score.weight"] == 1, "the optimizer's state is not thrown away"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        found = scores(model, first.groups[6:])
    assert trained.pairs is not None
    assert (found[:, 0] - found[:, 1]).tolist() == pytest.approx(list(trained.pairs.held_out), abs=1e-4)
    unbroken = train(made, job, second, iteration=2)
    again = replica(scorer, job)
    weights.load(again, folder)
    checkpoint.load_moments(again, folder, record)
    resumed = train(again, job, second, iteration=2)
    assert resumed.model_copy(update={"seconds": 0.0}) == unbroken.model_copy(update={"seconds": 0.0})
    assert all(torch.equal(a, b) for a, b in zip(made.masters().values(), again.masters().values(), strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_micro_batches_never_part_a_pair(ranks: int) -> None:
    from rljob.trainer.preferences import pairs_of, whole_bins

    parts = pairs_of(pair_batch(pairs=7))
    filled = whole_bins(parts, 40, ranks)
    assert len(filled) % ranks == 0
    assert all(len(part.answers) == 2 for b in filled for part in b)
    assert sorted(part.answers[0].index for b in filled for part in b) == [0, 2, 4, 6, 8, 10, 12]
    assert all(sum(part.size for part in b) <= 40 for b in filled if len(b) > 1)
    alone = whole_bins(parts[:1], 1, ranks)
    assert [len(b) for b in alone] == [1] + [0] * (ranks - 1), "one pair, however long; the other ranks get copies that do not count"


@pytest.mark.parametrize(("ranks", "pairs"), [(2, 7), (3, 7), (4, 2)])
def test_data_parallel_ranks_share_the_pairs_and_copies_count_nowhere(ranks: int, pairs: int) -> None:
    from rljob.trainer.preferences import pairs_of, rows

    parts = pairs_of(pair_batch(pairs=pairs))
    places = [SimpleNamespace(place=Place((range(2),), data_rank=rank), data_size=ranks, together=1) for rank in range(ranks)]
    shared = [rows(cast(Any, place), parts, 40) for place in places]
    assert len({len(of_rank) for of_rank in shared}) == 1, "every rank has as many micro-batches"
    counted = [int(i) for of_rank in shared for row in of_rank if row.counted for i in row.indices]
    assert sorted(counted) == list(range(2 * pairs))
    assert all(row.advantages.any() == row.counted for of_rank in shared for row in of_rank)


def test_a_pair_is_right_if_the_chosen_answer_has_the_higher_score_and_a_copy_counts_nowhere() -> None:
    from rljob.trainer.preferences import Tally

    tally, scores = Tally(), torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 4.0])
    tally.objective(scores, torch.tensor([1.0, -1.0] * 3), scores)
    tally.objective(scores, torch.zeros(6), scores)
    assert (tally.pairs, tally.right, tally.margin) == (3, 1, -2.0)


def test_the_learning_rate_warms_up_over_iterations() -> None:
    from rljob.trainer.preferences import pairs_of, plan_steps

    settings = RewardModelSpec(steps_per_iteration=2, batch_size=2, learning_rate=1.0, warmup_steps=3)
    rank = cast(Any, SimpleNamespace(place=Place((range(1),)), data_size=1, together=1))
    tasks = [TrainTask(version=i, kind="preference", steps=2, iteration=i) for i in (1, 2, 3)]
    steps = [plan_steps(rank, settings, one, pairs_of(pair_batch(pairs=4)), 64) for one in tasks]
    assert [[step.learning_rate for step in of_task] for of_task in steps] == [[0.25, 0.5], [0.75, 1.0], [1.0, 1.0]]
    assert [step.samples for step in steps[0]] == [2, 2]


def test_the_result_does_not_depend_on_how_pairs_are_packed(scorer: Path, replica: Any, spec: Callable[..., RLJobSpec]) -> None:
    found = []
    for budget in (64, 1024):
        job = spec(rewardModel=PAIRS, trainer={"precision": "fp32", "microBatchTokens": budget, "optimizer": {"learningRate": 1e-3}})
        found.append(train(replica(scorer, job), job, pair_batch(held_out=4)))
    few, many = found
    assert few.loss == pytest.approx(many.loss, rel=1e-5)
    assert few.pairs is not None
    assert many.pairs is not None
    assert few.pairs.held_out == pytest.approx(many.pairs.held_out, abs=1e-4)


@pytest.mark.parametrize("iteration", [1, 2])
def test_held_out_pairs_are_told_as_they_are_scored(iteration: int, scorer: Path, replica: Any, spec: Callable[..., RLJobSpec]) -> None:
    from rljob.trainer import preferences

    told: list[tuple[int, int]] = []
    job = spec(rewardModel=PAIRS, trainer={"precision": "fp32", "microBatchTokens": 64, "optimizer": {"learningRate": 1e-3}})
    data = pair_batch(held_out=4)
    made, task = replica(scorer, job), TrainTask(version=data.version, kind="preference", steps=1, iteration=iteration)
    preferences.train(made, job, task, data, lambda done, total: told.append((done, total)))
    parts = preferences.pairs_of(data)
    scored, trained = (len(preferences.rows(made, some, 64)) for some in (parts[-4:], parts[:-4]))
    total = (2 if iteration == 1 else 1) * scored + trained
    assert told == [(done, total) for done in range(1, total + 1)]


def test_a_reward_model_that_diverges_ends_with_the_field_to_change(scorer: Path, replica: Any, spec: Callable[..., RLJobSpec]) -> None:
    job = spec(rewardModel=PAIRS)
    made = replica(scorer, job)
    with torch.no_grad():
        next(iter(made.masters().values())).fill_(torch.inf)
    with pytest.raises(ConfigurationError, match=r"^spec\.rewardModel\.learningRate: training of version 1 has diverged"):
        train(made, job, pair_batch())


def test_a_language_model_cannot_be_trained_on_pairs(llama: Path, replica: Any, spec: Callable[..., RLJobSpec]) -> None:
    job = spec(rewardModel=PAIRS)
    with pytest.raises(ConfigurationError, match="holds no reward model"):
        train(replica(llama, job), job, pair_batch())


def test_a_batch_keeps_what_is_held_out() -> None:
    assert Batch.decode(pair_batch(held_out=2).encode()).held_out == 2
    assert Batch.version_of(pair_batch(held_out=2).encode()) == pair_batch(held_out=2).version
