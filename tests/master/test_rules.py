"""Decisions at their edges: what is told apart by one token, one version or one word."""

import numpy as np
from tests.master.twins import job, manifest, prompt

from rljob.api.algorithm import Repetition, Sampling
from rljob.master.decisions.ahead import runs_ahead
from rljob.master.decisions.assemble import rl_batch
from rljob.master.decisions.manifest import gap
from rljob.master.decisions.pairs import judged_pairs
from rljob.master.decisions.partial import Limits, grown, parked
from rljob.master.decisions.sampler import FLOOR, Draw, Statistics, draw
from rljob.master.trajectory import PromptGroup, Segment, Trajectory, Verdict, Weights
from rljob.wire.node import TrainTask


def segment(*tokens: int) -> Segment:
    return Segment(Weights(0, "sum"), np.array(tokens, np.int32), np.full(len(tokens), -0.5, np.float32))


def test_an_answer_that_loops_and_then_ends_has_looped() -> None:
    """A policy that learns to end its loops pays for them."""
    limits = Limits(answer=9, growth=None, repetition=Repetition(window=3, times=3))
    assert grown(Trajectory(0), segment(*[1] * 9), stopped=True, limits=limits).finish == "repeat"
    assert grown(Trajectory(0), segment(*range(9)), stopped=True, limits=limits).finish == "stop"
    assert grown(Trajectory(0), segment(*range(9)), stopped=False, limits=limits).finish == "length"


def test_loops_are_let_go_where_the_job_does_not_look_for_them() -> None:
    limits = Limits(answer=200, growth=None, repetition=Repetition(enabled=False, window=3, times=3))
    answer = grown(Trajectory(0), segment(*[1] * 100), stopped=False, limits=limits)
    assert (answer.finish, answer.length) == (None, 100)


def test_a_finished_answer_waits_for_no_version() -> None:
    limits = Limits(answer=4, growth=2, repetition=Repetition(enabled=False))
    assert parked(Trajectory(0, (segment(1, 2),)), 0, limits)
    assert not parked(Trajectory(0, (segment(1, 2),), "stop"), 0, limits)


def test_nodes_run_ahead_only_of_another_iteration_of_rl() -> None:
    spec = job(iterations=3, rollout={"maxStaleness": 1}).spec
    tasks = [TrainTask(version=i, kind=kind, steps=1, iteration=i) for kind in ("rl", "sft") for i in (0, 2, 3)]
    assert [runs_ahead(task, spec) for task in tasks] == [True, True, False, False, False, False]
    assert not runs_ahead(tasks[1], job(iterations=3).spec)


def test_the_groups_of_every_batch_have_an_order_of_their_own() -> None:
    answers = tuple(Trajectory(i, (segment(1, 2),), "stop", "", Verdict(bool(i), float(i))) for i in range(2))
    groups = [PromptGroup(i, 1, prompt(i), answers) for i in range(8)]
    orders = {tuple(int(g.prompt[0]) for g in rl_batch(groups, v, 1, job().spec)[0].groups) for v in (1, 2)}
    assert len(orders) == 2
    assert tuple(range(8)) not in orders


def test_a_pair_with_equal_scores_is_not_in_the_right_order() -> None:
    judged = judged_pairs([prompt(i, chosen=(5, 6), rejected=(7,)) for i in range(3)], [0.5, 0.0, -0.5], ["a", "b", "c"])
    assert [(one.right, one.length) for one in judged] == [(True, 2), (False, 2), (False, 2)]


def test_a_shard_of_more_bytes_than_its_rows_take_is_a_gap() -> None:
    whole = manifest(1, "c")
    (tensor,) = whole.tensors
    shards = (tensor.shards[0].model_copy(update={"bytes": 17}), tensor.shards[1])
    found = gap(whole.model_copy(update={"tensors": (tensor.model_copy(update={"shards": shards}),)}))
    assert "take 16 bytes, the shard says 17" in str(found)


def test_what_is_always_answered_right_is_still_seen_now_and_then() -> None:
    assert Statistics(draws=1, samples=10, successes=10).priority == FLOOR > 0


def test_a_part_of_a_prompt_opens_the_whole_one() -> None:
    """A quarter of ten prompts are three."""
    curriculum = Sampling(strategy="curriculum", curriculum_iterations=4)
    drawn = {draw(Draw(seed, 1, 0, 1), curriculum, True, list(map(float, range(10))), [Statistics()] * 10, ())[0] for seed in range(40)}
    assert drawn == {0, 1, 2}
