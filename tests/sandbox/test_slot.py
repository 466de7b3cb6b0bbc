"""One slot as the service sees it: what it hears at which moment. Its end of the socket is held by the test."""

import asyncio
import fcntl
import itertools
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.sandbox.twins import until

from rljob.api.errors import ConfigurationError
from rljob.sandbox import cgroups
from rljob.sandbox import pool as pool_module
from rljob.sandbox.cgroups import Cgroup
from rljob.sandbox.inside.runner import Ended
from rljob.sandbox.pool import Pool, PoolSettings
from rljob.sandbox.slot import Interior, Job, NamespaceSlot, Ran, SlotError, Stream

_F_SETPIPE_SZ = 1031


JOB = Job({"fetch": ()}, {"processes": 1}, python=True, stdin=b"", wall=5, cpu=5, memory=1 << 20, output=100)


def connected() -> tuple[NamespaceSlot, socket.socket]:
    """A slot that takes orders, and who answers for it."""
    slot = NamespaceSlot(Interior("python", (), (), {}), Cgroup("none", {}), None)
    slot._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    slot._control.setblocking(False)
    return slot, theirs


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(8))
async def test_a_run_that_ends_in_the_moment_in_which_it_is_cancelled_leaves_a_slot_that_can_be_used(turns: int) -> None:
    slot, theirs = connected()
    with theirs:
        ending = asyncio.create_task(slot._end(1, wall=5))
        await asyncio.sleep(0.01)
        theirs.send(json.dumps(vars(Ended(1))).encode())
        for _ in range(turns):
            await asyncio.sleep(0)
        ending.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(ending, return_exceptions=True)
        assert not slot.broken
        assert slot._control is not None
        slot._control.close()


