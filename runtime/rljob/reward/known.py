"""Judgements that were already made. Many answers to one prompt are the same, and a hopeless one must cost its time limit once."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

from rljob.reward.verifier import Judgement

Said = Judgement | str
"""A judgement, or the reason why there is none."""


class Known:
    """The last judgements by what they depend on. Failures are not kept: they are tried again."""

    def __init__(self, size: int = 1 << 13) -> None:
        self._size = size
        self._made: OrderedDict[Hashable, Judgement] = OrderedDict()
        self._in_progress: dict[Hashable, asyncio.Task[Said]] = {}

    async def once(self, key: Hashable, make: Callable[[], Awaitable[Said]]) -> Said:
        """The judgement of this key, made by the first who asks; the others wait for it."""
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        task = self._in_progress.get(key)
        if task is None:
            task = self._in_progress[key] = asyncio.create_task(self._make(key, make))
        # One who goes away must not take the judgement from the others.
        return await asyncio.shield(task)

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[Said]]) -> Said:
        try:
            said = await make()
        finally:
            del self._in_progress[key]
        if isinstance(said, Judgement):
            self._made[key] = said
            if len(self._made) > self._size:
                self._made.popitem(last=False)
        return said
