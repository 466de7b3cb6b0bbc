"""What a node does next: one pure table from what is wanted and what is seen to one step.

Nothing here remembers anything: whoever crashed, the table is asked again with what is there now. Read `_train` and `_serve` from top to
bottom; the first line that does not hold names the step.
"""

from rljob.checkpoint_engine.state import (
    Attest,
    Checkpoint,
    EndTrainer,
    Export,
    Finish,
    ForkEngine,
    Gate,
    Idle,
    Load,
    LoadEngine,
    Observed,
    Offload,
    Onload,
    Pull,
    Recall,
    Register,
    Rollout,
    Save,
    SleepEngine,
    StartEngine,
    StartTrainer,
    Step,
    StopEngine,
    Train,
)
from rljob.wire.node import NodeDesired, TrainTask
from rljob.wire.weights import Manifest

ALIVE = ("away", "starting", "running")
"""Lives of a sidecar that may hold memory; a shim that does not answer may."""


def decide(desired: NodeDesired | None, seen: Observed, now: float) -> Step:
    """The next step of a node.

    Args:
        desired: what the master wants; None before it has said so.
        seen: the world as it is.
        now: Unix time, for the pause after a failure.
    """
    if desired is None:
        return Idle("the master has not been heard yet")
    if desired.phase == "stop":
        return Finish()
    if now < seen.known.retry_at:
        return Idle("pause after a failure", seen.known.retry_at)
    match desired.phase:
        case "train" if seen.site.kind == "rollout":
            return _stand_by(desired, seen)
        case "train" if desired.task is not None:
            return _train(desired.version, desired.task, seen)
        case "rollout":
            return _serve(desired.version, desired.checksum, seen)
        case _ if seen.site.kind == "rollout":
            return Idle("nothing is wanted; nobody else needs the accelerator")
        case _:
            return _engine_leaves(seen) or _trainer_leaves(seen) or Idle("nothing is wanted")


def _train(version: int, task: TrainTask, seen: Observed) -> Step:
    """Make `task.version` from `version`: checkpointed, in the arena, registered."""
    new = task.version
    held = seen.trainer.status if seen.trainer.life == "running" else None
    # A trainer that died after its checkpoint need not train again.
    trained = _trained(seen) == new and (_checkpointed(new, seen) or (held is not None and held.version == new))
    if not (trained and _forked_for(new, seen)) and (step := _engine_leaves(seen)):
        return step
    if _made(new, seen):
        return Idle(f"version {new} is made; the master commits it")
    if trained and _forked_for(new, seen):
        return _make_beside_engine(new, seen)
    if step := _trainer_holds(new if trained else version, seen):
        return step
    if not trained:
        return Train(task)
    if _forks_ahead(new, seen):
        return ForkEngine(new)
    if not _checkpointed(new, seen):
        return Checkpoint(new)
    if _manifest(new, None, seen) is None:
        return Export(new, None)
    return Register(new)


def _make_beside_engine(version: int, seen: Observed) -> Step:
    """Make the version while the engine that was forked for it comes up: it is saved while the engine takes and proves the weights.

    Registered last, as ever: a version that the master knows can be had again from its checkpoint.
    """
    status, known = seen.trainer.status, seen.known
    manifest = _manifest(version, None, seen)
    if manifest is None:
        return _trainer_holds(version, seen) or Export(version, None)
    failed = seen.trainer.incarnation in known.unfit
    if failed and known.saving == version and not _checkpointed(version, seen):
        return Checkpoint(version)  # it has to go, but what it is writing spares another training
    if (failed or status is None or status.resident) and (step := _trainer_leaves(seen)):
        return step
    if not _checkpointed(version, seen) and known.saving != version:
        return Save(version)
    if step := _engine_serves(manifest, seen):
        return step
    return Register(version) if _checkpointed(version, seen) else Checkpoint(version)


