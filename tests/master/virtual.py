"""An event loop whose time jumps: waiting costs nothing, and a run takes the same course every time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting for a timer, moves time on to it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        if not ready and timeout:
            self.now += timeout
        return ready


class _Inline(ThreadPoolExecutor):
    """Runs work at once: a thread would let time run away."""

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 0 and moves only when all wait."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self.set_default_executor(_Inline())

    def time(self) -> float:
        return self._jumping.now


START = 1_800_000_000.0
"""Unix time at which every virtual run begins."""


def clock() -> float:
    """Unix time of the running virtual loop."""
    return START + asyncio.get_running_loop().time()


def run[T](work: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


async def until(condition: Callable[[], bool]) -> None:
    """Look again every hundredth of a (virtual) second.

    Raises:
        TimeoutError: it did not come true within a thousand seconds.
    """
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("the condition never held")
