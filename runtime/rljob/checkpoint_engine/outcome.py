"""What the agent knows after a step, a failure or a look at the world. Pure."""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from rljob.api import ConfigurationError, InfrastructureError, RLJobError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.checkpoint_engine.state import (
    ENGINE_STEPS,
    NAMES,
    TRAINER_STEPS,
    Attest,
    Checkpoint,
    EndTrainer,
    EngineSeen,
    Gate,
    Known,
    Load,
    LoadEngine,
    Observed,
    Offload,
    SleepEngine,
    Step,
    StopEngine,
    TrainerSeen,
)
from rljob.wire.base import Failure

LONGEST_PAUSE = 30.0
MASTER_PAUSE = 1.0


class MasterAway(InfrastructureError):
    """The master does not answer: nobody's failure here, it is waited for."""


class IdentityTaken(InfrastructureError):
    """The master listens to another agent that has this node's name."""


class WrongState(InfrastructureError):
    """The trainer was asked for something that its state does not allow: look again before judging it."""


class GateFailed(InfrastructureError):
    """There is not enough memory for the next owner, or the last one keeps more than it used to."""


class AttestationFailed(InfrastructureError):
    """An engine does not hold the weights it should."""


class ArenaHeld(InfrastructureError):
    """An engine reads the memory in which the next version is put together."""


class FillFailed(InfrastructureError):
    """What other nodes hold of a version did not come. Nothing of it counts; the next try goes on with what is here."""


class ChecksumMismatch(InfrastructureError):
    """Exported weights are not those that the job knows under this version."""


class DeadlineExceeded(InfrastructureError):
    """A step took too long, or went on without progress."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: none after the first, then 1, 2, 4 … 30."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE, 2.0 ** (failures - 2))


def succeeded(known: Known, step: Step, seconds: float) -> Known:
    """After a step that worked (its own results are already in `known`)."""
    name = NAMES[type(step)]
    known = replace(known, timings=_with(known.timings, name, known.timings.get(name, 0.0) + seconds))
    if known.failure is not None and known.failure.stage == name:
        known = replace(known, failure=None, failures=0)
    if isinstance(step, (Offload, EndTrainer, StopEngine, SleepEngine)):
        known = replace(known, gate=None)
    return known


def failed(known: Known, step: Step, error: RLJobError, seen: Observed, now: float) -> Known:
    """After a step that did not work: who has to be ended, and when to try again. `seen` is the world after it."""
    if isinstance(error, MasterAway):
        return replace(known, retry_at=now + MASTER_PAUSE)
    again = known.failure is not None and known.failure.stage == NAMES[type(step)]
    # The one we knew before the step, and the one that the step may have started.
    trainer, engine = (known.trainer, seen.trainer.incarnation), (known.engine, seen.engine.incarnation)
    known = replace(known, gate=None)
    if isinstance(step, TRAINER_STEPS) and (again or not isinstance(error, (WrongState, FillFailed))):
        known = _unfit(known, *trainer)
    if isinstance(step, TRAINER_STEPS):
        # Ask again: if another node has got the version meanwhile, its trainer will never export it together with this one's.
        known = replace(known, nobody_has=None)
    if isinstance(step, Load) and seen.site.nodes > 1:
        # An agent that was started again does not know what this one does, and its trainer loads another version: train again with it.
        known = replace(known, trained=None, checkpointed=None)
    if isinstance(step, Checkpoint):
        known = replace(known, saving=None)
    if isinstance(step, ENGINE_STEPS) or isinstance(error, ArenaHeld):
        # An engine that was told to load something else may still read what it had, and no longer says what that is.
        known = _unfit(known, *engine)
    # A living engine that refuses, or an export that came out wrong: nobody vouches for what the arena holds.
    refused = isinstance(step, (LoadEngine, Attest)) and seen.engine.life == "running"
    if refused or isinstance(error, ChecksumMismatch):
        known = replace(known, attested=None, arena_refused=True)
    if isinstance(step, Gate):
        # The one that does not leave enough has to go: after its end, its memory is free.
        known = _unfit(known, *(trainer if step.owner == "engine" else engine))
    slept = isinstance(step, Gate) and step.owner == "trainer" and seen.engine.life == "running"
    if isinstance(step, SleepEngine) or slept:
        known = replace(known, restart_reason=str(error))
    return _failure(known, NAMES[type(step)], error, now)


def noticed(known: Known, seen: Observed, now: float) -> Known:
    """After a look at the world: who has died, and what a trainer remembers that we do not."""
    if seen.site.kind == "worker":
        known = _trainer_noticed(known, seen.trainer, now)
    return _engine_noticed(known, seen.engine, now)


def goal_changed(known: Known) -> Known:
    """After the master wants something else (or that it be tried again): timings and failures start anew."""
    return replace(known, timings=MappingProxyType({}), failure=None, failures=0, retry_at=0.0, nobody_has=None)


def exit_error(what: str, exit_status: int | None, last_line: str) -> RLJobError:
    """What a payload's end means; its own last word is part of the message."""
    how = f"was killed by signal {-exit_status}" if exit_status is not None and exit_status < 0 else f"ended with status {exit_status}"
    if exit_status == EXIT_CONFIGURATION:
        return ConfigurationError(last_line.removeprefix("error: ") or f"the {what} {how}; see its log")
    return InfrastructureError(f"the {what} {how}" + (f"; its last output: {last_line}" if last_line else ""))


