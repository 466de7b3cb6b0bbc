"""Rollout replicas come and go while a job runs: nothing is lost or done twice, and what is learned does not depend on their number."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.master.test_loop import assert_every_prompt_consumed_once
from tests.master.twins import FakeEngine, FakeReplica, World, inputs, job, short_answers
from tests.master.virtual import clock, run, until

from rljob.master.engines import EnginePool
from rljob.master.loop import TAKE_BACK, Loop
from rljob.master.parts import Parts
from rljob.master.trajectory import Weights
from rljob.master.watch import Watch
from rljob.rollout.client import Completion, EngineMetrics, SamplingParams
from rljob.wire.node import EngineReport, NodeReport

LONG = 2000
"""Tokens of an answer: four requests to an engine."""


def long_answers(number: int, position: int) -> int:
    """No end: every answer is as long as it may be. Never a loop."""
    return 1 + (number * 31 + position * position) % 97


class Elastic(World):
    """A world in which rollout replicas are started and stopped."""

    def __init__(self, root: Path, policy: Callable[[int, int], int] = long_answers, iterations: int = 2, **rollout: Any) -> None:
        spec = job(iterations=iterations, rollout={"maxTokens": LONG, "repetition": {"enabled": False}, **rollout})
        super().__init__(root, spec, inputs(), policy)
        self.replicas: dict[str, tuple[FakeReplica, asyncio.Task[None]]] = {}
        self.started = 0

    def scale(self, count: int) -> list[Awaitable[None]]:
        """So many from now on: the newest go first. Answers what ends them."""
        while len(self.replicas) < count:
            self.started += 1
            replica = FakeReplica(self, f"rollout-{len(self.replicas)}")
            replica.incarnation = f"{replica.name}.{self.started}"
            self.replicas[replica.name] = (replica, asyncio.create_task(replica.run()))
        return [self._end(*self.replicas.popitem()[1]) for _ in range(len(self.replicas) - count)]

    async def _end(self, replica: FakeReplica, life: "asyncio.Task[None]") -> None:
        await replica.leave()
        life.cancel()

    def engine(self, name: str) -> FakeEngine:
        engine = self.replicas[name][0].engine
        assert engine is not None
        return engine

    def serving(self, name: str) -> bool:
        return name in self.replicas and (found := self.replicas[name][0].engine) is not None and found.running > 0

    def generated(self) -> int:
        return sum(engine.generated for engine in self.engines.values())

    def play(self, script: Callable[["Elastic"], Awaitable[None]] | None = None) -> None:
        """The whole job, and what is done to it meanwhile."""

        async def scenario() -> None:
            acting = asyncio.ensure_future(script(self)) if script is not None else None
            await self.master()
            if acting is not None:
                await acting
            for _, life in self.replicas.values():
                life.cancel()

        run(scenario())


def contents(world: World) -> dict[int, bytes]:
    """Every version's batch, byte for byte."""
    return {version: batch.encode() for version, batch in sorted(world.nodes[0].batches.items())}


async def zero_three_one(world: Elastic) -> None:
    """0 -> 3 -> 1 while the first iteration is generated, and back to 2 in the second."""
    await until(lambda: world.generated() > 100)
    world.scale(3)
    await until(lambda: all(world.serving(f"rollout-{i}") for i in range(3)))
    await asyncio.gather(*world.scale(1))
    await until(lambda: bool(world.parts and world.parts.state.versions.committed().version == 1))
    world.scale(2)


def test_replicas_come_and_go_and_no_token_is_lost_or_written_twice(tmp_path: Path) -> None:
    world = Elastic(tmp_path)
    world.play(zero_three_one)
    assert_every_prompt_consumed_once(world, 2, 3)
    assert [line["iteration"] for line in world.metrics()] == [1, 2]
    assert world.generated() == 2 * 3 * 2 * LONG, "what a leaving engine had written was kept"
    assert world.parts is not None
    assert world.parts.pool.tally.discarded == 0
    assert "lastFailure" not in world.status() or world.status()["lastFailure"] is None, "to leave is no failure"
    assert sum(bool(engine.generated) for engine in world.engines.values()) >= 5, "every replica took part"


