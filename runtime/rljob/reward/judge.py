"""From an answer to a verdict. Right and wrong are results; `failed` is ours and carries no reward."""

import asyncio
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

from rljob.reward.known import Known, Said
from rljob.reward.outside import NoAnswerError, Outside
from rljob.reward.registry import VERIFIERS, check_named, parse_options
from rljob.reward.verifier import AnyVerifier, CombinedVerifier, Judgement, RemoteVerifier, Verifier
from rljob.reward.verifiers.extraction import without_thoughts
from rljob.wire.reward import ScoreItem, ScoreResult

LONGEST_ANSWER = 1 << 20
"""Characters; a longer answer is wrong unseen."""
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that end a process for reasons of others, such as a machine without memory."""


class Workers(Protocol):
    """Where killable verifiers run."""

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        """`outcome` is judged, raised, timeout, starved, died or unready (rljob.reward.worker), or lost (rljob.reward.pool)."""
        ...


@dataclass(frozen=True)
class Judge:
    """Judges one item at a time; safe to call concurrently."""

    workers: Workers
    seconds: float
    """Hard limit of one judgement of a killable verifier, processor time."""
    verifiers: Mapping[str, AnyVerifier]
    outside: Outside | None = None
    """For verifiers that ask another service."""
    named: frozenset[str] = frozenset()
    """Code and addresses that the job names (`rljob.api.verifiers.named`); an item can use no others."""
    known: Known = field(default_factory=Known)

    async def score(self, item: ScoreItem) -> ScoreResult:
        """The verdict. Never raises because of the item."""
        started = time.perf_counter()
        said = await self._said(_encodable(item))
        seconds = time.perf_counter() - started
        if isinstance(said, Judgement) and not 0.0 <= said.earned <= 1.0:
            said = f"verifier {item.verifier} gave the reward {said.earned}; rewards are from 0 to 1"
        if isinstance(said, str):
            return ScoreResult(id=item.id, verdict="failed", reward=None, reason=said, seconds=seconds)
        verdict = "right" if said.right else "wrong"
        return ScoreResult(id=item.id, verdict=verdict, reward=said.earned, reason=said.reason, seconds=seconds)

    async def _said(self, item: ScoreItem) -> Said:
        verifier = self.verifiers.get(item.verifier)
        if verifier is None:
            near = get_close_matches(item.verifier, self.verifiers, n=1)
            return f"no verifier {item.verifier!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        try:
            options = parse_options(verifier, item.options)
            check_named(item.verifier, item.options, self.named)
            verifier.check_reference(item.reference, options)
        except ValueError as error:
            return f"verifier {item.verifier}: {error}"
        if not item.finished:
            return Judgement(False, "the answer was cut off")
        if len(item.answer) > LONGEST_ANSWER:
            return Judgement(False, "the answer is too long")
        if not isinstance(verifier, CombinedVerifier) and not verifier.sees_thoughts:
            answer = without_thoughts(item.answer)
            if answer is None:
                return Judgement(False, "the answer ends within its thoughts")
            item = item.model_copy(update={"answer": answer})
        try:
            return await self._judged(verifier, item, options)
        except Exception as error:  # noqa: BLE001 - a verifier's fault must reach the caller as `failed`, whatever its type
            return f"verifier {item.verifier} raised {type(error).__name__}: {error}"

    async def _judged(self, verifier: AnyVerifier, item: ScoreItem, options: Any) -> Said:
        if isinstance(verifier, CombinedVerifier):
            return await self._combined(verifier, item, options)
        if isinstance(verifier, RemoteVerifier):
            if self.outside is None:
                return f"verifier {item.verifier}: nothing outside can be reached from here"
            return await self._outside(verifier, item, options, self.outside)
        if not verifier.killable:
            return verifier.judge(item, options)
        if (quick := verifier.quick(item, options)) is not None:
            return quick
        same = verifier.same(item, options)
        if same is None:
            return await self._killable(verifier, item)
        return await self.known.once((item.verifier, same), lambda: self._killable(verifier, item))

    async def _outside(self, verifier: RemoteVerifier, item: ScoreItem, options: Any, outside: Outside) -> Said:
        same = verifier.same(item, options)
        if same is None:
            return await self._answered(verifier, item, options, outside)
        return await self.known.once((item.verifier, same), lambda: self._answered(verifier, item, options, outside))

    async def _answered(self, verifier: RemoteVerifier, item: ScoreItem, options: Any, outside: Outside) -> Said:
        try:
            return await verifier.ask(item, options, outside)
        except NoAnswerError as error:  # several may wait for this; none of them gets a judgement
            if not error.refused or verifier.probe is None:
                return f"verifier {item.verifier}: {error}"
        try:
            await verifier.ask(item.model_copy(update={"answer": verifier.probe}), options, outside)
        except NoAnswerError as error:
            return f"verifier {item.verifier}: {error}"
        try:  # some services say "refused" when they mean "later"
            return await verifier.ask(item, options, outside)
        except NoAnswerError as error:
            return Judgement(False, f"cannot be judged: {error}", 0.0) if error.refused else f"verifier {item.verifier}: {error}"

    async def _combined(self, verifier: CombinedVerifier, item: ScoreItem, options: Any) -> Said:
        terms = verifier.terms(options)
        items = [item.model_copy(update={"verifier": term.verifier, "options": term.options}) for term in terms]
        found = await asyncio.gather(*(self._said(one) for one in items))
        if failures := [said for said in found if isinstance(said, str)]:
            return failures[0]
        return verifier.combine(options, [said for said in found if isinstance(said, Judgement)])

    async def _killable(self, verifier: Verifier, item: ScoreItem) -> Said:
        said = await self.workers.ask(item, self.seconds)
        if said["outcome"] in ("died", "lost"):
            said = await self.workers.ask(item, self.seconds)
        if said["outcome"] == "judged":
            return Judgement(said["right"], said["reason"], said.get("reward"))
        if said["outcome"] in ("unready", "lost", "starved") or (said["outcome"] == "died" and said["signal"] in _FROM_OUTSIDE):
            return f"verifier {item.verifier}: {said['reason']}"
        probe = verifier.probe(item)
        if probe is None:
            return f"verifier {item.verifier}: {said['reason']}"
        control = await self.workers.ask(item.model_copy(update={"answer": probe}), self.seconds)
        if control["outcome"] == "judged" and (control["right"] or not probe):
            return Judgement(False, f"cannot be judged: {said['reason']}")
        return f"verifier {item.verifier} judges not even the reference: {control['reason'] or said['reason']}"


def _encodable(item: ScoreItem) -> ScoreItem:
    """Half of a surrogate pair is no character that could be passed on."""
    try:
        item.answer.encode()
    except UnicodeEncodeError:
        return item.model_copy(update={"answer": item.answer.encode(errors="replace").decode()})
    return item


def standard_judge(workers: Workers, seconds: float, outside: Outside | None = None, named: frozenset[str] = frozenset()) -> Judge:
    """A judge with every verifier of the registry."""
    return Judge(workers, seconds, VERIFIERS, outside, named)
