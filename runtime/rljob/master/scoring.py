"""Has answers judged, many in one call, while others are still being generated. Failures are tried again; they never become a reward."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import httpx
from pydantic import ValidationError

from rljob.api import InfrastructureError
from rljob.master.decisions.retry import delay
from rljob.master.timing import Clock
from rljob.master.trajectory import Finish, Verdict
from rljob.master.watch import Watch
from rljob.wire.data import PromptRecord
from rljob.wire.reward import ScoreItem, ScoreRequest, ScoreResponse, ScoreResult

BATCH = 64
"""Answers in one call at most."""
CALLS = 2
"""Calls at a time, per reward pod."""
FAILURE_EVERY = 60.0
"""However many answers cannot be judged, the job counts one failure in so many seconds: they all wait for the same judge, who is away."""


class RewardService(Protocol):
    """Judges answers.

    Raises:
        InfrastructureError: no answer; try again.
    """

    async def score(self, request: ScoreRequest) -> ScoreResponse: ...


class HttpRewardService:
    """The reward service of the job."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url, self._http = f"{url.rstrip('/')}/v1/score", http

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One call."""
        try:
            answer = await self._http.post(
                self._url, content=request.model_dump_json(), headers={"content-type": "application/json"}, timeout=300
            )
        except httpx.HTTPError as error:
            raise InfrastructureError(f"reward service at {self._url}: {type(error).__name__} {error}") from error
        if answer.status_code != 200:  # 422 as well: a pod of another release, which answers until an upgrade has replaced it
            raise InfrastructureError(f"reward service at {self._url} answered {answer.status_code}: {answer.text[:200]}")
        try:
            return ScoreResponse.model_validate_json(answer.content)
        except ValidationError as error:
            raise InfrastructureError(f"reward service at {self._url} sent what is no ScoreResponse: {error}") from error


class Waiting:
    """One answer that waits for its verdict."""

    def __init__(self, item: ScoreItem) -> None:
        self.item = item
        self.result: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.failures = 0


class Scorer:
    """Collects answers into calls."""

    def __init__(
        self, service: RewardService, watch: Watch, clock: Clock, replicas: int, give_up_seconds: float, backoff_limit: int
    ) -> None:
        """`give_up_seconds`: an unreachable service counts as a failure of the job each time it has been away for so long."""
        self._service, self._watch, self._clock = service, watch, clock
        self._calls = CALLS * replicas
        self._give_up_seconds, self._backoff_limit = give_up_seconds, backoff_limit
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._away_since: float | None = None
        self._away = 0
        """Calls in a row that the service did not answer."""
        self._counted: float | None = None
        """When the newest failure of a verifier was counted."""

    async def score(self, key: str, prompt: PromptRecord, answer: str, finish: Finish) -> Verdict:
        """The verdict of one finished answer; waits as long as it takes. `key` is unique among answers in progress."""
        waiting = Waiting(
            ScoreItem(
                id=key,
                verifier=prompt.verifier,
                options=prompt.options,
                prompt=prompt.question,
                answer=answer,
                reference=prompt.reference,
                finished=finish == "stop",
            )
        )
        self._queue.put_nowait(waiting)
        return await waiting.result

    async def run(self) -> None:
        """Make the calls, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._calls):
                tasks.create_task(self._call_for_ever())

    async def _call_for_ever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [w for w in batch if not w.result.done()]
            if batch:
                await self._call(batch)

    async def _call(self, batch: list[Waiting]) -> None:
        try:
            response = await self._service.score(ScoreRequest(items=tuple(w.item for w in batch)))
        except InfrastructureError as error:
            for waiting in batch:
                self._queue.put_nowait(waiting)
            await asyncio.sleep(self._unreachable(str(error)))
            return
        self._away, self._away_since = 0, None
        results = {result.id: result for result in response.results}
        for waiting in batch:
            self._settle(waiting, results.get(waiting.item.id))

    def _settle(self, waiting: Waiting, result: ScoreResult | None) -> None:
        """Deliver a verdict, or queue the answer again after a while."""
        if waiting.result.done():
            return
        if result is not None and result.verdict != "failed" and result.reward is not None:
            waiting.result.set_result(Verdict(result.verdict == "right", result.reward, result.reason))
            return
        waiting.failures += 1
        reason = "no result" if result is None else result.reason or "no reason given"
        now = self._clock()
        if waiting.failures > self._backoff_limit and (self._counted is None or now - self._counted >= FAILURE_EVERY):
            self._counted = now
            message = f"verifier {waiting.item.verifier} failed {waiting.failures} times on one answer ({waiting.item.id}): {reason}"
            self._watch.failed("reward", "reward", "VerifierFailed", message)
        asyncio.get_running_loop().call_later(delay(waiting.failures), self._queue.put_nowait, waiting)

    def _unreachable(self, message: str) -> float:
        """Note that a call got no answer; how long to wait."""
        now = self._clock()
        self._away += 1
        self._away_since = now if self._away_since is None else self._away_since
        if now - self._away_since > self._give_up_seconds:
            self._away_since = now
            self._watch.failed("reward", "reward", "RewardUnreachable", f"{message}; for {self._give_up_seconds:.0f} s now")
        return delay(self._away)


Decode = Callable[[list[int]], str]
"""Token ids to text, special tokens left out."""
