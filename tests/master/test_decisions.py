"""Decisions as tables."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.master.twins import inputs, job, manifest, prompt

from rljob.api import ConfigurationError, JobFailed
from rljob.api.algorithm import EvaluationSpec, LengthPenalty, Repetition, WarmStart
from rljob.api.platform import CheckpointSpec
from rljob.api.sources import DataSource
from rljob.master.decisions import health
from rljob.master.decisions.ahead import runs_ahead
from rljob.master.decisions.assemble import rl_batch, warm_start_batch
from rljob.master.decisions.dispatch import READING_SECONDS, Load, choose, reading_until, reads, relieved, slow, smoothed, trial
from rljob.master.decisions.evaluation import HeldOutAnswer, accuracy, due
from rljob.master.decisions.identity import differences, identity
from rljob.master.decisions.manifest import gap
from rljob.master.decisions.partial import Limits, grown, next_request, parked
from rljob.master.decisions.prune import obsolete
from rljob.master.decisions.repetition import loop_end
from rljob.master.decisions.retry import LONGEST, delay
from rljob.master.decisions.rewards import advantages, length_rewards, total_rewards
from rljob.master.decisions.samples import pairs
from rljob.master.decisions.stage import Durable, Evaluate, Finish, Rollout, Stage, Train, next_stage
from rljob.master.decisions.stage import WarmStart as WarmStartStage
from rljob.master.trajectory import PromptGroup, Segment, Trajectory, Verdict, Weights, added
from rljob.wire.base import Failure
from rljob.wire.node import NodeReport, TrainTask

W0, W1, W2 = (Weights(v, f"sum{v}") for v in range(3))
NO_REPETITION = Repetition(enabled=False)


def segment(weights: Weights, *tokens: int) -> Segment:
    return Segment(weights, np.array(tokens, np.int32), np.full(len(tokens), -0.5, np.float32))


def judged(sample: int, length: int, right: bool, reward: float | None = None, repeated: bool = False) -> Trajectory:
    verdict = Verdict(right, float(right) if reward is None else reward)
    return Trajectory(sample, (segment(W0, *range(1, length + 1)),), "repeat" if repeated else "stop", "", verdict)


class TestLengthReward:
    def test_is_the_formula_of_the_paper(self) -> None:
        # lambda = 0.5 - (len - min) / (max - min); a right answer gets lambda, a wrong one min(0, lambda).
        assert length_rewards([10, 20, 30, 30], [True, True, True, False]) == (0.5, 0.0, -0.5, -0.5)
        assert length_rewards([10, 15, 30], [False, False, False]) == (0.0, 0.0, -0.5)

    def test_is_zero_when_all_are_equally_long(self) -> None:
        assert length_rewards([7, 7, 7], [True, False, True]) == (0.0, 0.0, 0.0)

    @given(st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), min_size=2, max_size=16))
    def test_lies_between_minus_and_plus_one_half_and_never_rewards_a_wrong_answer(self, answers: list[tuple[int, bool]]) -> None:
        rewards = length_rewards([length for length, _ in answers], [right for _, right in answers])
        assert all(-0.5 <= r <= 0.5 for r in rewards)
        assert all(r <= 0 for r, (_, right) in zip(rewards, answers, strict=True) if not right)

    @pytest.mark.parametrize(("iteration", "expected"), [(2, (1.0, 1.0)), (3, (1.25, 0.75))])
    def test_counts_only_after_the_warm_up(self, iteration: int, expected: tuple[float, ...]) -> None:
        penalty = LengthPenalty(weight=0.5, warmup_iterations=2)
        assert total_rewards([judged(0, 10, True), judged(1, 20, True)], iteration, penalty, 0.0) == expected

    def test_an_answer_that_looped_pays_the_penalty(self) -> None:
        answers = [judged(0, 10, False, repeated=True), judged(1, 10, True)]
        assert total_rewards(answers, 1, LengthPenalty(), 0.25) == (-0.25, 1.0)


class TestAdvantages:
    def test_are_the_distance_to_the_mean(self) -> None:
        assert advantages([1.0, 0.0, 0.0, 0.0]) == (0.75, -0.25, -0.25, -0.25)

    @given(st.lists(st.floats(-10, 10), min_size=2, max_size=32))
    def test_sum_to_zero(self, rewards: list[float]) -> None:
        assert math.isclose(sum(advantages(rewards)), 0.0, abs_tol=1e-9)

    @given(st.floats(-10, 10), st.integers(2, 64))
    def test_are_exactly_zero_when_all_rewards_are_equal(self, reward: float, count: int) -> None:
        assert advantages([reward] * count) == (0.0,) * count


class TestRepetition:
    @pytest.mark.parametrize("period", [1, 2, 3, 5, 8])
    def test_a_loop_of_any_short_period_is_found_once_it_fills_the_span(self, period: int) -> None:
        start = np.arange(100, 120)
        tokens = np.concatenate([start, np.tile(np.arange(period), 40)]).astype(np.int32)
        assert loop_end(tokens, window=8, times=4) == 20 + 32

    def test_what_repeats_for_a_shorter_time_is_no_loop(self) -> None:
        assert loop_end(np.array([1, 2] * 15 + [3], np.int32), window=8, times=4) is None

    @given(st.lists(st.integers(0, 2), max_size=120), st.integers(2, 5), st.integers(2, 4))
    def test_agrees_with_the_definition(self, tokens: list[int], window: int, times: int) -> None:
        def looping(end: int) -> bool:
            tail = tokens[end - window * times : end]
            return any(tail[p:] == tail[:-p] for p in range(1, window + 1))

        expected = next((end for end in range(window * times, len(tokens) + 1) if looping(end)), None)
        assert loop_end(np.array(tokens, np.int32), window, times) == expected

    def test_what_was_looked_at_before_is_not_looked_at_again(self) -> None:
        limits = Limits(answer=200, growth=None, repetition=Repetition(window=3, times=3))
        answer = Trajectory(0, (segment(W0, *([1] * 9), *range(20, 60)),))
        assert grown(answer, segment(W0, 2), False, limits).finish is None
        assert grown(answer, segment(W0, *([2] * 20)), False, limits).length == 9 + 40 + 9

    @given(st.lists(st.integers(0, 1), min_size=1, max_size=80), st.integers(1, 30))
    def test_an_answer_ends_at_the_same_token_however_it_was_cut_into_requests(self, tokens: list[int], size: int) -> None:
        limits = Limits(answer=200, growth=None, repetition=Repetition(window=3, times=3))
        whole = grown(Trajectory(0), segment(W0, *tokens), False, limits)
        sliced = Trajectory(0)
        for at in range(0, len(tokens), size):
            if sliced.finish is None:
                sliced = grown(sliced, segment(W0, *tokens[at : at + size]), False, limits)
        assert sliced.finish == whole.finish
        assert sliced.tokens.tolist() == whole.tokens.tolist()


class TestPartialRollout:
    def test_an_answer_grows_by_the_budget_and_parks_until_the_next_version(self) -> None:
        limits = Limits(answer=10, growth=4, repetition=NO_REPETITION)
        first = grown(Trajectory(0), segment(W0, 1, 2, 3, 4), False, limits)
        assert parked(first, 0, limits)
        assert next_request(first, 1, limits) == 4
        second = grown(first, segment(W1, 5, 6, 7, 8), False, limits)
        assert next_request(second, 2, limits) == 2  # what is left of the longest answer
        third = grown(second, segment(W2, 9, 10), False, limits)
        assert third.finish == "length"
        assert [len(s.tokens) for s in third.segments] == [4, 4, 2]
        assert next_request(third, 3, limits) == 0

    def test_long_answers_are_asked_for_in_slices(self) -> None:
        limits = Limits(answer=2000, growth=None, repetition=NO_REPETITION)
        assert next_request(Trajectory(0), 0, limits) == 512
        assert next_request(Trajectory(0, (segment(W0, *range(1900)),)), 0, limits) == 100

    def test_what_all_requests_for_an_answer_carry_grows_no_faster_than_the_answer(self) -> None:
        limits, length, carried = Limits(answer=1 << 17, growth=None, repetition=NO_REPETITION), 0, 0
        while room := next_request(Trajectory(0, (segment(W0, *([1] * length)),)), 0, limits):
            assert room <= max(512, length // 8), "what a lost engine costs"
            carried, length = carried + length, length + room
        assert length == limits.answer
        assert carried < 10 * length

    def test_an_answer_that_loops_and_then_ends_has_looped(self) -> None:
        """A policy that learns to end its loops pays for them."""
        limits = Limits(answer=9, growth=None, repetition=Repetition(window=3, times=3))
        assert grown(Trajectory(0), segment(W0, *[1] * 9), True, limits).finish == "repeat"
        assert grown(Trajectory(0), segment(W0, *range(9)), True, limits).finish == "stop"
        assert grown(Trajectory(0), segment(W0, *range(9)), False, limits).finish == "length"

    def test_loops_are_let_go_where_the_job_does_not_look_for_them(self) -> None:
        limits = Limits(answer=200, growth=None, repetition=Repetition(enabled=False, window=3, times=3))
        answer = grown(Trajectory(0), segment(W0, *[1] * 100), False, limits)
        assert (answer.finish, answer.length) == (None, 100)

    def test_a_finished_answer_waits_for_no_version(self) -> None:
        limits = Limits(answer=4, growth=2, repetition=NO_REPETITION)
        assert parked(Trajectory(0, (segment(W0, 1, 2),)), 0, limits)
        assert not parked(Trajectory(0, (segment(W0, 1, 2),), "stop"), 0, limits)

    def test_pieces_of_one_policy_join_into_one_segment(self) -> None:
        answer = Trajectory(0).extended(segment(W0, 1)).extended(segment(W0, 2)).extended(segment(W1, 3))
        assert [s.tokens.tolist() for s in answer.segments] == [[1, 2], [3]]

    def test_what_was_added_is_what_the_longer_answer_has_more(self) -> None:
        before = Trajectory(0, (segment(W0, 1, 2),))
        after = before.extended(segment(W0, 3, 4))
        piece = added(before, after)
        assert piece is not None
        assert piece.tokens.tolist() == [3, 4]
        assert added(after, after) is None


class TestBatch:
    def group(self, id: int, *trajectories: Trajectory) -> PromptGroup:
        return PromptGroup(id, 1, prompt(id), trajectories)

    def test_segments_of_policies_that_are_too_old_are_left_out_of_the_loss(self) -> None:
        old = Trajectory(0, (segment(W0, 1, 2), segment(W1, 3), segment(W2, 4)), "stop", "", Verdict(True, 1.0))
        spec = job(rollout={"maxStaleness": 1, "tokenBudget": 2}, algorithm={"samplesPerPrompt": 2}).spec
        batch, summary = rl_batch([self.group(0, old, judged(1, 4, False))], 3, 3, spec)
        assert batch.groups[0].samples[0].loss_mask.tolist() == [0, 0, 1, 1]
        assert np.isnan(batch.groups[0].samples[0].logprobs).tolist() == [True, True, True, False], "the policy's own alone"
        assert summary.masked_tokens == pytest.approx(6 / 8)
        assert summary.stale_tokens == pytest.approx(7 / 8)

    def test_summary_and_advantages_of_a_mixed_and_an_equal_group(self) -> None:
        groups = [self.group(0, judged(0, 4, True), judged(1, 6, False)), self.group(1, judged(0, 2, True), judged(1, 2, True))]
        batch, summary = rl_batch(groups, 1, 1, job().spec)
        assert sorted([s.advantage for s in g.samples] for g in batch.groups) == [[0.0, 0.0], [0.5, -0.5]]
        assert (summary.reward, summary.success_rate, summary.zero_advantage, summary.response_length) == (0.75, 0.75, 0.5, 3.5)

    def test_the_summary_tells_how_answers_ended_and_how_many_teach_nothing(self) -> None:
        ended = (
            judged(0, 4, True, 0.5),
            *(judged(i, 4, False, repeated=True) for i in (1, 2)),
            replace(judged(3, 4, False), finish="length"),
        )
        wrong, right = (tuple(replace(judged(i, 8, good), finish="length") for i in range(4)) for good in (False, True))
        groups = [self.group(i, *answers) for i, answers in enumerate((ended, wrong, right))]
        _, summary = rl_batch(groups, 1, 1, job(rollout={"repetition": {"penalty": 0.125}}).spec)
        assert (summary.groups, summary.answers) == (3, 12)
        assert (summary.stopped * 12, summary.repeated * 12, summary.cut * 12) == pytest.approx((1, 2, 9))
        assert (summary.success_rate * 12, summary.reward * 12, summary.total_reward * 12) == pytest.approx((5, 4.5, 4.25))
        assert summary.zero_advantage * 12 == pytest.approx(8)

    def test_the_same_groups_make_the_same_bytes(self) -> None:
        groups = [self.group(i, judged(0, 3, True), judged(1, 4, False)) for i in range(6)]
        first, second = (rl_batch(order, 1, 1, job().spec)[0].encode() for order in (groups, groups[::-1]))
        assert first == second

    def test_the_groups_of_every_batch_have_an_order_of_their_own(self) -> None:
        groups = [self.group(i, judged(0, 2, False), judged(1, 2, True)) for i in range(8)]
        orders = {tuple(int(g.prompt[0]) for g in rl_batch(groups, v, 1, job().spec)[0].groups) for v in (1, 2)}
        assert len(orders) == 2
        assert tuple(range(8)) not in orders

    def test_the_warm_start_walks_the_demonstrations_in_shuffled_passes(self) -> None:
        batch = warm_start_batch(inputs(warmstart=5).warmstart, WarmStart(steps=4, batch_size=3), seed=7)
        numbers = [int(g.prompt[0]) for g in batch.groups]
        assert len(numbers) == 12
        assert sorted(numbers[:5]) == sorted(numbers[5:10]) == [2000, 2001, 2002, 2003, 2004]
        assert numbers[:5] != numbers[5:10]
        assert all(g.samples[0].tokens.tolist() == [5, 6, 0] and g.samples[0].advantage == 0 for g in batch.groups)


EVALUATED = EvaluationSpec(data=DataSource(path="h.jsonl"), every=2)


class TestStages:
    @pytest.mark.parametrize(
        ("version", "batch", "evaluated", "expected"),
        [
            (0, False, (), WarmStartStage()),
            (0, True, (), Train(1)),
            (1, False, (), Evaluate(0)),
            (1, False, (1,), Rollout(1)),
            (1, True, (1,), Train(2)),
            (2, False, (1,), Rollout(2)),
            (3, False, (1,), Evaluate(2)),
            (3, False, (1, 3), Rollout(3)),
            (4, False, (1, 3), Evaluate(3)),
            (4, False, (1, 3, 4), Finish()),
            (6, False, (1, 3, 6), Finish()),  # iterations were lowered
        ],
    )
    def test_one_thing_is_next(self, version: int, batch: bool, evaluated: tuple[int, ...], expected: Stage) -> None:
        spec = job(iterations=3, warmStart={}, evaluation={"data": {"path": "h.jsonl"}, "every": 2}).spec
        assert next_stage(Durable(version, batch, evaluated), spec) == expected

    def test_without_warm_start_and_evaluation_version_zero_rolls_out(self) -> None:
        assert next_stage(Durable(0, False, ()), job().spec) == Rollout(1)

    def test_evaluations_are_the_first_every_nth_and_the_last(self) -> None:
        assert [i for i in range(6) if due(EVALUATED, i, 5)] == [0, 2, 4, 5]
        assert not any(due(None, i, 5) for i in range(6))

    def test_nodes_run_ahead_only_of_another_iteration_of_rl(self) -> None:
        spec = job(iterations=3, rollout={"maxStaleness": 1}).spec
        tasks = [TrainTask(version=i, kind=kind, steps=1, iteration=i) for kind in ("rl", "sft") for i in (0, 2, 3)]
        assert [runs_ahead(task, spec) for task in tasks] == [True, True, False, False, False, False]
        assert not runs_ahead(tasks[1], job(iterations=3).spec)


class TestEvaluation:
    def answer(self, prompt: str, family: str, right: bool) -> HeldOutAnswer:
        return HeldOutAnswer(prompt, family, "q", "a", 3, right)

    def test_accuracy_in_all_and_per_family(self) -> None:
        found = accuracy(4, [self.answer("1", "a", True), self.answer("2", "a", False), self.answer("3", "b", True)])
        assert found.accuracy == pytest.approx(2 / 3)
        assert (found.families, found.count) == ({"a": 0.5, "b": 1.0}, 3)

    def test_one_family_is_not_told_apart(self) -> None:
        assert accuracy(0, [self.answer("1", "", True)]).families == {}

    def test_samples_are_picked_by_position_in_turn_from_each_family(self) -> None:
        before = [self.answer(str(i), "a" if i < 4 else "b", False) for i in range(6)]
        after = [self.answer(str(i), "a" if i < 4 else "b", True) for i in range(6)]
        assert [p.after.prompt for p in pairs(before, after, 4)] == ["0", "4", "1", "5"]


class TestPrune:
    @pytest.mark.parametrize(
        ("found", "committed", "spec", "gone"),
        [
            (range(1, 6), 5, CheckpointSpec(keep=2), (1, 2, 3)),
            (range(1, 7), 5, CheckpointSpec(keep=2), (1, 2, 3)),  # version 6 is being made
            (range(1, 8), 7, CheckpointSpec(keep=1, keep_every=3), (1, 2, 3, 5, 6)),  # iteration 3 is version 4
            ((5,), 5, CheckpointSpec(keep=1), ()),
            ((), 0, CheckpointSpec(keep=1), ()),
        ],
    )
    def test_old_checkpoints_go(self, found: range, committed: int, spec: CheckpointSpec, gone: tuple[int, ...]) -> None:
        assert obsolete(found, committed, 1, spec) == gone

    @given(st.sets(st.integers(1, 30)), st.integers(1, 30), st.integers(1, 4), st.integers(1, 5))
    def test_the_committed_checkpoint_stays(self, found: set[int], committed: int, keep: int, every: int) -> None:
        gone = obsolete(found, committed, 1, CheckpointSpec(keep=keep, keep_every=every))
        assert committed not in gone
        assert all(v < committed for v in gone)


class TestDispatch:
    def test_the_engine_with_the_most_room_is_asked(self) -> None:
        assert choose([Load("a", 3), Load("b", 1), Load("c", 2)], 4, None, 0.0) == "b"

    def test_the_preferred_engine_is_kept_while_a_sequence_is_free_and_it_is_not_far_ahead(self) -> None:
        assert choose([Load("a", 3), Load("b", 2)], 4, "a", 0.0) == "a"
        assert choose([Load("a", 4), Load("b", 4)], 4, "a", 0.0) == "a"
        assert choose([Load("a", 4), Load("b", 3)], 4, "a", 0.0) == "b"
        assert choose([Load("a", 30), Load("new", 14)], 64, "a", 0.0) == "a"
        assert choose([Load("a", 31), Load("new", 14)], 64, "a", 0.0) == "new", "an engine that has just joined gets its part"

    def test_a_few_requests_wait_at_an_engine_and_no_more(self) -> None:
        assert choose([Load("a", 4)], 4, None, 0.0) == "a"
        assert choose([Load("a", 5)], 4, None, 0.0) is None

    def test_a_failing_engine_is_left_alone_for_a_while(self) -> None:
        load = Load("a", 0, usable_at=10.0)
        assert choose([load], 4, None, 9.9) is None
        assert choose([load], 4, None, 10.0) == "a"

    def test_an_engine_that_is_short_of_cache_gets_nothing_until_that_is_over(self) -> None:
        queues = Load("a", 20, running=8, waiting=12, cache_usage=0.94)
        assert choose([queues, Load("b", 63, running=60, cache_usage=0.9)], 64, "a", 0.0) == "b"
        assert choose([queues], 64, "a", 0.0) is None
        assert choose([replace(queues, running=0)], 64, None, 0.0) is None
        assert choose([replace(queues, in_flight=8)], 64, None, 0.0) == "a", "those that waited have their place"
        assert choose([replace(queues, in_flight=0, running=0)], 64, None, 0.0) == "a", "nobody looks at one that has nothing to do"
        assert choose([replace(queues, cache_usage=0.5)], 64, None, 0.0) == "a", "there is cache: they wait for something else"

    def test_an_engine_that_reads_its_first_prompts_or_has_a_few_in_reserve_is_not_full(self) -> None:
        reads = Load("a", 20, running=2, waiting=18, cache_usage=0.03)
        assert choose([reads, Load("b", 21, running=21, cache_usage=0.03)], 64, None, 0.0) == "a"
        full = Load("a", 79, running=64, waiting=15, cache_usage=0.9)
        assert choose([full], 64, None, 0.0) == "a", "so that it never runs dry until the next look"
        assert choose([replace(full, in_flight=80, waiting=16)], 64, None, 0.0) is None

    def test_an_engine_whose_cache_is_fuller_than_its_sequences_is_as_full_as_its_cache(self) -> None:
        full = Load("a", 20, running=20, cache_usage=0.96)
        assert choose([full, Load("b", 21, running=21, cache_usage=0.05)], 64, None, 0.0) == "b"
        assert choose([full, Load("b", 60, running=60, cache_usage=0.5)], 64, "a", 0.0) == "a", "beside its prefix that is little"
        assert choose([full, Load("b", 30, running=30, cache_usage=0.5)], 64, "a", 0.0) == "b"
        assert choose([replace(full, in_flight=4), Load("b", 21)], 64, None, 0.0) == "a", "most of what filled it has been answered"
        assert choose([full], 64, None, 0.0) == "a", "nothing waits there"

    def test_an_engine_is_slow_only_beside_a_much_faster_one_that_has_room(self) -> None:
        def found(*loads: Load) -> set[str]:
            return set(slow(loads, 8, 0.0))

        assert found(Load("a", 3, speed=2.0), Load("b", 1, speed=9.0)) == {"a"}
        assert found(Load("a", 3, speed=3.0), Load("b", 1, speed=9.0)) == set()
        assert found(Load("a", 3, speed=2.0), Load("b", 7, speed=9.0)) == set(), "nobody could take what it writes"
        assert found(Load("a", 3, speed=2.0), Load("b", 0)) == set(), "how fast the other is, nobody knows"
        assert found(Load("a", 0, speed=2.0), Load("b", 1, speed=9.0)) == set(), "it writes nothing"
        assert found(Load("a", 3, speed=2.0), Load("b", 1, speed=9.0, usable_at=1.0)) == set(), "the other fails"

    def test_a_slow_engine_is_relieved_after_a_while(self) -> None:
        fast = Load("b", 1, speed=9.0)
        assert relieved([Load("a", 3, speed=2.0, slow_since=5.0), fast], 8, 14.9) == frozenset()
        assert relieved([Load("a", 3, speed=2.0, slow_since=5.0), fast], 8, 15.0) == {"a"}
        assert relieved([Load("a", 3, speed=2.0), fast], 8, 99.0) == frozenset()

    def test_an_engine_is_not_taken_for_slow_because_more_sequences_share_it(self) -> None:
        def found(speed: float, running: int = 128) -> frozenset[str]:
            return slow([Load("full", 128, running, speed=speed), Load("new", 1, running=1, speed=58.0)], 128, 0.0)

        assert found(12.0) == frozenset(), "a new engine's only answer is written that much faster"
        assert found(12.0, running=1) == {"full"}
        assert found(2.0) == {"full"}

    def test_the_speed_of_a_sequence_is_smoothed_and_stays_while_nothing_runs(self) -> None:
        assert smoothed(None, 20, 2, 2, 2.0) == 5.0
        assert smoothed(10.0, 20, 2, 2, 2.0) == pytest.approx(8.5)
        assert smoothed(10.0, 0, 0, 0, 2.0) == 10.0
        assert smoothed(None, 0, 0, 0, 2.0) is None

    def test_the_speed_stays_when_many_have_come_or_ended_at_once_and_is_never_overrated_by_a_few(self) -> None:
        assert smoothed(20.0, 640, 64, 1, 1.0) == 20.0
        assert smoothed(None, 640, 1, 64, 1.0) is None
        assert smoothed(None, 120, 4, 3, 2.0) == smoothed(None, 120, 3, 4, 2.0) == 15.0

    def test_an_engine_that_may_be_reading_is_not_relieved(self) -> None:
        fast = Load("b", 0, speed=9.0)
        quiet = Load("a", 3, speed=2.0, slow_since=5.0, quiet=True, reads_until=100.0)
        queues = replace(quiet, quiet=False, running=1, waiting=2)
        for load in (quiet, queues):
            assert relieved([load, fast], 8, 99.0) == frozenset()
            assert relieved([load, fast], 8, 100.0) == {"a"}, "by then it has read all of that"
        assert relieved([replace(quiet, quiet=False), fast], 8, 99.0) == {"a"}, "it writes, and slowly"
        assert not reads(Load("full", 10, running=8, waiting=2, reads_until=100.0), 8, 99.0), "they wait for a sequence"

    def test_what_an_engine_was_sent_says_how_long_it_may_read(self) -> None:
        assert reading_until(-math.inf, 2000, 10.0) == 12.0
        assert reading_until(12.0, 500, 11.0) == 12.5, "one after the other"
        assert reading_until(12.0, 10**7, 11.0) == 11.0 + READING_SECONDS, "not for ever"

    def test_an_engine_that_nobody_has_measured_is_tried_with_a_request_of_the_slowest(self) -> None:
        def tried(*loads: Load, now: float = 10.0) -> str | None:
            return trial(loads, 8, now)

        a, b, new = Load("a", 8, speed=9.0, busy_since=0.0), Load("b", 3, busy_since=0.0), Load("new", 0)
        assert tried(a, b, new) == "b"
        assert tried(a, new) == "a"
        assert tried(a, new, now=9.9) is None, "it has just begun"
        assert tried(a, b) is None, "nobody is idle"
        assert tried(a, b, replace(new, speed=9.0)) is None, "that can be compared without"
        assert tried(a, replace(new, usable_at=11.0)) is None
        assert tried(replace(a, quiet=True, reads_until=11.0), new) is None
        assert trial([a, replace(new, usable_at=math.inf)], 1, 10.0) is None, "one that has no room for any is not idle"


class TestHealth:
    def report(self, failures: int, configuration: bool = False, incarnation: str = "i1") -> NodeReport:
        failure = Failure(stage="train", reason="TrainerExited", message="it died", configuration=configuration) if failures else None
        return NodeReport(
            node="worker-0", kind="worker", incarnation=incarnation, seen_revision=0, step="train", step_started=0.0, failure=failure,
            failures=failures,
        )  # fmt: skip

    def test_what_a_failure_quotes_of_an_answer_is_one_line_and_does_nothing_to_a_terminal(self) -> None:
        quoted = "no number in ok \x1b]0;mine\x07\x1b[2J\x9b31m\x1bc\nJob Succeeded"
        state = health.failed(health.Health(), "reward", Failure(stage="reward", reason="VerifierFailed", message=quoted))
        assert state.last is not None
        assert state.last.message == "no number in ok ?]0;mine??[2J?31m?c Job Succeeded"
        assert "no number in ok ?" in str(health.end_of(state, 0))

    def test_failures_are_counted_once_each_and_end_the_job_past_the_limit(self) -> None:
        state = health.Health()
        for told, expected in [(1, 1), (1, 1), (2, 2), (4, 4)]:
            state = health.reported(state, self.report(told))
            assert state.failures == expected
        assert health.end_of(state, 4) is None
        state = health.reported(state, self.report(1, incarnation="i2"))
        error = health.end_of(state, 4)
        assert isinstance(error, JobFailed)
        assert "5 failures in a row" in str(error)
        assert "it died" in str(error)
        assert health.reported(state, self.report(1, incarnation="i3")).failures == 6, "each new agent's first is another one"

    @pytest.mark.parametrize("stage", ["pull", "start-engine"])
    def test_a_rollout_node_that_cannot_serve_is_told_of_and_does_not_end_the_job(self, stage: str) -> None:
        failure = Failure(stage=stage, reason="ConfigurationError", message="no room in /dev/shm", configuration=True)
        report = self.report(9).model_copy(update={"node": "rollout-0", "kind": "rollout", "failure": failure})
        state = health.reported(health.Health(), report)
        assert health.end_of(state, 0) is None
        assert state.last is not None
        assert (state.last.pod, state.last.message) == ("rollout-0", "no room in /dev/shm")

    def test_a_worker_that_finds_nobody_to_pull_from_waits_for_the_worker_that_is_away(self) -> None:
        def pulling(failures: int, configuration: bool = False) -> NodeReport:
            failure = Failure(stage="pull", reason="PullFailed", message="nobody is left who has them", configuration=configuration)
            return self.report(failures).model_copy(update={"failure": failure})

        state = health.reported(health.Health(), pulling(9), workers_away=True)
        assert health.end_of(state, 0) is None
        assert state.last is not None
        state = health.reported(state, pulling(10), workers_away=False)
        assert isinstance(health.end_of(state, 0), JobFailed), "who is there and gives nothing is no excuse"
        assert isinstance(health.end_of(health.reported(state, pulling(11, True), workers_away=True), 6), ConfigurationError)
        assert health.reported(health.Health(), self.report(2), workers_away=True).failures == 2, "only pulls need another worker"

    def test_progress_ends_the_row(self) -> None:
        state = health.progressed(health.reported(health.Health(), self.report(3)))
        assert state.failures == 0
        assert state.last is not None
        assert health.reported(state, self.report(3)).failures == 0
        assert health.reported(state, self.report(4)).failures == 1

    def test_a_configuration_error_ends_the_job_at_once(self) -> None:
        error = health.end_of(health.reported(health.Health(), self.report(1, configuration=True)), 6)
        assert isinstance(error, ConfigurationError)
        assert str(error) == "train on worker-0: it died"
        before = health.progressed(health.reported(health.Health(), self.report(1)))
        error = health.end_of(health.reported(before, self.report(1, configuration=True)), 6)
        assert isinstance(error, ConfigurationError), "also under a number that was counted before"

    def test_a_failure_of_what_the_job_does_without_is_told_and_ends_nothing(self) -> None:
        failure = Failure(stage="checkpoint", reason="CheckpointNotDeleted", message="read-only")
        state = health.failed(health.Health(), "master", failure, vital=False)
        assert health.end_of(state, 0) is None
        assert state.last is not None
        assert isinstance(health.end_of(health.failed(state, "master", failure), 0), JobFailed)

    def test_waiting_doubles_up_to_a_bound(self) -> None:
        assert [delay(n) for n in (1, 2, 3)] == [0.25, 0.5, 1.0]
        assert delay(50) == LONGEST


class TestIdentity:
    def of(self, digest: str = "d1", **spec: object) -> dict[str, Any]:
        return identity(job(**spec), digest)

    def test_how_long_and_how_fast_may_change(self) -> None:
        changed = self.of(iterations=9, rollout={"replicas": 2, "engine": {"maxSequences": 8}}, checkpoint={"keep": 5}, backoffLimit=1)
        assert differences(self.of(), changed) == ()

    def test_what_is_learned_may_not_and_is_named(self) -> None:
        assert differences(self.of(), self.of(seed=3)) == ("spec.seed was 0, is 3",)
        assert differences(self.of(), self.of(warmStart={"steps": 3}))[0].startswith("spec.warmStart")

    def test_a_job_of_another_name_is_another_job(self) -> None:
        assert differences(self.of(), {**self.of(), "name": "another"}) == ("metadata.name was test, is another",)

    def test_a_field_that_came_with_an_upgrade_makes_no_difference_at_its_default(self) -> None:
        now = self.of(warmStart={"steps": 3}, reward={"verifier": "exact", "options": {"ignore_case": True}})
        spec = now["spec"]
        differing = [path for path in spec if differences({**now, "spec": {k: v for k, v in spec.items() if k != path}}, now)]
        learned = ("algorithm.promptsPerIteration", "algorithm.samplesPerPrompt", "rollout.maxTokens", "warmStart.steps")
        assert sorted(differing) == sorted([*learned, "reward.verifier", "reward.options.ignore_case"]), "those that the job sets"
        before = {path: value for path, value in spec.items() if not path.startswith("rollout.")}
        assert differences({**now, "spec": before}, now) == ("spec.rollout.maxTokens was None, is 8",)

    def test_a_field_that_an_upgrade_took_away_makes_no_difference(self) -> None:
        now = self.of()
        assert differences({**now, "spec": {**now["spec"], "rollout.gone": 3, "gone.whole": 4}}, now) == ()

    def test_what_is_left_out_or_no_longer_left_out_is_a_difference(self) -> None:
        options = {"verifier": "exact", "options": {"ignore_case": True}}
        bare, full = self.of(reward={"verifier": "exact"}), self.of(reward=options, rewardModel={})
        for old, new in ((bare, full), (full, bare)):
            found = {line.split()[0] for line in differences(old, new)}
            assert {"spec.reward.options.ignore_case", "spec.rewardModel.batchSize"} <= found

    def test_moved_files_are_the_same_files(self) -> None:
        moved = self.of(model={"source": {"path": "/elsewhere/model"}})
        assert differences(self.of(), moved) == ()

    def test_another_model_is_named_by_its_source_or_by_its_contents(self) -> None:
        other = identity(job(model={"source": {"path": "other"}}), "d2")
        assert differences(self.of(), other) == ("spec.model.source.path was 'model', is 'other'",)
        assert "contents" in differences(self.of(), self.of(digest="d2"))[0]


class TestManifest:
    def test_a_whole_set_has_no_gap(self) -> None:
        assert gap(manifest(1, "c")) is None

    @pytest.mark.parametrize(
        ("shards", "found"),
        [
            ([(2, 2), (0, 2)], None),
            ([(0, 2), (0, 2)], "tensor w: row 0 of 4 is held twice"),
            ([(0, 3), (2, 1)], "tensor w: row 2 of 4 is held twice"),
            ([(0, 1), (3, 1)], "tensor w: rows 1 to 2 of 4 are missing"),
            ([(0, 2), (2, 3)], "tensor w: its shards hold 5 rows, its shape has 4"),
        ],
    )
    def test_shards_hold_every_row_once_in_whatever_order_they_are_listed(self, shards: list[tuple[int, int]], found: str | None) -> None:
        whole = manifest(1, "c")
        (tensor,) = whole.tensors
        cut = tuple(tensor.shards[0].model_copy(update={"start": start, "rows": rows, "bytes": 8 * rows}) for start, rows in shards)
        assert gap(whole.model_copy(update={"tensors": (tensor.model_copy(update={"shards": cut}),)})) == found

    def test_missing_rows_doubled_tensors_and_wrong_sizes_are_named(self) -> None:
        assert gap(manifest(1, "c", rows=3)) == "tensor w: rows 3 to 3 of 4 are missing"
        whole = manifest(1, "c")
        assert gap(whole.model_copy(update={"tensors": whole.tensors * 2})) == "tensor w is listed twice"
        assert gap(whole.model_copy(update={"tensors": ()})) == "it lists no tensors"
        for size in (15, 17):
            shard = whole.tensors[0].shards[0].model_copy(update={"bytes": size})
            tensor = whole.tensors[0].model_copy(update={"shards": (shard, whole.tensors[0].shards[1])})
            assert f"take 16 bytes, the shard says {size}" in str(gap(whole.model_copy(update={"tensors": (tensor,)})))
        cut = whole.tensors[0].model_copy(update={"parts": ("p", "q")})
        assert gap(whole.model_copy(update={"tensors": (cut,)})) == "tensor w has 2 parts; 32 bytes in a version of 32 are cut in 1"
