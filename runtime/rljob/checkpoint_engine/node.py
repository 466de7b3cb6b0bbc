"""The node agent: look, decide, act, again and again; beside it, talk to the master."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import count

from rljob.api import RLJobError
from rljob.checkpoint_engine import outcome
from rljob.checkpoint_engine.act import Actor, Parts, Plan
from rljob.checkpoint_engine.decide import decide, routable
from rljob.checkpoint_engine.observe import Observer
from rljob.checkpoint_engine.outcome import IdentityTaken, MasterAway
from rljob.checkpoint_engine.state import NAMES, Finish, Idle, Known, Observed, Rollout, Step
from rljob.wire.node import EngineReport, NodeDesired, NodeReport, Progress, TrainerReport
from rljob.wire.pieces import HeldWeights

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks at the world while there is nothing to do."""
LONG_POLL = 20.0
FAREWELL, FAREWELLS = 10.0, 3
"""Seconds that the master gets to hear that this node leaves, and how often it is tried when it cannot be reached."""


class Node:
    """Converges one node to what the master wants."""

    def __init__(self, plan: Plan, parts: Parts, incarnation: str, clock: Callable[[], float]) -> None:
        """`clock` tells Unix time."""
        self._plan, self._parts = plan, parts
        self._incarnation, self._clock = incarnation, clock
        self._actor = Actor(plan, parts, self._progressed)
        self._observer = Observer(plan.site, parts, clock)
        self._known = Known()
        self._seen: Observed | None = None
        self._desired: NodeDesired | None = None
        self._goal: object = None
        self._step: Step = Idle("starting")
        self._since = clock()
        self._progress: Progress | None = None
        self._reported: NodeReport | None = None
        self._wanted = asyncio.Event()
        """Set when `desired` has changed."""
        self._told = asyncio.Event()
        """Set when the report has changed."""
        self._ending = asyncio.Event()
        self._leaving = False
        self._heard = asyncio.Event()
        """Set when the master has answered a report that says that the engine is leaving, or cannot be told."""

    def end(self) -> None:
        """Leave as if the master had said `stop`."""
        self._ending.set()
        self._wanted.set()

    async def run(self) -> None:
        """Until the job is over.

        Raises:
            RLJobError: what was started could not be ended.
        """
        await _unless(self._talk(), self._converge())

    async def _converge(self) -> None:
        while not isinstance(step := await self._look_and_decide(), Finish):
            if isinstance(step, (Rollout, Idle)):
                await self._rest(step)
            else:
                await self._perform(step)
        await self._leave()
        await self._actor.finish()
        log.info("the job is over: sidecars are stopped, shared memory is empty")

    async def _leave(self) -> None:
        """If the job goes on without this node: first nobody sends it anything more, then it hands back what its engine is writing."""
        if not self._serves() or (self._desired is not None and self._desired.phase == "stop"):
            return
        self._leaving = True
        self._tell()
        try:
            async with asyncio.timeout(FAREWELL):
                await self._heard.wait()
        except TimeoutError:
            log.warning("the master does not answer; its requests end with the engine")
            return
        await self._actor.hand_back()

    async def _look_and_decide(self) -> Step:
        """One look at the world, and the step that follows from it."""
        # Cleared first: what changes from here on is looked at next time.
        self._wanted.clear()
        desired = self._desired
        if _goal(desired) != self._goal:
            self._goal, self._known = _goal(desired), outcome.goal_changed(self._known)
        seen = await _unless(self._ending.wait(), self._observer.look(self._known))
        if seen is None or self._ending.is_set():
            return Finish()  # by what was seen last, which the master goes by: an engine that has much to do answers late
        before = self._known
        self._known = outcome.noticed(before, seen, self._clock())
        if self._known.failures > before.failures:
            self._log_failure()
        self._seen = replace(seen, known=self._known)
        step = decide(desired, self._seen, self._clock())
        if NAMES[type(step)] != NAMES[type(self._step)]:
            self._since = self._clock()
        self._step = step
        self._tell()
        return step

    async def _perform(self, step: Step) -> None:
        seen = self._seen
        if seen is None:
            raise ValueError("a step follows from a look")
        began = asyncio.get_running_loop().time()
        try:
            self._known = await _unless(self._over(), self._actor.act(step, seen)) or self._known
        except RLJobError as error:
            after = await self._observer.look(self._known)
            self._known = outcome.failed(self._known, step, error, after, self._clock())
            if isinstance(error, MasterAway):
                log.warning("%s", error)
            else:
                self._log_failure()
        else:
            seconds = asyncio.get_running_loop().time() - began
            self._known = outcome.succeeded(self._known, step, seconds)
            log.info("%s: %.2f s (%s)", NAMES[type(step)], seconds, _subject(step))
        self._progress = None
        self._tell()

    async def _over(self) -> None:
        """Wait until this node, or the job, has to end."""
        while not (self._ending.is_set() or (self._desired is not None and self._desired.phase == "stop")):
            await self._wanted.wait()
            self._wanted.clear()

    async def _rest(self, step: Rollout | Idle) -> None:
        """Until the master wants something else, or it is time to look again."""
        pause = LOOK
        if isinstance(step, Idle) and step.until is not None:
            pause = min(pause, max(0.0, step.until - self._clock()))
        try:
            async with asyncio.timeout(pause):
                await self._wanted.wait()
        except TimeoutError:
            return

    # --- the master ------------------------------------------------------------------------------------------------------------------

    async def _talk(self) -> None:
        """Report whatever changes, and hear what is wanted; a master that is away is asked again."""
        away = False
        untold = 0
        for number in count(1):
            self._told.clear()
            self._reported = report = self.report()
            try:
                desired = await self._sync(report.model_copy(update={"number": number}))
            except RLJobError as error:
                if not away:
                    log.warning("%s; asking again every second", error)
                away = True
                untold += self._leaving
                if untold == FAREWELLS:
                    self._heard.set()
                if isinstance(error, IdentityTaken):
                    self._desired = None  # another does what was wanted of this one
                await asyncio.sleep(outcome.MASTER_PAUSE)
                continue
            away = False
            if desired is not None:
                self._hear(desired)

    async def _sync(self, report: NodeReport) -> NodeDesired | None:
        """One long poll, given up as soon as there is something new to report."""
        urgent = report.engine is not None and report.engine.leaving and not self._heard.is_set()
        call = asyncio.create_task(self._parts.master.sync(report, 0 if urgent else LONG_POLL))
        news = asyncio.create_task(self._told.wait())
        try:
            await asyncio.wait([call, news], return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                # The report itself arrives in any case; the answer, if any, is repeated by the next poll.
                await asyncio.wait([call], timeout=0.02)
            if call.done() and urgent:
                call.result()
                self._heard.set()
            return call.result() if call.done() else None
        finally:
            call.cancel()
            news.cancel()

    def _hear(self, desired: NodeDesired) -> None:
        if desired == self._desired:
            return
        if _goal(desired) != _goal(self._desired):
            log.info("wanted: %s, version %d%s", desired.phase, desired.version, f", make {desired.task.version}" if desired.task else "")
        self._desired = desired
        self._wanted.set()
        self._told.set()

    def report(self) -> NodeReport:
        """What is, now."""
        seen, known = self._seen, self._known
        serving = self._serves()
        over = known.failure is not None and known.failure.stage == "rollout" and serving
        return NodeReport(
            node=self._plan.node,
            kind=self._plan.site.kind,
            incarnation=self._incarnation,
            seen_revision=self._desired.revision if self._desired is not None else 0,
            step=NAMES[type(self._step)],
            step_started=self._since,
            progress=self._progress,
            trainer=_trainer_report(seen),
            engine=_engine_report(seen, self._plan.engine_url, serving, self._leaving),
            weights_url=self._plan.weights_url,
            weights=_held(seen, known, self._plan.weights_url),
            trained=known.trained,
            checkpointed=known.checkpointed,
            timings=dict(known.timings),
            switch_policy=known.switch_policy,
            switch_reason=known.switch_reason,
            failure=None if over else known.failure,
            failures=known.failures,
        )

    def _serves(self) -> bool:
        """Whether the master may send this node's engine requests, by all that is known."""
        return self._seen is not None and routable(self._desired, replace(self._seen, known=self._known))

    def _tell(self) -> None:
        if self.report() != self._reported:
            self._told.set()

    def _progressed(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tell()

    def _log_failure(self) -> None:
        failure = self._known.failure
        if failure is None:
            return
        lasting = "; nothing is tried until the job changes" if failure.configuration else ""
        log.error("%s failed (%d in a row): %s%s", failure.stage, self._known.failures, failure.message, lasting)


async def _unless[T](over: Coroutine[None, None, object], work: Coroutine[None, None, T]) -> T | None:
    """The work's result, or None if `over` came first; what ends either with an error is raised."""
    task, end = asyncio.create_task(work), asyncio.create_task(over)
    try:
        await asyncio.wait([task, end], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        end.result()
        return None
    finally:
        for each in (task, end):
            each.cancel()
        await asyncio.wait([task, end])


def _goal(desired: NodeDesired | None) -> object:
    return None if desired is None else (desired.phase, desired.version, desired.task, desired.attempt)


def _trainer_report(seen: Observed | None) -> TrainerReport | None:
    if seen is None or seen.trainer.status is None:
        return None
    status = seen.trainer.status
    return TrainerReport(incarnation=status.incarnation, version=status.version, resident=status.resident)


def _engine_report(seen: Observed | None, url: str, serving: bool, leaving: bool) -> EngineReport | None:
    if seen is None or seen.engine.state is None or seen.engine.incarnation is None:
        return None
    state = seen.engine.state
    if state.version is None or state.checksum is None:
        return None
    return EngineReport(
        url=url,
        incarnation=seen.engine.incarnation,
        version=state.version,
        checksum=state.checksum,
        routable=serving,
        leaving=serving and leaving,
    )


def _held(seen: Observed | None, known: Known, url: str) -> HeldWeights | None:
    """What other nodes can have from this one."""
    manifest = known.manifest
    if not url or seen is None or manifest is None or known.arena_refused or seen.arena != manifest.version:
        return None
    return HeldWeights(version=manifest.version, checksum=manifest.checksum, url=url)


def _subject(step: Step) -> str:
    """What a step was about, for the log."""
    fields = vars(step)
    task = fields.get("task")
    if task is not None:
        return f"version {task.version}"
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None) or "done"
