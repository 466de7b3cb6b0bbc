"""Grows one answer to its end (or to its budget), slice by slice, and has it judged."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from rljob.master.decisions.partial import Limits, grown, next_request, piece_of
from rljob.master.engines import EnginePool
from rljob.master.scoring import Decode, Scorer
from rljob.master.timing import Clock
from rljob.master.trajectory import Trajectory, Weights
from rljob.rollout.client import SamplingParams
from rljob.wire.data import PromptRecord

Saved = Callable[[Trajectory, Trajectory], Awaitable[None]]
"""Makes news of an answer durable; is given the answer before and after."""


class Generation:
    """Answers with one policy."""

    def __init__(self, pool: EnginePool, scorer: Scorer, decode: Decode, weights: Weights, params: SamplingParams, clock: Clock) -> None:
        self._pool, self._scorer, self._decode = pool, scorer, decode
        self._weights, self._params, self._clock = weights, params, clock
        self.last_token = clock()
        """When the newest piece arrived: from then on only verdicts are waited for."""

    async def complete(self, key: str, prompt: PromptRecord, trajectory: Trajectory, limits: Limits, saved: Saved) -> Trajectory:
        """The answer as far as it gets with this policy: judged, or parked for the next iteration."""
        trajectory = await self._grow(prompt, trajectory, limits, saved)
        if trajectory.finish is None or trajectory.verdict is not None:
            return trajectory
        answer = self._decode(trajectory.tokens.tolist())
        verdict = await self._scorer.score(key, prompt, answer, trajectory.finish)
        judged = replace(trajectory, answer=answer, verdict=verdict)
        await saved(trajectory, judged)
        return judged

    async def _grow(self, prompt: PromptRecord, trajectory: Trajectory, limits: Limits, saved: Saved) -> Trajectory:
        engine: str | None = None
        while room := next_request(trajectory, self._weights.version, limits):
            tokens = [*prompt.tokens, *trajectory.tokens.tolist()]
            params = replace(self._params, max_tokens=room)
            answered = await self._pool.generate(tokens, params, engine, trajectory.length, prompt.id)
            if answered is None:
                break
            completion, engine = answered
            self.last_token = self._clock()
            piece = piece_of(self._weights, tuple(completion.tokens), tuple(completion.logprobs))
            longer = grown(trajectory, piece, completion.finish_reason == "stop", limits)
            await saved(trajectory, longer)
            trajectory = longer
        return trajectory