def test_what_is_learned_does_not_depend_on_how_many_replicas_there_were(tmp_path: Path) -> None:
    alone, elastic = Elastic(tmp_path / "alone"), Elastic(tmp_path / "elastic")
    alone.play()
    elastic.play(zero_three_one)
    assert contents(elastic) == contents(alone)
    assert elastic.checksums == alone.checksums


def test_a_replica_that_is_killed_costs_what_it_was_writing_and_comes_back(tmp_path: Path) -> None:
    world = Elastic(tmp_path)

    async def kill(world: Elastic) -> None:
        world.scale(1)
        await until(lambda: world.serving("rollout-0") and world.engine("rollout-0").generated > 700)
        replica, life = world.replicas.pop("rollout-0")
        life.cancel()
        assert replica.engine is not None
        replica.engine.alive = False
        world.scale(1)
        await until(lambda: world.serving("rollout-0"))

    world.play(kill)
    assert_every_prompt_consumed_once(world, 2, 3)
    lost = world.generated() - 2 * 3 * 2 * LONG
    assert 0 < lost <= 4 * 512, "no more than the requests that it had"


def test_a_replica_that_is_lost_does_not_end_the_job_though_nothing_gets_on_meanwhile(tmp_path: Path) -> None:
    """It refuses every request that is tried there, more often than the job bears, before the other engine has written a first piece."""
    world = Elastic(tmp_path, iterations=1)

    async def kill(world: Elastic) -> None:
        world.scale(1)
        await until(lambda: world.serving("rollout-0"))
        for engine in world.engines.values():
            engine.pace = 20.0
        replica, life = world.replicas.pop("rollout-0")
        life.cancel()
        assert replica.engine is not None
        replica.engine.alive = False

    world.play(kill)
    assert_every_prompt_consumed_once(world, 1, 3)
    assert world.status()["lastFailure"]["pod"] == "rollout-0"


def test_who_went_without_a_word_has_no_seat_when_another_version_is_wanted(tmp_path: Path) -> None:
    world, old, new = World(tmp_path, job(), inputs()), Weights(0, "start"), Weights(1, "next")

    async def scenario() -> None:
        pool = EnginePool(lambda url: FakeEngine(world, old.label), Watch(6), clock, 64, 60.0, "test", 512)
        pool.want(old, {"rollout-0": _report("rollout-0", old)})
        assert pool.routable == 1
        pool.want(new, {})
        assert pool.routable == 0

    run(scenario())


def test_a_machine_that_is_gone_without_a_word_holds_nothing_up(tmp_path: Path) -> None:
    world = Elastic(tmp_path, iterations=1)

    async def unplug(world: Elastic) -> None:
        world.scale(1)
        await until(lambda: world.serving("rollout-0"))
        world.engine("rollout-0").silent = True

    world.play(unplug)
    assert_every_prompt_consumed_once(world, 1, 3)
    assert world.status()["lastFailure"]["reason"] == "EngineSilent"
    assert world.metrics()[0]["seconds"]["rollout"] < 60, "switch.deadlineSeconds, after which an engine counts as stalled, is minutes"


@pytest.mark.parametrize("pace", [1.0, 100.0])
def test_a_slow_engine_does_not_hold_the_iteration_and_its_tokens_are_kept(tmp_path: Path, pace: float) -> None:
    world = Elastic(tmp_path, iterations=1)

    async def slow_down(world: Elastic) -> None:
        world.scale(1)
        await until(lambda: world.serving("rollout-0"))
        world.engine("rollout-0").pace = pace

    world.play(slow_down)
    assert world.parts is not None
    assert (world.parts.pool.tally.taken_back > 0) == (pace > 1)
    assert world.generated() == 3 * 2 * LONG
    # Alone it would need 512 s for the request in hand.
    assert world.metrics()[0]["seconds"]["rollout"] < 100