@pytest.mark.asyncio
async def test_what_befell_a_run_that_was_cancelled_is_not_said_of_the_next_one(tmp_path: Path) -> None:
    """It was killed for its memory; the next one only fails."""
    slot, theirs = connected()
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 0\n")
    slot.cgroup = Cgroup("v2", {"memory": tmp_path})
    with theirs:
        for number, ended in ((1, Ended(1, killed="cancelled")), (2, Ended(2, status=1))):
            running = asyncio.create_task(slot.run(JOB))
            await asyncio.sleep(0.01)
            if ended.killed:
                events.write_text("oom_kill 1\n")
                running.cancel()
                await asyncio.sleep(0)
            while json.loads(theirs.recv(1 << 16)).get("run") != number:
                pass  # an order to kill
            theirs.send(json.dumps(vars(ended)).encode())
            (ran,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(ran, Ran)
        assert not ran.memory_killed
        assert slot._control is not None
        slot._control.close()


@pytest.mark.asyncio
async def test_a_slot_whose_answer_nobody_waited_for_is_not_used_again() -> None:
    slot, theirs = connected()
    with theirs:
        ending = asyncio.create_task(slot._end(1, wall=5))
        for _ in range(2):
            await asyncio.sleep(0.01)
            ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        assert slot.broken
        assert slot._control is not None
        slot._control.close()


def test_the_last_output_is_read_to_its_end_whatever_packets_it_comes_in() -> None:
    reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    os.set_blocking(reading, False)
    fcntl.fcntl(writing, _F_SETPIPE_SZ, 1 << 20)
    for _ in range(256):
        os.write(writing, b"x")
    os.close(writing)
    stream = Stream(reading, 1000)
    stream.read_rest()
    assert stream.total == 256
    os.close(reading)


@dataclass
class Told:
    """A slot that says who begins and ends in it; `held` (and what begins so) ends when it may."""

    said: list[str]
    let: asyncio.Event
    broken: bool = False
    runs: int = 0

    async def start(self) -> Mapping[str, bool]:
        return {}

    async def stop(self) -> None:
        pass

    async def run(self, job: Job) -> Ran:
        name = job.stdin.decode()
        self.said.append(f"{name} begins")
        if name.startswith("held"):
            await self.let.wait()
        self.said.append(f"{name} ends")
        return Ran(Ended(1, status=1 if name == "filling" else 0), b"", b"", False, b"", False, False)


@pytest.mark.asyncio
@pytest.mark.parametrize(("patience", "again"), [(60.0, ["filling begins", "filling ends"]), (0.01, [])])
async def test_who_has_filled_the_machine_is_found_out_while_nothing_else_runs_and_not_waited_for_without_end(
    patience: float, again: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told([], asyncio.Event())
    looks = itertools.count()
    monkeypatch.setattr(cgroups, "killed_beside_us", lambda: next(looks))
    monkeypatch.setattr(pool_module, "_ALONE_SECONDS", patience)
    pool = Pool(PoolSettings(slots=2))
    for _ in range(pool.slots):
        pool._idle.put_nowait(told)
    held = asyncio.create_task(pool._ran(replace(JOB, stdin=b"held")))
    filling = asyncio.create_task(pool._ran(replace(JOB, stdin=b"filling")))
    await until(lambda: len(told.said) == 3)
    if not again:
        assert (await filling).machine_full
    told.let.set()
    await held
    ran = await filling
    assert told.said == ["held begins", "filling begins", "filling ends", "held ends", *again]
    assert (ran.memory_killed, ran.machine_full) == (bool(again), not again)
    assert pool._idle.qsize() == pool.slots


@pytest.mark.asyncio
async def test_a_slot_that_cannot_be_made_anew_is_missed_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the machine lacks something: a slot that nobody makes is lost for ever."""
    monkeypatch.setattr(pool_module, "_AGAIN_SECONDS", (0.0,))
    pool = Pool(PoolSettings(slots=1))
    worn = Told([], asyncio.Event(), broken=True)
    pool._all[0] = worn
    pool._idle.put_nowait(worn)
    works = []

    async def make(place: int) -> Mapping[str, bool]:
        works.append(pool.works)
        if len(works) < 3:
            raise ConfigurationError("crun is not installed") if len(works) == 1 else SlotError("no room")
        pool._idle.put_nowait(Told([], asyncio.Event()))
        return {}

    monkeypatch.setattr(pool, "_make", make)
    await pool._ran(JOB)
    async with asyncio.timeout(20):
        await pool._ran(JOB)
    assert works == [True, False, False]
    assert (pool.works, pool.slots_rebuilt) == (True, 1)


@pytest.mark.asyncio
async def test_who_comes_later_waits_for_who_is_to_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a busy pool would never be idle for it."""
    looks = itertools.count()
    monkeypatch.setattr(cgroups, "killed_beside_us", lambda: next(looks))
    pool = Pool(PoolSettings(slots=3))
    said: list[str] = []
    slots = [Told(said, asyncio.Event()) for _ in range(pool.slots)]
    for slot in slots:
        pool._idle.put_nowait(slot)
    runs = [asyncio.create_task(pool._ran(replace(JOB, stdin=name))) for name in (b"held", b"held too", b"filling")]
    await until(lambda: "filling ends" in said)
    for _ in range(10):
        await asyncio.sleep(0)
    runs.append(asyncio.create_task(pool._ran(replace(JOB, stdin=b"later"))))
    for slot in slots[:2]:
        for _ in range(10):
            await asyncio.sleep(0)
        slot.let.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*runs)
    assert said[-4:] == ["filling begins", "filling ends", "later begins", "later ends"]
    assert pool._idle.qsize() == pool.slots


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(12))
async def test_who_waits_to_run_alone_and_is_cancelled_leaves_all_slots(turns: int) -> None:
    told = Told([], asyncio.Event())
    pool = Pool(PoolSettings(slots=2))
    for _ in range(pool.slots):
        pool._idle.put_nowait(told)
    held = asyncio.create_task(pool._ran(replace(JOB, stdin=b"held")))
    await until(lambda: told.said == ["held begins"])

    async def alone() -> None:
        async with pool._alone():
            told.said.append("alone")

    waiting = asyncio.create_task(alone())
    for _ in range(5):
        await asyncio.sleep(0)
    told.let.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(held, waiting, return_exceptions=True)
    assert (pool._idle.qsize(), pool._one_alone.locked()) == (pool.slots, False)
