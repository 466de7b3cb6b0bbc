"""Slots with real tasks: nobody waits while one is free, and none is ever lost."""

import asyncio

import pytest

from rljob.sandbox.queue import Place
from rljob.sandbox.scheduler import Draining, Slots, TooLate

pytestmark = pytest.mark.asyncio


async def _hold(slots: Slots, place: Place, until: asyncio.Event, log: list[int]) -> None:
    async with slots.take(place):
        log.append(place.order)
        await until.wait()


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_waiting_tasks_get_slots_by_priority_and_order() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    places = [Place(1), Place(2), Place(3, priority=1)]
    tasks = [asyncio.create_task(_hold(slots, place, release, log)) for place in places]
    await _settle()
    assert (slots.free, slots.waiting, log) == (0, 2, [1])
    release.set()
    await asyncio.gather(*tasks)
    assert log == [1, 3, 2]
    assert (slots.free, slots.waiting) == (1, 0)


async def test_a_cancelled_waiter_gives_its_place_to_the_next() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(_hold(slots, Place(order), release, log)) for order in range(3)]
    await _settle()
    tasks[1].cancel()
    await _settle()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert log == [0, 2]
    assert slots.free == 1


async def test_a_waiter_cancelled_in_the_moment_it_gets_a_slot_passes_it_on() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    first = asyncio.create_task(_hold(slots, Place(1), release, log))
    second = asyncio.create_task(_hold(slots, Place(2), release, log))
    await _settle()
    first.cancel()
    await asyncio.sleep(0)  # the first has let go, the second was given the slot and has not run yet
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert slots.free == 1


async def test_a_slot_is_not_lost_if_its_holder_and_the_next_are_cancelled_at_once() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(_hold(slots, Place(order), release, log)) for order in range(2)]
    await _settle()
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
    assert (slots.free, slots.waiting) == (1, 0)


async def test_who_gives_up_while_the_slot_is_held_leaves_nothing() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    holder, *others = (asyncio.create_task(_hold(slots, Place(order), release, log)) for order in range(100))
    await _settle()
    for task in others:
        task.cancel()
    await _settle()
    assert (slots.waiting, len(slots._not_begun)) == (0, 0)
    release.set()
    await holder


async def test_a_deadline_ends_the_wait_even_if_no_slot_comes_free() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    holder = asyncio.create_task(_hold(slots, Place(1), release, log))
    await _settle()
    soon = asyncio.get_running_loop().time() + 0.01
    with pytest.raises(TooLate):
        async with slots.take(Place(2, deadline=soon)):
            raise AssertionError("got a slot")
    assert slots.waiting == 0
    release.set()
    await holder


async def test_a_deadline_that_has_passed_gets_no_slot_even_if_one_is_free() -> None:
    slots = Slots(1)
    async with slots.take(Place(0, deadline=asyncio.get_running_loop().time() + 3600)):
        assert slots.free == 0, "one that is to come does"
    with pytest.raises(TooLate):
        async with slots.take(Place(1, deadline=asyncio.get_running_loop().time() - 1)):
            raise AssertionError("got a slot")
    assert slots.free == 1


async def test_draining_gives_up_what_was_not_begun_and_finishes_the_rest() -> None:
    slots, release, log = Slots(1), asyncio.Event(), list[int]()
    holder = asyncio.create_task(_hold(slots, Place(1), release, log))
    await _settle()
    begun = asyncio.create_task(_hold(slots, Place(1, begun=True), release, log))
    fresh = asyncio.create_task(_hold(slots, Place(2), release, log))
    await _settle()
    slots.drain()
    release.set()
    results = await asyncio.gather(holder, begun, fresh, return_exceptions=True)
    assert list(results[:2]) == [None, None]
    assert isinstance(results[2], Draining)
    assert slots.free == 1