def test_a_slow_engine_is_relieved_also_while_another_does_not_answer(tmp_path: Path) -> None:
    world = Elastic(tmp_path, iterations=1)

    async def script(world: Elastic) -> None:
        world.scale(2)
        await until(lambda: world.serving("rollout-0") and world.serving("rollout-1"))
        world.engine("rollout-1").silent = True
        world.replicas.pop("rollout-1")[1].cancel()
        world.engine("rollout-0").pace = 100.0

    world.play(script)
    assert world.parts is not None
    assert world.parts.pool.tally.taken_back > 0
    assert world.metrics()[0]["seconds"]["rollout"] < 150


@dataclass
class Even:
    """Writes so many tokens per second of every answer, once it has read for so many seconds."""

    rate: float = 20.0
    reads: float = 0.0
    running: dict[str, tuple[float, asyncio.Event]] = field(default_factory=dict)
    written: int = 0

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion:
        begun, given_up = clock() + self.reads, asyncio.Event()
        self.running[request_id] = (begun, given_up)
        ended = asyncio.create_task(given_up.wait())
        await asyncio.wait([ended], timeout=self.reads + params.max_tokens / self.rate)
        count, short = (self._of(begun), ended.done()) if ended.done() else (params.max_tokens, False)
        ended.cancel()
        del self.running[request_id]
        self.written += count
        return Completion((1,) * count, (-0.5,) * count, "abort" if short else "length", "1:c" if count else "")

    async def metrics(self) -> EngineMetrics:
        return EngineMetrics(len(self.running), 0, self.written + sum(self._of(begun) for begun, _ in self.running.values()), 0.1)

    async def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            self.running[name][1].set()

    def _of(self, begun: float) -> int:
        return max(0, int((clock() - begun) * self.rate))


async def play_two(
    engines: dict[str, Even], answers: Sequence[tuple[str | None, int, float]], joins: float = 0.0, prompt: int = 1
) -> tuple[float, int]:
    """Seconds until all answers are written, and how many requests were taken back.

    Args:
        answers: the engine that has its prefix, tokens, when it is begun.
        joins: seconds after which engine `a` is there.
        prompt: tokens of each prompt.
    """
    weights = Weights(1, "c")
    pool = EnginePool(lambda url: engines[url], Watch(6), clock, 64, 6000.0, "test", 512)
    pool.want(weights, {name: _report(name, weights) for name in engines if not (joins and name == "a")})
    begun, looking = clock(), asyncio.create_task(pool.poll())

    async def grow(engine: str | None, tokens: int, later: float) -> None:
        await asyncio.sleep(later)
        written = 0
        while written < tokens:
            answered = await pool.generate((1,) * prompt, SamplingParams(max_tokens=tokens - written), engine, written)
            assert answered is not None
            written, engine = written + len(answered[0].tokens), answered[1]

    async with asyncio.TaskGroup() as tasks:
        for answer in answers:
            tasks.create_task(grow(*answer))
        await asyncio.sleep(joins)
        pool.observe(_report("a", weights))
    looking.cancel()
    return clock() - begun, pool.tally.taken_back


@pytest.mark.parametrize(
    ("tokens", "joins", "most"),
    [(30, 0.0, 20.0), (300, 15.0, 60.0)],
    ids=["the other is done before it is measured", "the other has just joined"],
)
def test_a_crawling_engine_does_not_hold_the_iteration_whatever_is_known_of_the_other(tokens: int, joins: float, most: float) -> None:
    seconds, taken_back = run(play_two({"a": Even(), "b": Even(rate=0.2)}, [(None, tokens, 0.0)] * 64, joins))
    assert taken_back > 0
    assert seconds < most, f"alone it would need {tokens / 0.2:.0f} s"


@pytest.mark.parametrize("later", [0.6, 1.2])
def test_an_engine_is_not_taken_for_slow_because_the_answers_of_one_like_it_ended_all_at_once(later: float) -> None:
    answers = [*[("a/a", 190, 0.0), ("b/b", 1000, 0.0)] * 63, ("a/a", 190, later)]
    seconds, taken_back = run(play_two({"a": Even(), "b": Even()}, answers))
    assert taken_back == 0
    assert seconds == pytest.approx(50.0)


