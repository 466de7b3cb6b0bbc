"""What the master shows of a long job: complete, and made once per change and not once per look."""

import asyncio
import json
from pathlib import Path

from tests.master.test_service import with_master
from tests.master.test_state import add_iterations
from tests.master.twins import World, inputs, job

from rljob.master.outputs import STATUS_BYTES, Outputs
from rljob.master.parts import Parts
from rljob.master.report import LivePage

SHARES = ("reward", "success_rate", "response_length", "logprob_gap", "stopped", "cut", "repeated", "zero_advantage", "tokens_per_second")
RECORD = {**dict.fromkeys(SHARES, 0.5), "tokens": 7, "seconds": {"rollout": 2.0, "total": 3.0}}


def add_evaluation(parts: Parts, iteration: int) -> None:
    with parts.state.database.transaction("evaluation") as c:
        status = json.dumps({"iteration": iteration, "accuracy": 0.5, "count": 4})
        c.execute("INSERT INTO evaluations VALUES (?, ?, ?, '{}')", (iteration, iteration, status))


def test_no_line_of_the_metrics_is_left_out_and_the_newest_gets_its_evaluation(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        assert world.parts is not None
        outputs = Outputs(world.parts)
        for expected in ([None], [0.5], [0.5, None], [0.5, 0.5], [0.5, 0.5, None]):
            if expected[-1] is None:
                add_iterations(world.parts.state.database, 1, **RECORD)
            else:
                add_evaluation(world.parts, len(expected))
            outputs.write()
            assert [line["held_out"] for line in world.metrics()] == expected
        assert [line["held_out_before"] for line in world.metrics()] == [None, 0.5, 0.5]
        written = world.metrics()
        Outputs(world.parts).write()
        assert world.metrics() == written, "as a master writes them that has just begun"

    with_master(world, work)


def test_a_long_status_is_written_less_often(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def written() -> int:
        seen = set()
        for _ in range(120):
            await asyncio.sleep(0.5)
            seen.add((tmp_path / "output" / "status.json").stat().st_mtime_ns)
        return len(seen)

    async def work() -> None:
        assert world.parts is not None
        assert 58 <= await written() <= 62
        add_iterations(world.parts.state.database, 8_000, **RECORD)
        world.parts.activity.changed()
        await asyncio.sleep(0.1)
        size = (tmp_path / "output" / "status.json").stat().st_size
        assert len(world.status()["rewards"]) == 8_000, "a change is written at once"
        assert await written() <= 60 * STATUS_BYTES / size + 1

    with_master(world, work)


def test_the_page_is_made_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())

    async def work() -> None:
        assert world.parts is not None
        page = LivePage(world.parts)
        seen = [page.now()]
        assert page.now() is seen[0]
        world.parts.activity.begin("Rollout")
        seen.append(page.now())
        world.parts.watch.failed("master", "loop", "Odd", "something odd happened")
        seen.append(page.now())
        add_evaluation(world.parts, 0)
        seen.append(page.now())
        assert ["Rollout" in page for page in seen] == [False, True, True, True]
        assert ["something odd" in page for page in seen] == [False, False, True, True]
        assert ["Held-out" in page for page in seen] == [False, False, False, True]
        assert page.now() is seen[-1]

    with_master(world, work)
