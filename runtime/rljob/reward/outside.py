"""Calls to other services: time limit, back-off with jitter, and a failure that never turns into a reward."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from rljob.api import InfrastructureError
from rljob.api.verifiers import RewardModelOptions

_log = logging.getLogger(__name__)

LONGEST_REPLY = 1 << 20
"""Bytes; a longer one is no answer to our question."""
_FIRST, _LONGEST = 0.25, 8.0
"""Seconds of the first and of the longest wait."""
_PASSING = (408, 425, 429)
"""Of the 4xx, those that say: later."""
_UNFIT = (400, 413, 422)
"""Of the 4xx, those that find fault with the question. The others speak of keys, addresses and names."""


class NoAnswerError(InfrastructureError):
    """A service did not judge: unreachable, overloaded, or it talks nonsense. There is no reward."""

    def __init__(self, message: str, refused: bool = False) -> None:
        """`refused`: it answers, and does not take this question; it may well take another one."""
        super().__init__(message)
        self.refused = refused


class RewardModels(Protocol):
    """Where reward models are (rljob.reward.scorers)."""

    async def score(self, options: RewardModelOptions, chat: Sequence[Mapping[str, str]], answer: str) -> float | None:
        """The score of an answer, None if it is longer than the model's context. Raises NoAnswerError if there is none."""
        ...


@dataclass(frozen=True)
class Outside:
    """What remote verifiers reach the world by."""

    http: httpx.AsyncClient
    sandbox: str | None = None
    """Base address of the code sandbox, if the job has one."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: random.Random = field(default_factory=random.Random)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where API keys are looked up that the job names by a variable."""
    tokens: Counter[str] = field(default_factory=Counter)
    """What language models said they read (`prompt`) and wrote (`completion`) for us so far, and how often they were asked (`calls`)."""

    scorers: RewardModels | None = None
    """Reward models in folders."""
    silent: set[str] = field(default_factory=set)
    """Addresses that did not answer when they were last asked. One line of the log says when that begins, and one when it ends."""

    def count(self, read: int, written: int) -> None:
        """Note one call of a language model."""
        self.tokens.update({"calls": 1, "prompt": read, "completion": written})

    async def ask[T](self, url: str, body: str, read: Callable[[bytes], T], seconds: float, attempts: int, key: str | None = None) -> T:
        """POST a JSON text and read the answer.

        Busy (429, 503), broken (5xx) and unreachable services, and replies that `read` refuses by ValueError, are tried again after a
        time that doubles and of which a random share is waited: many answers fail at once, and must not come back at once.

        Args:
            seconds: of one attempt.
            key: sent as bearer token. It stands in no message.

        Raises:
            NoAnswerError: none within so many attempts, or one that refuses the question for good (another 4xx).
        """
        problem = ""
        for attempt in range(1, attempts + 1):
            wait, refused, status = min(_LONGEST, _FIRST * 2 ** (attempt - 1)), False, 0
            try:
                async with asyncio.timeout(seconds):
                    status, told, reply = await self._once(url, body, key)
                if status == 200:
                    found = read(reply)
                    self._spoke(url)
                    return found
                problem = f"answered {status}: {reply[:200].decode(errors='replace')}"
                wait, refused = max(wait, told), 400 <= status < 500 and status not in _PASSING
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                problem = f"does not answer: {type(error).__name__} {error}".rstrip()
            except ValueError as error:
                problem = f"sent {error}"
            if key:
                problem = problem.replace(key, "<key>")
            if refused:
                break
            if attempt < attempts:
                await self.sleep(wait * self.chance.uniform(0.5, 1.0))
        else:
            self._kept_silent(url, problem)
        raise NoAnswerError(f"{url} {problem} (attempt {attempt} of {attempts})", status in _UNFIT)

    def _kept_silent(self, url: str, problem: str) -> None:
        if url not in self.silent:
            self.silent.add(url)
            _log.warning("%s %s; what it is to judge waits and is asked again", url, problem)

    def _spoke(self, url: str) -> None:
        if url in self.silent:
            self.silent.remove(url)
            _log.warning("%s answers again", url)

    async def _once(self, url: str, body: str, key: str | None) -> tuple[int, float, bytes]:
        """Status, seconds the service wants us to wait, and reply."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        async with self.http.stream("POST", url, content=body.encode(), headers=headers, follow_redirects=False) as response:
            reply = b""
            async for part in response.aiter_bytes():
                reply += part
                if len(reply) > LONGEST_REPLY:
                    raise httpx.DecodingError(f"more than {LONGEST_REPLY} bytes")
            told = response.headers.get("retry-after", "0")
            return response.status_code, min(_LONGEST, float(told)) if told.isdecimal() else 0.0, reply