@pytest.mark.parametrize(("reads", "prompt", "slow"), [(30.0, 30_000, False), (1000.0, 200, True)], ids=["it reads", "it hangs"])
def test_an_engine_that_reads_what_it_was_sent_is_left_alone_and_one_that_hangs_is_not(reads: float, prompt: int, slow: bool) -> None:
    seconds, taken_back = run(play_two({"a": Even(), "b": Even(reads=reads)}, [(None, 200, 0.0)] * 64, prompt=prompt))
    assert (taken_back > 0) == slow
    assert seconds < 50


def test_an_engine_that_makes_tokens_up_is_not_believed(tmp_path: Path) -> None:
    world, weights = World(tmp_path, job(), inputs()), Weights(0, "start")

    class Lying(FakeEngine):
        async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion:
            told = await super().generate(request_id, prompt, params)
            return replace(told, tokens=(*told.tokens[:-1], 999))

    engines = {"a": Lying(world, weights.label), "b": FakeEngine(world, weights.label)}

    async def scenario() -> list[tuple[Completion, str] | None]:
        pool = EnginePool(lambda url: engines[url], Watch(6), clock, 64, 60.0, "test", 512)
        pool.want(weights, {name: _report(name, weights) for name in engines})
        return await asyncio.gather(*(pool.generate((n, 99), SamplingParams(max_tokens=5)) for n in range(4)))

    answers = run(scenario())
    assert {key for answer in answers if answer is not None for key in [answer[1]]} == {"b/b"}
    assert len(answers) == 4


def test_the_longest_answers_are_asked_for_first(tmp_path: Path) -> None:
    world = Elastic(tmp_path, iterations=1, engine={"maxSequences": 1})
    world.play()
    lengths = [len(prompt) - 2 for _, prompt, _ in world.requests]
    # One at a time, and one that is sent while the last answer is made durable: what was begun is ended before more is begun.
    assert lengths == [0, 0, 512, 512, 1024, 1024, 1536, 1536] * 3


def test_answers_to_one_prompt_are_asked_for_where_their_prefix_is_as_long_as_that_keeps_the_balance(tmp_path: Path) -> None:
    world, weights = World(tmp_path, job(), inputs()), Weights(0, "start")
    engines = {name: FakeEngine(world, weights.label) for name in ("a", "b")}

    async def scenario() -> None:
        pool = EnginePool(lambda url: engines[url], Watch(6), clock, 64, 60.0, "test", 512)
        reports = {name: _report(name, weights) for name in engines}
        pool.want(weights, reports)
        async with asyncio.TaskGroup() as tasks:
            for sample, number in itertools.product(range(8), range(4)):
                tasks.create_task(pool.generate((number, 99), SamplingParams(max_tokens=50), None, 0, f"p{number}"), name=str(sample))

    run(scenario())
    where: dict[int, set[str]] = {}
    for label, asked in ((name, engine.asked) for name, engine in engines.items()):
        for request in asked:
            where.setdefault(int(request.rpartition("-")[2]) % 4, set()).add(label)
    assert [len(names) for _, names in sorted(where.items())] == [1] * 4
    assert {len(engine.asked) for engine in engines.values()} == {16}


def _report(name: str, weights: Weights) -> NodeReport:
    engine = EngineReport(url=name, incarnation=name, version=weights.version, checksum=weights.checksum, routable=True)
    return NodeReport(node=name, kind="rollout", incarnation="i", seen_revision=0, step="rollout", step_started=0.0, engine=engine)


