"""Groups small durable writes: what arrives within a moment goes into one transaction."""

import asyncio
from collections.abc import Callable, Sequence

MOMENT = 0.02
"""Seconds that a write may wait for company."""


class Journal[T]:
    """Writes items through `write`, which makes all it is given durable or raises."""

    def __init__(self, write: Callable[[Sequence[T]], None]) -> None:
        self._write = write
        self._pending: list[T] = []
        self._writer: asyncio.Task[None] | None = None

    async def save(self, item: T) -> None:
        """Returns when the item is durable; raises what `write` raised."""
        self._pending.append(item)
        if self._writer is None:
            self._writer = asyncio.create_task(self._flush())
        await asyncio.shield(self._writer)

    async def _flush(self) -> None:
        await asyncio.sleep(MOMENT)
        items, self._pending, self._writer = self._pending, [], None
        self._write(items)
