"""Worker processes for verifiers that can hang: at most so many judgements at a time, a dead worker is replaced.

An answer that takes long must not keep the others waiting: what is not judged within a moment leaves the line and starts again in a lane
of its own, whose process gives way to all others. Not so where a verifier is the user's own (`Verifier.slow_lane`): its time is no attack.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rljob.api import ConfigurationError, InfrastructureError
from rljob.reward.worker import PATIENCE, frame, killable
from rljob.wire.reward import ScoreItem

_GRACE = 60.0
"""Seconds on top of a judgement's limit for imports and references, which the worker does outside that limit."""
MOMENT = 0.2
"""Processor seconds of a first try; honest answers take a tenth of that. The limit of a judgement counts anew in the slow lane."""
READY = 60.0
"""Seconds that a worker has to start; one takes less than a second, with a free core."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
"""Environment variables that workers inherit."""


@dataclass
class WorkerProcess:
    """One `rljob.reward.worker`, started at the first use and again after its death."""

    environment: Mapping[str, str]
    niceness: int = 0
    process: asyncio.subprocess.Process | None = None

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        """The worker's answer; `lost` if it ends or hangs instead."""
        try:
            async with asyncio.timeout(PATIENCE * seconds + _GRACE):
                process = await self._running()
                assert process.stdin is not None
                process.stdin.write(frame({"item": item.model_dump(mode="json"), "seconds": seconds}))
                await process.stdin.drain()
                return await read_message(process)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.stop()
            return {"outcome": "lost", "reason": "the verifier's worker died"}
        except TimeoutError:
            await self.stop()
            return {"outcome": "lost", "reason": f"the verifier's worker did not answer within {PATIENCE * seconds + _GRACE:g} s"}
        except asyncio.CancelledError:
            await self.stop()  # its next answer would be read as the answer to another question
            raise

    async def start(self) -> None:
        """Start ahead of the first question.

        Raises:
            ConfigurationError: it ends by itself instead, as it will every time; says why.
            InfrastructureError: somebody ended it, or it does not get ready.
        """
        try:
            async with asyncio.timeout(READY):
                await self._running()
        except TimeoutError:
            await self.stop()
            raise InfrastructureError(
                f"a worker of the reward service was not ready within {READY:.0f} s: the machine is too busy; lower spec.reward.workers"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._explain()

    async def _explain(self) -> NoReturn:
        """Why the process that was just started is gone: it is tried again, and what it says is read."""
        failed, self.process = self.process, None
        status = await failed.wait() if failed is not None else 1
        if status < 0:
            raise InfrastructureError(f"a worker of the reward service was ended by signal {-status} while it started (memory?)")
        again = await asyncio.create_subprocess_exec(
            *self._command(), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=dict(self.environment),
        )  # fmt: skip
        _, said = await again.communicate()
        last = (said.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        raise ConfigurationError(
            f"the workers of the reward service cannot start (exit status {status}): {last:.300}; its image or Python environment lacks "
            "what verifiers need: install rljob's requirements for `reward`, or use the image rljob/reward"
        )

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
            *self._command(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=dict(self.environment),
        )
        await read_message(self.process)
        return self.process

    def _command(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "rljob.reward.worker", str(os.getpid()), str(self.niceness))


async def read_message(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next frame of a process; raises IncompleteReadError if it ends instead."""
    assert process.stdout is not None
    size = int.from_bytes(await process.stdout.readexactly(4), "big")
    message: dict[str, Any] = json.loads(await process.stdout.readexactly(size))
    return message


@dataclass
class WorkerPool:
    """A fixed number of workers, each with one judgement at a time, and one more for slow ones, started when it is needed."""

    size: int
    environment: Mapping[str, str]
    workers: list[WorkerProcess] = field(init=False)
    slow: WorkerProcess = field(init=False)
    _idle: list[WorkerProcess] = field(init=False)
    _turns: asyncio.Semaphore = field(init=False)
    """First come, first served; a queue would let a newcomer overtake who was just woken."""
    _lane: asyncio.Lock = field(init=False)

    def __post_init__(self) -> None:
        # Nothing secret reaches code that reads answers; RLJOB_* say which run a process belongs to.
        kept = {k: v for k, v in self.environment.items() if k in _KEPT or k.startswith("RLJOB_")}
        kept |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.workers = [WorkerProcess(kept) for _ in range(self.size)]
        self.slow = WorkerProcess(kept, niceness=5)
        self._idle = list(self.workers)
        self._turns, self._lane = asyncio.Semaphore(self.size), asyncio.Lock()

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        """What a worker says of this item; waits for a free one. Not judged within the limit: `timeout`."""
        first = min(seconds, MOMENT) if killable(item.verifier).slow_lane else seconds
        async with self._turns:
            worker = self._idle.pop()
            try:
                said = await worker.ask(item, first)
            finally:
                self._idle.append(worker)
        if said["outcome"] not in ("timeout", "starved") or first == seconds:
            return said
        async with self._lane:
            return await self.slow.ask(item, seconds)

    async def start(self) -> None:
        """Start all workers."""
        await asyncio.gather(*(worker.start() for worker in self.workers))

    async def stop(self) -> None:
        """Kill all workers."""
        await asyncio.gather(*(worker.stop() for worker in (*self.workers, self.slow)))