class TestAhead:
    """Replicas generate while the worker trains, where `rollout.maxStaleness` lets them."""

    def played(self, root: Path, staleness: int, **rollout: Any) -> Elastic:
        world = Elastic(root, iterations=3, maxStaleness=staleness, **rollout)

        async def before(world: Elastic) -> None:
            world.scale(1)

        world.play(before)
        assert_every_prompt_consumed_once(world, 3, 3)
        return world

    def test_the_next_iteration_is_begun_with_the_policy_before_and_ended_with_the_new_one(self, tmp_path: Path) -> None:
        world = self.played(tmp_path, 1)
        assert [line["stale_tokens"] > 0 for line in world.metrics()] == [False, True, True]
        assert [line["masked_tokens"] for line in world.metrics()] == [0, 0, 0]
        assert world.generated() == 3 * 3 * 2 * LONG, "what was taken back at the commit was kept"
        assert world.parts is not None
        assert world.parts.pool.tally.discarded == 0
        assert [version for version in world.nodes[0].trained_versions] == [1, 2, 3]
        assert sum(line["tokens"] for line in world.metrics()) == world.generated(), "each token is in one line"

    def test_what_is_taken_back_is_kept_though_it_takes_a_while_to_arrive(self, tmp_path: Path) -> None:
        world = Elastic(tmp_path, iterations=3, maxStaleness=1)

        async def slowly(world: Elastic) -> None:
            world.scale(1)
            await until(lambda: world.serving("rollout-0"))
            world.engine("rollout-0").sending = 3.0

        world.play(slowly)
        assert_every_prompt_consumed_once(world, 3, 3)
        assert world.generated() == 3 * 3 * 2 * LONG

    def test_it_saves_the_time_of_training(self, tmp_path: Path) -> None:
        room = {"engine": {"maxSequences": 8}}
        waits, ahead = self.played(tmp_path / "waits", 0, **room), self.played(tmp_path / "ahead", 1, **room)
        assert [line["stale_tokens"] for line in waits.metrics()] == [0, 0, 0]

        def seconds(world: Elastic) -> float:
            return sum(float(line["seconds"]["rollout"]) for line in world.metrics())

        # Two trainings of two seconds, in which a token takes a hundredth.
        assert seconds(ahead) < seconds(waits) - 3

    def test_short_answers_that_end_meanwhile_are_judged_once_and_trained_on(self, tmp_path: Path) -> None:
        world = Elastic(tmp_path, short_answers, iterations=3, maxStaleness=1, maxTokens=8)

        async def before(world: Elastic) -> None:
            world.scale(1)

        world.play(before)
        assert_every_prompt_consumed_once(world, 3, 3)
        assert set(world.reward.judged.values()) == {1}
        assert [line["stale_tokens"] for line in world.metrics()] == [0, 1, 1]

    def test_a_master_killed_at_any_durable_step_goes_on(self, tmp_path: Path) -> None:
        calm = Elastic(tmp_path / "calm", short_answers, iterations=2, maxStaleness=1, maxTokens=8)

        async def scenario(world: Elastic, crash_at: int | None) -> None:
            world.scale(1)
            if not await world.master(crash_at):
                await world.master()
            for _, life in world.replicas.values():
                life.cancel()

        run(scenario(calm, None))
        for step in range(len(calm.steps)):
            world = Elastic(tmp_path / str(step), short_answers, iterations=2, maxStaleness=1, maxTokens=8)
            run(scenario(world, step))
            assert_every_prompt_consumed_once(world, 2, 3)
            assert [line["iteration"] for line in world.metrics()] == [1, 2]

    @pytest.mark.parametrize("turns", range(1, 6))
    def test_who_is_ended_while_that_work_unwinds_ends(self, turns: int) -> None:
        """Its own end must not be taken for that of the work."""

        async def unwinding() -> None:
            try:
                await asyncio.sleep(1e9)
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)

        async def taken_back() -> None:
            await asyncio.sleep(0)

        async def scenario() -> bool:
            loop = Loop(
                cast(Parts, SimpleNamespace(pool=SimpleNamespace(take_back=taken_back), job=SimpleNamespace(spec=None), activity=None))
            )
            ahead = asyncio.create_task(unwinding())
            ending = asyncio.create_task(loop._ended(ahead))
            await asyncio.sleep(TAKE_BACK)
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = ending.cancel()
            await asyncio.wait([ending, ahead])
            return ahead.cancelled() and ending.cancelled() is cancelled

        assert run(scenario())