def _serve(version: int, checksum: str | None, seen: Observed) -> Step:
    """An engine with exactly these weights, attested."""
    manifest = _manifest(version, checksum, seen)
    if manifest is None:
        return _provide(version, checksum, seen)
    if seen.known.registered != (version, manifest.checksum):
        return Register(version)
    return _trainer_leaves(seen) or _engine_serves(manifest, seen) or Rollout()


def _stand_by(desired: NodeDesired, seen: Observed) -> Step:
    """While others train, a node without a trainer keeps its engine, and makes it ready if it is not: then the next version only has to be
    pulled and loaded. Meanwhile it may generate for the next iteration (`desired.ahead`)."""
    if desired.checksum is None:
        return Idle("nobody has weights to give yet")
    step = _serve(desired.version, desired.checksum, seen)
    return Idle("rollout nodes do not train") if isinstance(step, Rollout) and not desired.ahead else step


def _provide(version: int, checksum: str | None, seen: Observed) -> Step:
    """Get the weights into the arena, and their manifest."""
    known = seen.known
    arena_fits = seen.arena == version and not known.arena_refused and known.manifest is None
    if arena_fits and known.unknown_to_master != version:
        return Recall(version)
    if seen.site.kind == "rollout":
        return _engine_lets_go(seen) or Pull(version, checksum)
    if seen.site.nodes > 1 and checksum is not None and known.nobody_has != version:
        return _engine_lets_go(seen) or Pull(version, checksum)  # another worker may have it: an export needs the trainers of all
    if step := _engine_leaves(seen):  # the arena is about to be written, and the trainer needs the accelerator
        return step
    return _trainer_holds(version, seen) or Export(version, checksum)


def _trainer_holds(version: int, seen: Observed) -> Step | None:
    """The trainer is up, on the accelerator, and holds this version."""
    trainer = seen.trainer
    if trainer.life in ALIVE and trainer.incarnation in seen.known.unfit:
        return EndTrainer("it failed")
    status = trainer.status if trainer.life == "running" else None
    if status is None or status.busy == "start":
        waiting = trainer.life in ("starting", "running")
        return StartTrainer() if waiting or seen.known.gate == "trainer" else Gate("trainer")
    if status.version is not None and not status.resident:
        return Onload() if seen.known.gate == "trainer" else Gate("trainer")
    return Load(version) if status.version != version else None


def _trainer_leaves(seen: Observed) -> Step | None:
    """The trainer is not on the accelerator."""
    trainer = seen.trainer
    if seen.site.kind == "rollout" or trainer.life not in ALIVE:
        return None
    if trainer.life == "away" or trainer.incarnation in seen.known.unfit:
        return EndTrainer("it failed" if trainer.life != "away" else "its shim does not answer")
    if trainer.status is None or trainer.status.busy is not None:
        return StartTrainer()  # wait until it says where it is
    return Offload() if trainer.status.resident else None


def _engine_leaves(seen: Observed) -> Step | None:
    """The engine is not on the accelerator."""
    engine, known = seen.engine, seen.known
    if engine.life not in ALIVE:
        return None
    if engine.life == "away":
        return StopEngine("its shim does not answer")
    if engine.incarnation in known.unfit or engine.state is None:
        return StopEngine("it failed" if engine.incarnation in known.unfit else "it does not answer")
    keep, reason = keeps_engine(seen)
    if not keep:
        return StopEngine(reason)
    return None if engine.state.paused else SleepEngine(reason)


def _engine_lets_go(seen: Observed) -> Step | None:
    """The engine does not read the file that the next version is put together in: it has what the arena holds, or no weights yet."""
    engine = seen.engine
    if engine.life not in ALIVE:
        return None
    if engine.life == "away":
        return StopEngine("its shim does not answer")
    if engine.incarnation in seen.known.unfit:
        return StopEngine("it failed")
    if engine.state is None:
        return StopEngine("it does not answer")
    behind = engine.state.version not in (None, seen.arena)
    return StopEngine(f"it still reads version {engine.state.version}, and the next one takes that memory") if behind else None


