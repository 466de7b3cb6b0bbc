"""From an answer to a verdict. Right and wrong are results; `failed` is ours and carries no reward."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

from rljob.reward.registry import VERIFIERS, parse_options
from rljob.reward.verifier import Judgement, Verifier
from rljob.wire.reward import ScoreItem, ScoreResult

LONGEST_ANSWER = 1 << 20
"""Characters; a longer answer is wrong unseen."""
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that end a process for reasons of others, such as a machine without memory."""


class Workers(Protocol):
    """Where killable verifiers run."""

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        """`outcome` is judged, raised, timeout, died or unready (rljob.reward.worker), or lost (rljob.reward.pool)."""
        ...


@dataclass(frozen=True)
class Judge:
    """Judges one item at a time; safe to call concurrently."""

    workers: Workers
    seconds: float
    """Hard limit of one judgement of a killable verifier."""
    verifiers: Mapping[str, Verifier]

    async def score(self, item: ScoreItem) -> ScoreResult:
        """The verdict. Never raises because of the item."""
        started = time.perf_counter()
        verdict = await self._verdict(item)
        seconds = time.perf_counter() - started
        if isinstance(verdict, str):
            return ScoreResult(id=item.id, verdict="failed", reward=None, reason=verdict, seconds=seconds)
        return ScoreResult(
            id=item.id,
            verdict="right" if verdict.right else "wrong",
            reward=1.0 if verdict.right else 0.0,
            reason=verdict.reason,
            seconds=seconds,
        )

    async def _verdict(self, item: ScoreItem) -> Judgement | str:
        """A judgement, or the reason why there is none."""
        verifier = self.verifiers.get(item.verifier)
        if verifier is None:
            near = get_close_matches(item.verifier, self.verifiers, n=1)
            return f"no verifier {item.verifier!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        try:
            options = parse_options(verifier, item.options)
            verifier.check_reference(item.reference, options)
        except ValueError as error:
            return f"verifier {item.verifier}: {error}"
        if not item.finished:
            return Judgement(False, "the answer was cut off")
        if len(item.answer) > LONGEST_ANSWER:
            return Judgement(False, "the answer is too long")
        if verifier.killable:
            return await self._killable(verifier, item)
        try:
            return verifier.judge(item, options)
        except Exception as error:  # noqa: BLE001 - a verifier's fault must reach the caller as `failed`, whatever its type
            return f"verifier {item.verifier} raised {type(error).__name__}: {error}"

    async def _killable(self, verifier: Verifier, item: ScoreItem) -> Judgement | str:
        said = await self.workers.ask(item, self.seconds)
        if said["outcome"] in ("died", "lost"):
            said = await self.workers.ask(item, self.seconds)
        if said["outcome"] == "judged":
            return Judgement(said["right"], said["reason"])
        if said["outcome"] in ("unready", "lost") or (said["outcome"] == "died" and said["signal"] in _FROM_OUTSIDE):
            return f"verifier {item.verifier}: {said['reason']}"
        probe = verifier.probe(item)
        if probe is None:
            return f"verifier {item.verifier}: {said['reason']}"
        control = await self.workers.ask(item.model_copy(update={"answer": probe}), self.seconds)
        if control["outcome"] == "judged" and control["right"]:
            return Judgement(False, f"cannot be judged: {said['reason']}")
        return f"verifier {item.verifier} judges not even the reference: {control['reason'] or said['reason']}"


def standard_judge(workers: Workers, seconds: float) -> Judge:
    """A judge with every verifier of the registry."""
    return Judge(workers, seconds, VERIFIERS)