def telling_line(lines: tuple[str, ...]) -> str:
    """The line of a log's tail that says most about an end: the last error, else the last line that is not the shim's."""
    own = [line.strip() for line in lines if line.strip() and not line.startswith("shim: ")]
    errors = [line for line in own if line.startswith("error: ") or "Error" in line.split(":")[0]]
    return (errors or own or [""])[-1][:500]


def _trainer_noticed(known: Known, trainer: TrainerSeen, now: float) -> Known:
    if trainer.life == "away":
        return known
    alive = trainer.life in ("starting", "running")
    if known.trainer is not None and (not alive or trainer.incarnation != known.trainer):
        error = exit_error("trainer", trainer.exit_status, trainer.last_line) if trainer.life == "exited" else _lost("trainer")
        counted = known.trainer in known.unfit
        known = replace(known, trainer=None, saving=None, nobody_has=None, gate=None if known.gate == "trainer" else known.gate)
        known = known if counted else _failure(known, "train", error, now)
    if alive and known.trainer is None:
        known = replace(known, trainer=trainer.incarnation)
    if trainer.status is not None:
        durable = max((v for v in (known.checkpointed, trainer.status.checkpointed) if v is not None), default=None)
        known = replace(known, checkpointed=durable, trained=trainer.status.trained or known.trained)
    return known


def _engine_noticed(known: Known, engine: EngineSeen, now: float) -> Known:
    if engine.life == "away":
        return known
    alive = engine.life in ("starting", "running")
    if known.engine is not None and (not alive or engine.incarnation != known.engine):
        error = exit_error("engine", engine.exit_status, engine.last_line) if engine.life == "exited" else _lost("engine")
        counted, stage = known.engine in known.unfit, "rollout" if known.attested is not None else "start-engine"
        known = replace(known, engine=None, attested=None, gate=None if known.gate == "engine" else known.gate)
        known = known if counted else _failure(known, stage, error, now)
    if alive and known.engine is None:
        known = replace(known, engine=engine.incarnation)
    return known


def _lost(what: str) -> InfrastructureError:
    return InfrastructureError(f"the {what} is gone together with its shim")


def _failure(known: Known, stage: str, error: RLJobError, now: float) -> Known:
    configuration = isinstance(error, ConfigurationError)
    failures = known.failures + 1
    failure = Failure(stage=stage, reason=_reason(error), message=str(error), configuration=configuration)
    return replace(known, failure=failure, failures=failures, retry_at=math.inf if configuration else now + backoff(failures))


def _reason(error: RLJobError) -> str:
    name = type(error).__name__
    return {"InfrastructureError": "StepFailed"}.get(name, name)


def _unfit(known: Known, *incarnations: str | None) -> Known:
    return replace(known, unfit=known.unfit | {i for i in incarnations if i is not None})


def _with(mapping: Mapping[str, float], key: str, value: float) -> Mapping[str, float]:
    return MappingProxyType({**mapping, key: value})