def _forks_ahead(version: int, seen: Observed) -> bool:
    """Whether an engine may start while the trainer saves `version`: on CPU, where the two share memory anyway, and only once.

    It holds no weights yet, so this takes nothing from the order of export, offload, load, attest.
    """
    untried = seen.known.ahead is None or seen.known.ahead[0] != version
    gone = seen.engine.life in ("stopped", "exited") and seen.engine.ready
    together = seen.site.accelerator == "cpu" and seen.site.nodes == 1  # with several the trainer waits for other nodes' engines too
    return together and not keeps_engine(seen)[0] and gone and untried


def _forked_for(version: int, seen: Observed) -> bool:
    """Whether the engine that lives is the one that was started ahead of `version`."""
    incarnation = seen.engine.incarnation
    return (
        seen.engine.life in ALIVE
        and incarnation is not None
        and seen.known.ahead == (version, incarnation)
        and incarnation not in seen.known.unfit
    )


def _engine_serves(manifest: Manifest, seen: Observed) -> Step | None:
    """The engine is up, on the accelerator, and proven to hold this manifest's weights."""
    engine, known = seen.engine, seen.known
    if engine.life in ("stopped", "exited", "away"):
        return StartEngine() if known.gate == "engine" else Gate("engine")
    if engine.incarnation in known.unfit:
        return StopEngine("it failed")
    if engine.state is None:
        return StartEngine()
    if engine.state.paused or (engine.state.version, engine.state.checksum) != (manifest.version, manifest.checksum):
        return LoadEngine(manifest.version) if known.gate == "engine" else Gate("engine")
    if known.attested != (engine.incarnation, manifest.version, manifest.checksum):
        return Attest(manifest.version)
    return None


def keeps_engine(seen: Observed) -> tuple[bool, str]:
    """Whether an engine lives on while the trainer works, and why (`switch.policy`)."""
    site = seen.site
    if site.kind == "rollout":
        return True, "there is no trainer on this node"
    if site.policy == "restart":
        return False, "switch.policy is restart"
    if site.policy == "sleep":
        on_cpu = ": on CPU it is paused and keeps its memory" if site.accelerator == "cpu" else ""
        return True, f"switch.policy is sleep{on_cpu}"
    if site.accelerator == "cpu":
        return False, "auto restarts on CPU, where only the end of the process frees memory"
    if seen.known.restart_reason:
        return False, f"auto restarts: {seen.known.restart_reason}"
    return True, "auto sleeps: the gate found the memory free so far"


def routable(desired: NodeDesired | None, seen: Observed) -> bool:
    """Whether requests may be sent to the engine: it is proven to hold exactly what is wanted, and works."""
    engine, attested = seen.engine, seen.known.attested
    asked = desired is not None and (desired.phase == "rollout" or (desired.ahead and seen.site.kind == "rollout"))
    if desired is None or not asked or engine.life != "running" or engine.state is None or engine.state.paused:
        return False
    if attested is None or attested != (engine.incarnation, engine.state.version, engine.state.checksum):
        return False
    right = engine.state.version == desired.version and desired.checksum in (None, engine.state.checksum)
    return right and engine.incarnation not in seen.known.unfit


def _made(version: int, seen: Observed) -> bool:
    registered = seen.known.registered
    return _trained(seen) == version and _checkpointed(version, seen) and registered is not None and registered[0] == version


def _manifest(version: int, checksum: str | None, seen: Observed) -> Manifest | None:
    """The manifest of what the arena holds, if that is this version, and with this checksum where one is known."""
    manifest = seen.known.manifest
    if manifest is None or seen.known.arena_refused or not seen.arena == manifest.version == version:
        return None
    return manifest if checksum in (None, manifest.checksum) else None


def _trained(seen: Observed) -> int | None:
    trained = seen.known.trained
    return trained.version if trained is not None else None


def _checkpointed(version: int, seen: Observed) -> bool:
    return seen.known.checkpointed is not None and seen.known.checkpointed >= version
