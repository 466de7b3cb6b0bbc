"""Slots handed to whoever is next: the queue with a clock and tasks around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rljob.sandbox.queue import Place, Queue


class TooLate(Exception):
    """A request's deadline passed before it had a slot."""


class Draining(Exception):
    """The service is being stopped and begins nothing new."""


class Slots:
    """A number of slots. A free one goes to the first of the queue at once, so that nobody waits while one is free."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._queue: Queue[asyncio.Future[None]] = Queue()
        self._not_begun: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._queue)

    def drain(self) -> None:
        """Give up the requests that wait and were not begun: somebody else can serve them now."""
        for ticket in tuple(self._not_begun):
            self._fail(ticket, Draining())

    @asynccontextmanager
    async def take(self, place: Place) -> AsyncIterator[None]:
        """Hold a slot.

        Raises:
            TooLate: the place's deadline passed first.
            Draining: the request was not begun and shall not be.
        """
        await self._acquire(place)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, place: Place) -> None:
        loop = asyncio.get_running_loop()
        if place.deadline is not None and loop.time() > place.deadline:
            raise TooLate
        if self.free:
            self.free -= 1
            return
        ticket: asyncio.Future[None] = loop.create_future()
        self._queue.push(ticket, place)
        if not place.begun:
            self._not_begun.add(ticket)
        timer = None if place.deadline is None else loop.call_at(place.deadline, self._fail, ticket, TooLate())
        try:
            await ticket
        except asyncio.CancelledError:
            self._queue.discard(ticket)
            if not ticket.cancelled():  # given a slot in the moment in which it was cancelled
                self._release()
            raise
        finally:
            self._not_begun.discard(ticket)
            if timer is not None:
                timer.cancel()

    def _fail(self, ticket: asyncio.Future[None], error: Exception) -> None:
        self._queue.discard(ticket)
        if not ticket.done():
            ticket.set_exception(error)

    def _release(self) -> None:
        while True:
            ticket, late = self._queue.pop(asyncio.get_running_loop().time())
            for other in late:
                self._fail(other, TooLate())
            if ticket is None:
                self.free += 1
                return
            if not ticket.done():
                ticket.set_result(None)
                return
