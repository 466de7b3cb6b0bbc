"""Worker processes for verifiers that can hang: at most so many judgements at a time, a dead worker is replaced."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rljob.reward.worker import frame
from rljob.wire.reward import ScoreItem

_GRACE = 60.0
"""Seconds on top of a judgement's limit for imports and references, which the worker does outside that limit."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
"""Environment variables that workers inherit."""


@dataclass
class WorkerProcess:
    """One `rljob.reward.worker`, started at the first use and again after its death."""

    environment: Mapping[str, str]
    process: asyncio.subprocess.Process | None = None

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        """The worker's answer; `lost` if it ends or hangs instead."""
        try:
            async with asyncio.timeout(seconds + _GRACE):
                process = await self._running()
                assert process.stdin is not None
                process.stdin.write(frame({"item": item.model_dump(mode="json"), "seconds": seconds}))
                await process.stdin.drain()
                return await _read(process)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.stop()
            return {"outcome": "lost", "reason": "the verifier's worker died"}
        except TimeoutError:
            await self.stop()
            return {"outcome": "lost", "reason": f"the verifier's worker did not answer within {seconds + _GRACE:g} s"}
        except asyncio.CancelledError:
            await self.stop()  # its next answer would be read as the answer to another question
            raise

    async def start(self) -> None:
        """Start ahead of the first question."""
        await self._running()

    async def stop(self) -> None:
        """Kill it and wait for its end."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def _running(self) -> asyncio.subprocess.Process:
        if self.process is not None and self.process.returncode is None:
            return self.process
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rljob.reward.worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=dict(self.environment),
        )
        await _read(self.process)
        return self.process


async def _read(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    size = int.from_bytes(await process.stdout.readexactly(4), "big")
    message: dict[str, Any] = json.loads(await process.stdout.readexactly(size))
    return message


@dataclass
class WorkerPool:
    """A fixed number of workers, each with one judgement at a time."""

    size: int
    environment: Mapping[str, str]
    workers: list[WorkerProcess] = field(init=False)
    _idle: asyncio.Queue[WorkerProcess] = field(init=False)

    def __post_init__(self) -> None:
        # Nothing secret reaches code that reads answers; RLJOB_* say which run a process belongs to.
        kept = {k: v for k, v in self.environment.items() if k in _KEPT or k.startswith("RLJOB_")}
        self.workers = [WorkerProcess(kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}) for _ in range(self.size)]
        self._idle = asyncio.Queue()
        for worker in self.workers:
            self._idle.put_nowait(worker)

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        """What a worker says of this item; waits for a free one."""
        worker = await self._idle.get()
        try:
            return await worker.ask(item, seconds)
        finally:
            self._idle.put_nowait(worker)

    async def start(self) -> None:
        """Start all workers."""
        await asyncio.gather(*(worker.start() for worker in self.workers))

    async def stop(self) -> None:
        """Kill all workers."""
        await asyncio.gather(*(worker.stop() for worker in self.workers))
