"""The whole loop against twins: every run takes the same course, in virtual time."""

import asyncio
import itertools
import sqlite3
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from tests.master.twins import EOS, FakeReward, World, inputs, job
from tests.master.virtual import run, until

from rljob.api import ConfigurationError, JobFailed
from rljob.api.status import LastFailure
from rljob.master.checkpoints import export_model
from rljob.master.scoring import HttpRewardService
from rljob.master.status import job_status
from rljob.master.watch import Watch
from rljob.wire.base import Failure
from rljob.wire.checkpoints import checkpoint_versions
from rljob.wire.reward import ScoreRequest, ScoreResponse

HELD_OUT = {"data": {"path": "heldout.jsonl"}, "every": 2}


def phases(steps: list[str]) -> list[str]:
    """Durable steps in order, repeated writes of answers as one."""
    done = [name.removeprefix("after ") for name in steps if name.startswith("after ") and name != "after active"]
    return [name for name, _ in itertools.groupby(done)]


def consumed(world: World) -> list[tuple[int, int | None]]:
    with sqlite3.connect(world.folders.state / "master.sqlite") as db:
        return db.execute("SELECT ordinal, consumed FROM groups ORDER BY ordinal").fetchall()


def assert_every_prompt_consumed_once(world: World, iterations: int, per_iteration: int, first_version: int = 1) -> None:
    assert consumed(world) == [(i, first_version + i // per_iteration) for i in range(iterations * per_iteration)]


def test_a_job_takes_these_durable_steps_and_no_others(tmp_path: Path) -> None:
    world = World(tmp_path, job(iterations=2, warmStart={"steps": 2, "batchSize": 2}, evaluation=HELD_OUT), inputs(heldout=4, warmstart=3))
    run(world.master())
    evaluation = ["held-out answers", "evaluation"]
    assert phases(world.steps) == [
        *("create", "start", "batch", "register", "commit"),  # the warm start
        *evaluation,
        *("draw", "pieces", "batch", "register", "commit"),
        *("draw", "pieces", "batch", "register", "commit"),
        *evaluation,
    ]
    assert world.status()["phase"] == "Succeeded"
    assert [h["iteration"] for h in world.status()["heldOut"]] == [0, 2]


def test_the_outputs_tell_what_happened(tmp_path: Path) -> None:
    world = World(tmp_path, job(evaluation=HELD_OUT), inputs(heldout=4))
    run(world.master())
    lines = world.metrics()
    assert [(line["iteration"], line["version"]) for line in lines] == [(1, 1), (2, 2), (3, 3)]
    assert [line["held_out_before"] for line in lines] == [0.5, None, 0.5]
    assert [line["held_out"] for line in lines] == [None, 0.5, 0.5]
    assert lines[1]["evaluation"]["families"] == {"even": 1.0, "odd": 0.0}
    assert all(line["answers"] == 6 and line["success_rate"] == line["reward"] and line["loss"] == 0.5 for line in lines)
    assert all(line["seconds"]["train"] == 2.0 and line["seconds"]["rollout"] > 0 for line in lines)
    assert all(line["seconds"]["register"] == 0.25 for line in lines), "the last step's time arrives after its effect"
    assert all(sum(v for k, v in line["seconds"].items() if k != "total") >= line["seconds"]["total"] - 1e-6 for line in lines)
    model = tmp_path / "output" / "model"
    assert [f.name for f in model.iterdir()] == ["model.safetensors"]  # optimizer state stays behind
    assert (model / "model.safetensors").read_text() == world.checksums[3]
    assert checkpoint_versions(world.folders.checkpoints) == (3,)
    assert "<svg" in (tmp_path / "output" / "report.html").read_text()


def test_while_a_version_is_trained_the_speed_is_that_of_its_own_rollout(tmp_path: Path) -> None:
    world, seen = World(tmp_path, job(), inputs()), dict[int, float]()

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            life = tasks.create_task(world.master())
            while not life.done():
                await asyncio.sleep(0.5)
                if world.parts is not None and not life.done() and world.parts.activity.phase == "Training":
                    status = job_status(world.parts)
                    seen.setdefault(status.iteration, status.tokens_per_second)

    run(scenario())
    speeds = {line["iteration"]: line["tokens_per_second"] for line in world.metrics()}
    assert len(set(speeds.values())) == 3
    assert seen == speeds


def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_holds_nothing_up(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())
    world.folders.checkpoints.mkdir()
    (world.folders.checkpoints / "version-000001.obsolete").write_text("in the way of the folder's new name, and no folder to delete")
    run(world.master())
    assert checkpoint_versions(world.folders.checkpoints) == (1, 3)
    assert (world.folders.output / "model" / "model.safetensors").exists()
    status = world.status()
    assert (status["phase"], status["lastFailure"]["reason"]) == ("Succeeded", "CheckpointNotDeleted")
    assert str(world.folders.checkpoints / "version-000001") in status["lastFailure"]["message"]


def test_hidden_files_of_a_checkpoint_do_not_get_into_the_model(tmp_path: Path) -> None:
    (tmp_path / "version-000003").mkdir()
    for name in ("config.json", ".source.json"):
        (tmp_path / "version-000003" / name).write_text("{}")
    export_model(tmp_path / "version-000003", tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["config.json"]


def test_held_out_answers_are_greedy_and_training_answers_are_sampled(tmp_path: Path) -> None:
    world = World(tmp_path, job(iterations=1, evaluation=HELD_OUT, rollout={"temperature": 0.9}), inputs(heldout=4))
    run(world.master())
    temperatures = {(tokens[0] >= 1000, params.temperature) for _, tokens, params in world.requests}
    assert temperatures == {(True, 0.0), (False, 0.9)}
    assert all(params.stop_token_ids == (EOS,) and params.max_tokens == 8 for _, _, params in world.requests)


def test_the_engine_is_kept_busy_but_not_flooded(tmp_path: Path) -> None:
    world = World(tmp_path, job(iterations=1, algorithm={"promptsPerIteration": 12, "samplesPerPrompt": 4}), inputs())
    run(world.master())
    assert [engine.most_running for engine in world.engines.values()] == [5]  # maxSequences × 1.25


KILLED = job(iterations=2, warmStart={"steps": 1, "batchSize": 2}, evaluation=HELD_OUT, checkpoint={"keep": 1})


def undisturbed(root: Path) -> World:
    world = World(root, KILLED, inputs(heldout=3, warmstart=3))
    run(world.master())
    return world


def assert_same(world: World, reference: World) -> None:
    assert world.trained_prompts() == reference.trained_prompts()
    assert consumed(world) == consumed(reference)
    same = ("iteration", "version", "reward", "response_length", "groups", "answers", "held_out", "held_out_before")
    assert [[line[k] for k in same] for line in world.metrics()] == [[line[k] for k in same] for line in reference.metrics()]
    assert world.checksums == reference.checksums
    assert checkpoint_versions(world.folders.checkpoints) == (3,)


def test_a_master_killed_at_any_durable_step_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    reference = undisturbed(tmp_path / "reference")

    async def killed_at(step: int) -> World:
        world = World(tmp_path / str(step), KILLED, inputs(heldout=3, warmstart=3))
        assert not await world.master(crash_at=step)
        assert await world.master()
        return world

    # Step 2 on: before that the state does not exist yet.
    for step in range(2, len(reference.steps)):
        assert_same(run(killed_at(step)), reference)


@pytest.mark.parametrize("steps", [8, 11])
def test_a_master_that_is_killed_again_and_again_still_gets_there(tmp_path: Path, steps: int) -> None:
    reference = undisturbed(tmp_path / "reference")

    async def lives() -> World:
        world = World(tmp_path / "killed", KILLED, inputs(heldout=3, warmstart=3))
        while not await world.master(crash_at=steps):
            pass
        return world

    assert_same(run(lives()), reference)


def test_everything_dies_at_once_and_comes_back(tmp_path: Path) -> None:
    reference = undisturbed(tmp_path / "reference")

    async def killed_at(step: int) -> World:
        world = World(tmp_path / str(step), KILLED, inputs(heldout=3, warmstart=3))
        assert not await world.master(crash_at=step)
        world.kill_nodes()
        assert await world.master()
        return world

    for step in range(2, len(reference.steps), 5):
        assert_same(run(killed_at(step)), reference)


def test_verdicts_survive_a_crash(tmp_path: Path) -> None:
    """No answer whose verdict was stored is judged again."""

    async def killed_after_verdicts() -> World:
        world = World(tmp_path, job(iterations=1), inputs())
        await world.master(crash_at=16)
        with sqlite3.connect(world.folders.state / "master.sqlite") as db:
            known = {f"{g}/{s}" for g, s in db.execute("SELECT group_id, sample FROM trajectories WHERE reward IS NOT NULL")}
        assert known
        before = world.reward.judged.copy()
        await world.master()
        assert not known & (world.reward.judged - before).keys()
        return world

    assert_every_prompt_consumed_once(run(killed_after_verdicts()), 1, 3)


def long_answers(number: int, position: int) -> int:
    """Prompt 0 takes 11 tokens, the others 2."""
    return EOS if position == (10 if number == 0 else 1) else 10 + position


PARTIAL = {"maxTokens": 20, "tokenBudget": 4, "maxStaleness": 1}


def test_a_long_answer_is_written_in_three_iterations_and_trained_on_in_the_last(tmp_path: Path) -> None:
    spec = job(rollout=PARTIAL, data={"order": "file"}, iterations=4)
    world = World(tmp_path, spec, inputs(), long_answers)
    run(world.master())
    # Three prompts an iteration; prompt 0 is carried twice, so only two new ones are drawn.
    assert world.trained_prompts() == {1: [1, 2], 2: [3, 4], 3: [0, 5, 6], 4: [7, 8, 9]}
    batch = world.nodes[0].batches[3]
    answer = next(g for g in batch.groups if g.prompt[0] == 0).samples[0]
    assert answer.tokens.tolist() == [*range(10, 20), EOS]
    assert answer.loss_mask.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]  # written by versions 0, 1 and 2; 0 is too old
    assert [line["carried"] for line in world.metrics()] == [2, 2, 0, 0]
    assert [line["tokens"] for line in world.metrics()] == [16, 16, 14, 12]
    assert world.metrics()[2]["stale_tokens"] == pytest.approx(16 / 30)
    assert sorted(v for _, v in consumed(world) if v is not None) == [1, 1, 2, 2, 3, 3, 3, 4, 4, 4]


def test_each_segment_was_written_by_the_policy_that_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, job(rollout=PARTIAL, data={"order": "file"}), inputs(), long_answers)
    run(world.master())
    writers = {len(tokens) - 2: label for label, tokens, _ in world.requests if tokens[0] == 0}
    assert writers == {0: "0:start", 4: f"1:{world.checksums[1]}", 8: f"2:{world.checksums[2]}"}


def test_a_partial_rollout_survives_a_crash_at_any_step(tmp_path: Path) -> None:
    spec = job(rollout=PARTIAL, data={"order": "file"})
    reference = World(tmp_path / "reference", spec, inputs(), long_answers)
    run(reference.master())

    async def killed_at(step: int) -> World:
        world = World(tmp_path / str(step), spec, inputs(), long_answers)
        await world.master(crash_at=step)
        assert await world.master()
        return world

    for step in range(2, len(reference.steps), 3):
        world = run(killed_at(step))
        assert world.trained_prompts() == reference.trained_prompts()
        assert consumed(world) == consumed(reference)
        assert world.checksums == reference.checksums


def test_if_nothing_is_complete_generation_goes_on_without_training(tmp_path: Path) -> None:
    spec = job(iterations=1, rollout={"maxTokens": 20, "tokenBudget": 2})
    world = World(tmp_path, spec, inputs(), lambda number, position: EOS if position == 4 else 7)
    run(world.master())
    assert [(line["rounds"], line["groups"], line["response_length"]) for line in world.metrics()] == [(3, 3, 5.0)]
    assert phases(world.steps).count("draw") == 1


def test_a_looping_answer_is_ended_early_and_pays(tmp_path: Path) -> None:
    spec = job(iterations=1, rollout={"maxTokens": 2000, "repetition": {"window": 4, "times": 4, "penalty": 0.5}})
    world = World(tmp_path, spec, inputs(), lambda number, position: EOS if number % 2 and position == 3 else position % 3 + 1)
    run(world.master())
    (line,) = world.metrics()
    assert line["repeated"] == pytest.approx(sum(n % 2 == 0 for n in world.trained_prompts()[1]) / 3)
    assert line["repeated"] > 0
    assert line["total_reward"] == pytest.approx(line["reward"] - 0.5 * line["repeated"])
    looped = next(g for g in world.nodes[0].batches[1].groups if g.prompt[0] % 2 == 0)
    assert {len(s.tokens) for s in looped.samples} == {16}


class TestEngines:
    def test_a_dead_engine_costs_its_running_answers_only(self, tmp_path: Path) -> None:
        world = World(tmp_path, job(iterations=2), inputs())

        async def scenario() -> None:
            async def killer() -> None:
                await until(lambda: any(e.generated > 5 for e in world.engines.values()))
                for engine in world.engines.values():
                    engine.alive = False

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(killer())
                tasks.create_task(world.master())

        run(scenario())
        assert len(world.engines) == 3
        assert_every_prompt_consumed_once(world, 2, 3)
        assert world.parts is not None
        assert world.parts.pool.tally.redispatched > 0
        failure = world.status()["lastFailure"]
        assert (failure["stage"], failure["pod"], failure["reason"]) == ("rollout", "worker-0", "RequestFailed")

    def test_answers_of_other_weights_are_thrown_away(self, tmp_path: Path) -> None:
        world = World(tmp_path, job(iterations=1), inputs())

        async def scenario() -> None:
            async def swapper() -> None:
                await until(lambda: bool(world.engines))
                (engine,) = world.engines.values()
                engine.label = "0:stale"
                await until(lambda: engine.generated >= 12)
                engine.label = "0:start"

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(swapper())
                tasks.create_task(world.master())

        run(scenario())
        (line,) = world.metrics()
        assert line["discarded_tokens"] > 0
        assert line["tokens"] == line["answers"] * line["response_length"]
        assert world.status()["lastFailure"]["reason"] == "WrongWeights"

    def test_a_stalled_engine_is_given_up(self, tmp_path: Path) -> None:
        world = World(tmp_path, job(iterations=1, switch={"deadlineSeconds": 20}), inputs())

        async def scenario() -> None:
            async def stall() -> None:
                await until(lambda: any(e.generated > 3 for e in world.engines.values()))
                (engine,) = world.engines.values()
                engine.stalled.clear()
                await until(lambda: not engine.running)
                engine.stalled.set()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(stall())
                tasks.create_task(world.master())

        run(scenario())
        assert world.status()["lastFailure"]["reason"] == "EngineStalled"
        assert_every_prompt_consumed_once(world, 1, 3)


class TestReward:
    def test_failed_verdicts_and_an_absent_service_are_tried_again_and_never_a_reward(self, tmp_path: Path) -> None:
        calm, stormy = (World(tmp_path / name, job(), inputs()) for name in ("calm", "stormy"))
        stormy.reward.failures, stormy.reward.away = 5, 3
        run(calm.master())
        run(stormy.master())
        assert [line["reward"] for line in stormy.metrics()] == [line["reward"] for line in calm.metrics()]
        assert set(stormy.reward.judged.values()) == {1}
        assert Counter(stormy.reward.judged) == Counter(calm.reward.judged)

    def test_a_pod_of_another_release_is_asked_again_until_it_is_replaced(self, tmp_path: Path) -> None:
        """In the middle of an upgrade some pods do not know a new field."""

        class Upgraded(FakeReward):
            old = 5

            async def score(self, request: ScoreRequest) -> ScoreResponse:
                async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as http:
                    return await HttpRewardService("http://reward", http).score(request)

            async def answer(self, request: httpx.Request) -> httpx.Response:
                if self.old:
                    self.old -= 1
                    return httpx.Response(422, json={"error": "not a ScoreRequest: Extra inputs are not permitted"})
                found = await super().score(ScoreRequest.model_validate_json(request.content))
                return httpx.Response(200, text=found.model_dump_json())

        world = World(tmp_path, job(), inputs())
        world.reward = reward = Upgraded()
        assert run(world.master())
        assert (reward.old, world.status()["lastFailure"]) == (0, None)

    def test_a_verifier_that_always_fails_ends_the_job(self, tmp_path: Path) -> None:
        world = World(tmp_path, job(backoffLimit=2), inputs())
        world.reward.failures = 10_000
        with pytest.raises(JobFailed, match=r"verifier exact failed \d+ times .*out of memory"):
            run(world.master())
        assert world.status()["phase"] == "Failed"
        assert world.status()["lastFailure"]["reason"] == "VerifierFailed"

    def test_a_judge_that_is_away_for_minutes_is_waited_for(self, tmp_path: Path) -> None:
        """Many answers that wait for it are not many failures."""
        world = World(tmp_path, job(backoffLimit=2), inputs())
        world.reward.failures = 10_000

        async def scenario() -> None:
            async def comes_back() -> None:
                await asyncio.sleep(120)
                assert world.status()["lastFailure"]["reason"] == "VerifierFailed"
                world.reward.failures = 0

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(comes_back())
                tasks.create_task(world.master())

        run(scenario())
        assert world.status()["phase"] == "Succeeded"
        assert set(world.reward.judged.values()) == {1}


class TestFailures:
    def failing(self, tmp_path: Path, configuration: bool) -> World:
        world = World(tmp_path, job(backoffLimit=3), inputs())
        world.nodes[0].failing = Failure(stage="start-engine", reason="EngineExited", message="out of memory", configuration=configuration)
        return world

    def test_a_configuration_error_of_a_node_ends_the_job_at_once(self, tmp_path: Path) -> None:
        world = self.failing(tmp_path, configuration=True)
        world.nodes[0].failures = 1
        with pytest.raises(ConfigurationError, match="start-engine on worker-0: out of memory"):
            run(world.master())
        assert world.status()["phase"] == "Failed"

    def test_failures_without_progress_end_the_job_and_are_named(self, tmp_path: Path) -> None:
        world = self.failing(tmp_path, configuration=False)
        with pytest.raises(JobFailed, match=r"4 failures in a row .*backoffLimit is 3"):
            run(world.master())
        failure = LastFailure.model_validate(world.status()["lastFailure"])
        assert failure.model_dump(exclude={"at"}) == {
            "stage": "start-engine",
            "pod": "worker-0",
            "reason": "EngineExited",
            "message": "out of memory",
        }
        assert failure.at is not None

    def test_the_last_failure_keeps_its_time_until_there_is_another(self) -> None:
        times = [datetime(2026, 11, 30, 12, minute, tzinfo=UTC) for minute in (0, 5)]

        async def story() -> None:
            watch = Watch(6, iter(times).__next__)
            for when in times:
                watch.failed("worker-0", "train", "Died", "out of memory")
                watch.progressed()
                assert watch.last is not None
                assert watch.last.at == when

        run(story())


class TestResume:
    def test_more_iterations_go_on_from_the_last(self, tmp_path: Path) -> None:
        first = World(tmp_path, job(iterations=2), inputs())
        run(first.master())
        more = World(tmp_path, job(iterations=4), inputs())
        more.checksums = first.checksums
        run(more.master())
        assert [line["iteration"] for line in more.metrics()] == [1, 2, 3, 4]
        assert_every_prompt_consumed_once(more, 4, 3)

    def test_state_of_another_job_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        run(World(tmp_path, job(), inputs()).master())
        before = (tmp_path / "output" / "metrics.jsonl").read_text()
        with pytest.raises(ConfigurationError, match=r"spec.seed was 0, is 5.*start afresh in an empty folder"):
            run(World(tmp_path, job(seed=5), inputs()).master())
        with pytest.raises(ConfigurationError, match="digest"):
            run(World(tmp_path, job(), inputs(digest="d2")).master())
        assert (tmp_path / "output" / "metrics.jsonl").read_text() == before

    def test_a_second_master_is_refused(self, tmp_path: Path) -> None:
        world = World(tmp_path, job(), inputs())

        async def twice() -> None:
            task = asyncio.create_task(world.master())
            await asyncio.sleep(1)
            with pytest.raises(ConfigurationError, match="another master is running"):
                await World(tmp_path, job(), inputs()).master()
            await task

        run(twice())


@pytest.mark.parametrize("strategy", ["curriculum", "prioritized"])
def test_every_sampling_strategy_goes_on_with_the_same_prompts_after_a_crash(tmp_path: Path, strategy: str) -> None:
    spec = job(iterations=4, algorithm={"promptsPerIteration": 3, "samplesPerPrompt": 2, "sampling": {"strategy": strategy}})
    reference = World(tmp_path / "reference", spec, inputs())
    run(reference.master())

    async def lives() -> World:
        world = World(tmp_path / "killed", spec, inputs())
        while not await world.master(crash_at=13):
            pass
        return world

    assert run(lives()).trained_prompts() == reference.trained_prompts()


class Unequal:
    """Of the two answers to a prompt one has two tokens and the other four."""

    def __init__(self) -> None:
        self.short: set[int] = set()

    def __call__(self, number: int, position: int) -> int:
        if position == 1 and number not in self.short:
            self.short.add(number)
            return EOS
        return EOS if position == 3 else 7


def test_the_length_reward_reaches_the_batch_with_its_weight_after_its_warm_up(tmp_path: Path) -> None:
    """The warm start makes version 1, so that whoever counts versions for iterations ends the warm-up too early."""
    spec = job(iterations=3, warmStart={"steps": 1, "batchSize": 2}, algorithm={"lengthPenalty": {"weight": 0.2, "warmupIterations": 1}})
    world = World(tmp_path, spec, inputs(warmstart=3), Unequal())
    run(world.master())
    found = {
        version: {(int(g.prompt[0]) % 2 == 0, len(s.tokens), round(s.advantage, 6)) for g in batch.groups for s in g.samples}
        for version, batch in world.nodes[0].batches.items()
        if version > 1
    }
    right, wrong = {(True, 2, 0.1), (True, 4, -0.1)}, {(False, 2, 0.05), (False, 4, -0.05)}  # a wrong answer earns nothing by being short
    drawn = {version: {n % 2 == 0 for n in numbers} for version, numbers in world.trained_prompts().items()}
    assert found[2] == {(even, length, 0.0) for even in drawn[2] for length in (2, 4)}
    for version in (3, 4):
        assert found[version] == (right if True in drawn[version] else set()) | (wrong if False in drawn[version] else set())
    assert found[3] | found[4] == right | wrong
    # Right answers earn 0 on average, wrong ones a quarter of the weight less.
    lines = world.metrics()
    assert [line["total_reward"] - line["reward"] for line in lines] == pytest.approx(
        [0.0, *(-0.05 * (1 - line["reward"]) for line in lines[1:])]
    )


def test_the_curriculum_opens_with_the_iterations(tmp_path: Path) -> None:
    sampling = {"strategy": "curriculum", "curriculumIterations": 4}
    world = World(tmp_path, job(iterations=4, algorithm={"sampling": sampling}), inputs())
    run(world.master())
    # A quarter more of the twelve prompts every time, and what was drawn least comes first.
    assert world.trained_prompts() == {1: [0, 1, 2], 2: [3, 4, 5], 3: [6, 7, 8], 4: [9, 10, 11]}


def test_prioritized_sampling_turns_to_the_prompts_that_fail(tmp_path: Path) -> None:
    """Success rates reach the sampler: the twin calls all answers to even prompts right. A walk would draw each two or three times."""
    world = World(tmp_path, job(iterations=10, algorithm={"sampling": {"strategy": "prioritized"}}), inputs())
    run(world.master())
    drawn = Counter(n for numbers in world.trained_prompts().values() for n in numbers)
    assert {count for n, count in drawn.items() if n % 2 == 0} == {1}
    assert all(drawn[n] > 1 for n in range(1, 12, 2))
