"""Reward models of this service: a process for each, asked in batches, replaced when it dies or hangs.

Answers that come while a batch is in the model make the next one, so that judging one by one costs no more than judging together.
"""

import asyncio
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError
from rljob.api.verifiers import RewardModelOptions
from rljob.reward.outside import NoAnswerError
from rljob.reward.pool import read_message
from rljob.reward.scorer import describe
from rljob.reward.worker import frame

LARGEST = 64
"""Answers in one request."""
LOADING = 600.0
"""Seconds that a model has to load."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
"""Environment variables that the process inherits, and those of the run: no key."""


@dataclass(frozen=True)
class Settings:
    """What makes two models the same process."""

    folder: Path
    device: str
    batch_tokens: int


@dataclass
class _Waiting:
    item: Mapping[str, Any]
    seconds: float
    result: asyncio.Future[float | None]


@dataclass
class ScorerProcess:
    """One `rljob.reward.scorer`, started at the first use and again after its death."""

    settings: Settings
    environment: Mapping[str, str]
    _process: asyncio.subprocess.Process | None = None
    _waiting: list[_Waiting] = field(default_factory=list)
    _pump: asyncio.Task[None] | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> None:
        """Have the model loaded.

        Raises:
            ConfigurationError: it cannot be; says why.
        """
        await self._running()

    async def score(self, item: Mapping[str, Any], seconds: float) -> float | None:
        """The score of `{"chat": ..., "answer": ...}`; None if it is longer than the model's context.

        Raises:
            NoAnswerError: the process died or took longer than `seconds`, also for this answer alone; or it gave no number.
        """
        one = _Waiting(item, seconds, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._work())
        return await one.result

    async def stop(self) -> None:
        """Kill it and wait for its end."""
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump
        for one in self._waiting:
            one.result.cancel()
        await self._kill()

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
            try:
                await self._settle(batch)
            except BaseException:
                for one in batch:
                    one.result.cancel()
                raise

    async def _settle(self, batch: Sequence[_Waiting]) -> None:
        """Answer all of a batch. What fails together is tried one by one, so that no answer takes another's score from it."""
        try:
            found = await self._ask(batch)
        except NoAnswerError as error:
            if len(batch) > 1:
                for one in batch:
                    await self._settle([one])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for one, score in zip(batch, found, strict=True):
            if not one.result.done():
                one.result.set_result(score)

    async def _ask(self, batch: Sequence[_Waiting]) -> list[float | None]:
        seconds = max(one.seconds for one in batch)
        try:
            process = await self._running()
            async with asyncio.timeout(seconds):
                assert process.stdin is not None
                process.stdin.write(frame({"items": [one.item for one in batch]}))
                await process.stdin.drain()
                found: list[float | None] = (await read_message(process))["scores"]
        except ConfigurationError as error:
            raise NoAnswerError(str(error)) from None
        except TimeoutError:
            await self._kill()
            raise NoAnswerError(f"{self.settings.folder} did not score {len(batch)} answers within {seconds:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._kill()
            raise NoAnswerError(f"the process of {self.settings.folder} ended while it scored {len(batch)} answers") from None
        except asyncio.CancelledError:
            await self._kill()  # its next reply would be read as the reply to another request
            raise
        if any(score is not None and not math.isfinite(score) for score in found):
            raise NoAnswerError(f"{self.settings.folder} gave a score that is no number")
        return found

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._turn:
            if self._process is not None and self._process.returncode is None:
                return self._process
            if problem := describe(self.settings.folder):
                raise ConfigurationError(f"option folder: {problem}")
            self._process = await self._started()
            return self._process

    async def _started(self) -> asyncio.subprocess.Process:
        s = self.settings
        kept = {k: v for k, v in self.environment.items() if k in _KEPT or k.startswith("RLJOB_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rljob.reward.scorer", str(s.folder), s.device, str(s.batch_tokens), str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            async with asyncio.timeout(LOADING):
                said = await read_message(process)
            problem = said.get("error")
        except asyncio.IncompleteReadError:
            problem = "its process ended while it loaded; see the lines above in this log"
        except TimeoutError:
            problem = f"it was not loaded within {LOADING:.0f} s"
        except asyncio.CancelledError:
            await _end(process)
            raise
        if problem is None:
            return process
        await _end(process)
        raise ConfigurationError(f"option folder: the reward model in {s.folder} cannot be used: {problem}")

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()


@dataclass
class Scorers:
    """All reward models of a service, each loaded once."""

    environment: Mapping[str, str]
    base: Path
    """What relative folders start from."""
    _processes: dict[Settings, ScorerProcess] = field(default_factory=dict)

    def of(self, options: RewardModelOptions) -> ScorerProcess:
        """The process of these options' model."""
        assert options.folder is not None
        key = Settings(self.base / options.folder, options.device, options.batch_tokens)
        if key not in self._processes:
            self._processes[key] = ScorerProcess(key, self.environment)
        return self._processes[key]

    async def score(self, options: RewardModelOptions, chat: Sequence[Mapping[str, str]], answer: str) -> float | None:
        """The score of an answer; as `ScorerProcess.score`."""
        return await self.of(options).score({"chat": list(chat), "answer": answer}, options.timeout_seconds)

    async def start(self, models: Sequence[RewardModelOptions]) -> None:
        """Have these models loaded.

        Raises:
            ConfigurationError: one of them cannot be; says why.
        """
        await asyncio.gather(*(self.of(options).start() for options in models if options.folder is not None))

    async def stop(self) -> None:
        """End every process."""
        await asyncio.gather(*(process.stop() for process in self._processes.values()))
