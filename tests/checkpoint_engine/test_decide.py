"""The decision table: from every state of the world, the whole sequence of steps to what is wanted."""

from dataclasses import replace
from typing import Any

import pytest
from tests.checkpoint_engine.twins import manifest_of, metrics, truth

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.decide import decide, keeps_engine, routable
from rljob.checkpoint_engine.outcome import ArenaHeld, FillFailed, WrongState, failed, goal_changed, noticed
from rljob.checkpoint_engine.state import (
    Attest,
    Checkpoint,
    EndTrainer,
    EngineSeen,
    EngineState,
    Export,
    Finish,
    ForkEngine,
    Gate,
    Idle,
    Known,
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
    Site,
    SleepEngine,
    StartEngine,
    StartTrainer,
    Step,
    StopEngine,
    Train,
    TrainerSeen,
)
from rljob.wire.node import NodeDesired, TrainTask
from rljob.wire.trainer import TrainerStatus

WORKER = Site("worker", "cpu", "restart")
GONE, AWAY = TrainerSeen(), TrainerSeen(life="away")
NO_ENGINE, NOTHING = EngineSeen(), Known()
TASK = TrainTask(version=4, kind="rl", steps=1, iteration=4)
RESTART = StopEngine("switch.policy is restart")


def desired(phase: str, version: int = 3, checksum: str | None = truth(3)) -> NodeDesired:
    task = TASK if phase == "train" else None
    return NodeDesired.model_validate({"revision": 5, "phase": phase, "version": version, "checksum": checksum, "task": task})


def trainer(version: int | None = 3, resident: bool = False, busy: str | None = None, incarnation: str = "t") -> TrainerSeen:
    status = TrainerStatus(incarnation=incarnation, version=version, resident=resident, busy=busy)
    return TrainerSeen("running", incarnation, status=status)


def engine(version: int | None = 3, paused: bool = False, incarnation: str = "e") -> EngineSeen:
    return EngineSeen("running", incarnation, state=EngineState(version, None if version is None else truth(version), paused))


def knows(version: int = 3, **more: Any) -> Known:
    """An agent that has exported and registered a version."""
    return Known(manifest=manifest_of(version, truth(version)), registered=(version, truth(version)), **more)


def world(
    site: Site = WORKER, trainer: TrainerSeen = GONE, engine: EngineSeen = NO_ENGINE, arena: int | None = None, known: Known = NOTHING
) -> Observed:
    return Observed(site, trainer, engine, arena, known)


def done(step: Step, seen: Observed) -> Observed:
    """The world after a step that works."""
    known = seen.known
    match step:
        case StartTrainer():
            return replace(seen, trainer=trainer(None, resident=True, incarnation="t2"))
        case EndTrainer():
            return replace(seen, trainer=GONE, known=replace(known, gate=None))
        case Load(version):
            return replace(seen, trainer=trainer(version, resident=True, incarnation=str(seen.trainer.incarnation)))
        case Train(task):
            after = trainer(task.version, resident=True, incarnation=str(seen.trainer.incarnation))
            kept = None if known.manifest is not None and known.manifest.version == task.version else known.manifest
            return replace(seen, trainer=after, known=replace(known, trained=metrics(task.version), manifest=kept))
        case Save(version):
            return replace(seen, known=replace(known, saving=version))
        case Checkpoint(version):
            return replace(seen, known=replace(known, checkpointed=version))
        case Export(version):
            return replace(seen, arena=version, known=replace(known, manifest=manifest_of(version, truth(version)), arena_refused=False))
        case Recall(version):
            return replace(seen, known=replace(known, **vars(knows(version)) | {"gate": known.gate, "attested": known.attested}))
        case Pull(version):
            return replace(seen, arena=version, known=replace(known, **vars(knows(version)) | {"gate": known.gate}))
        case Register(version):
            return replace(seen, known=replace(known, registered=(version, truth(version))))
        case Offload() | Onload():
            assert seen.trainer.status is not None
            status = seen.trainer.status.model_copy(update={"resident": isinstance(step, Onload)})
            gate = None if isinstance(step, Offload) else known.gate
            return replace(seen, trainer=replace(seen.trainer, status=status), known=replace(known, gate=gate))
        case Gate(owner):
            return replace(seen, known=replace(known, gate=owner))
        case StartEngine():
            return replace(seen, engine=engine(None, incarnation=seen.engine.incarnation or "e2"))
        case LoadEngine(version):
            return replace(seen, engine=engine(version, incarnation=str(seen.engine.incarnation)))
        case Attest(version):
            return replace(seen, known=replace(known, attested=(str(seen.engine.incarnation), version, truth(version))))
        case ForkEngine(version):
            forked = EngineSeen("running", "e3")
            return replace(seen, engine=forked, known=replace(known, ahead=(version, "e3")))
        case StopEngine():
            return replace(seen, engine=EngineSeen(), known=replace(known, gate=None, attested=None))
        case SleepEngine():
            return replace(seen, engine=engine(None, paused=True), known=replace(known, gate=None, attested=None))
    raise AssertionError(f"{step} ends a sequence")


def steps(wanted: NodeDesired, seen: Observed) -> list[Step]:
    """Steps until there is nothing to do."""
    taken: list[Step] = []
    while not isinstance(step := decide(wanted, seen, 0.0), (Rollout, Idle, Finish)):
        taken.append(step)
        assert len(taken) < 30, f"no end: {taken}"
        seen = done(step, seen)
    if wanted.phase == "rollout" and isinstance(step, Rollout):
        assert routable(wanted, seen)
    return taken


MAKE = [Checkpoint(4), Export(4, None), Register(4)]
BESIDE = [Export(4, None), Offload(), Save(4), StartEngine(), Gate("engine"), LoadEngine(4), Attest(4), Checkpoint(4), Register(4)]
ENGINE_UP = [Gate("engine"), StartEngine(), LoadEngine(3), Attest(3)]
PROVIDE = [Gate("trainer"), StartTrainer(), Load(3), Export(3, truth(3)), Register(3)]
PAUSED_SITE, NVIDIA = Site("worker", "cpu", "sleep"), Site("worker", "nvidia", "auto")

TRAIN_CASES = {
    "after a rollout": (
        world(trainer=trainer(), engine=engine(), arena=3, known=knows()),
        [RESTART, Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "cold": (world(), [Gate("trainer"), StartTrainer(), Load(3), Train(TASK), *MAKE]),
    "the engine is gone": (world(trainer=trainer(), arena=3, known=knows()), [Gate("trainer"), Onload(), Train(TASK), *MAKE]),
    "the trainer is gone": (world(arena=3, known=knows()), [Gate("trainer"), StartTrainer(), Load(3), Train(TASK), *MAKE]),
    "the trainer starts": (
        world(trainer=TrainerSeen("running", "t"), known=Known(gate="trainer")),
        [StartTrainer(), Load(3), Train(TASK), *MAKE],
    ),
    "the trainer says that it starts": (
        world(trainer=trainer(None, resident=True, busy="start"), known=Known(gate="trainer")),
        [StartTrainer(), Load(3), Train(TASK), *MAKE],
    ),
    "the trainer has no weights yet": (world(trainer=trainer(None)), [Load(3), Train(TASK), *MAKE]),
    "the trainer has failed": (
        world(trainer=trainer(resident=True), known=Known(unfit=frozenset({"t"}))),
        [EndTrainer("it failed"), Gate("trainer"), StartTrainer(), Load(3), Train(TASK), *MAKE],
    ),
    "the trainer is training": (world(trainer=trainer(resident=True, busy="train")), [Train(TASK), *MAKE]),
    "trained, not checkpointed": (world(trainer=trainer(4, resident=True), known=Known(trained=metrics(4))), MAKE),
    "trained, and the version before is checkpointed": (
        world(trainer=trainer(4, resident=True), known=Known(trained=metrics(4), checkpointed=3)),
        MAKE,
    ),
    "trained and checkpointed": (
        world(trainer=trainer(4, resident=True), known=Known(trained=metrics(4), checkpointed=4)),
        [Export(4, None), Register(4)],
    ),
    "the trainer died after its checkpoint": (
        world(known=Known(trained=metrics(4), checkpointed=4)),
        [Gate("trainer"), StartTrainer(), Load(4), Export(4, None), Register(4)],
    ),
    "the trainer holds the next version, but nobody has its metrics": (
        world(trainer=trainer(4, resident=True)),
        [Load(3), Train(TASK), *MAKE],
    ),
    "the trainer holds an old version": (world(trainer=trainer(2, resident=True)), [Load(3), Train(TASK), *MAKE]),
    "exported, not registered": (
        world(
            trainer=trainer(4, resident=True), arena=4,
            known=Known(trained=metrics(4), checkpointed=4, manifest=manifest_of(4, truth(4))),
        ),
        [Register(4)],
    ),
    "registered, not checkpointed": (
        world(trainer=trainer(4, resident=True), arena=4, known=knows(4, trained=metrics(4))),
        [Checkpoint(4)],
    ),
    "made": (world(trainer=trainer(4, resident=True), arena=4, known=knows(4, trained=metrics(4), checkpointed=4)), []),
    "the engine does not answer": (
        world(trainer=trainer(), engine=EngineSeen("running", "e")),
        [StopEngine("it does not answer"), Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "the engine's shim does not answer": (
        world(trainer=trainer(), engine=EngineSeen("away")),
        [StopEngine("its shim does not answer"), Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "policy sleep": (
        world(PAUSED_SITE, trainer=trainer(), engine=engine()),
        [SleepEngine("switch.policy is sleep: on CPU it is paused and keeps its memory"), Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "policy sleep, the engine has failed": (
        world(PAUSED_SITE, trainer=trainer(), engine=engine(), known=Known(unfit=frozenset({"e"}))),
        [StopEngine("it failed"), Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "auto on a GPU": (
        world(NVIDIA, trainer=trainer(), engine=engine()),
        [SleepEngine("auto sleeps: the gate found the memory free so far"), Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "auto on a GPU, after a failed sleep": (
        world(NVIDIA, trainer=trainer(), engine=engine(), known=Known(restart_reason="2 GiB stayed")),
        [StopEngine("auto restarts: 2 GiB stayed"), Gate("trainer"), Onload(), Train(TASK), *MAKE],
    ),
    "the engine can be forked ahead": (
        world(trainer=trainer(resident=True), engine=EngineSeen(ready=True), known=Known(gate="trainer")),
        [Train(TASK), ForkEngine(4), *BESIDE],
    ),
    "an engine was forked ahead of the version before": (
        world(trainer=trainer(resident=True), engine=EngineSeen(ready=True), known=Known(gate="trainer", ahead=(3, "e0"))),
        [Train(TASK), ForkEngine(4), *BESIDE],
    ),
    "beside a trainer of several nodes nothing is forked ahead": (
        world(replace(WORKER, nodes=2), trainer=trainer(4, resident=True), engine=EngineSeen(ready=True), known=Known(trained=metrics(4))),
        MAKE,
    ),
    "an engine that would be kept is not forked ahead": (
        world(PAUSED_SITE, trainer=trainer(4, resident=True), engine=EngineSeen(ready=True), known=Known(trained=metrics(4))),
        MAKE,
    ),
    "the forked engine has died while the version is saved": (
        world(trainer=trainer(4), engine=EngineSeen("exited", "e", -9), arena=4,
              known=Known(trained=metrics(4), ahead=(4, "e"), saving=4, manifest=manifest_of(4, truth(4)))),
        [Gate("trainer"), Onload(), Checkpoint(4), Register(4)],
    ),
    "the trainer does not leave enough for the forked engine": (
        world(trainer=trainer(4), engine=engine(None), arena=4,
              known=Known(trained=metrics(4), ahead=(4, "e"), saving=4, unfit=frozenset("t"), manifest=manifest_of(4, truth(4)))),
        [Checkpoint(4), EndTrainer("it failed"), Gate("engine"), LoadEngine(4), Attest(4), Register(4)],
    ),
    "the checkpoint beside the forked engine was not written": (
        world(trainer=trainer(4), engine=engine(None), arena=4,
              known=Known(trained=metrics(4), ahead=(4, "e"), unfit=frozenset("t"), manifest=manifest_of(4, truth(4)))),
        [EndTrainer("it failed"), RESTART, Gate("trainer"), StartTrainer(), Load(3), Train(TASK), *MAKE],
    ),
    "the forked engine has refused the weights": (
        world(trainer=trainer(4), engine=engine(None), arena=4,
              known=Known(trained=metrics(4), ahead=(4, "e"), saving=4, unfit=frozenset("e"), arena_refused=True,
                          manifest=manifest_of(4, truth(4)))),
        [StopEngine("it failed"), Gate("trainer"), Onload(), Checkpoint(4), Export(4, None), Register(4)],
    ),
    "there was no memory to fork it ahead": (
        world(trainer=trainer(4, resident=True), engine=EngineSeen(ready=True), known=Known(trained=metrics(4), ahead=(4, None))),
        MAKE,
    ),
    "on a GPU nothing is forked ahead": (
        world(Site("worker", "nvidia", "restart"), trainer=trainer(4, resident=True), engine=EngineSeen(ready=True),
              known=Known(trained=metrics(4))),
        MAKE,
    ),
    "an engine of unknown origin lives while the version is saved": (
        world(trainer=trainer(4, resident=True), engine=engine(3), known=Known(trained=metrics(4), ahead=(4, "e0"))),
        [RESTART, *MAKE],
    ),
    "an engine that was forked ahead of another version": (
        world(trainer=trainer(4, resident=True), engine=engine(None), known=Known(trained=metrics(4), ahead=(3, "e"))),
        [RESTART, *MAKE],
    ),
}  # fmt: skip

ROLLOUT_CASES = {
    "after training": (world(trainer=trainer(resident=True), arena=3, known=knows()), [Offload(), *ENGINE_UP]),
    "cold": (world(), [*PROVIDE, Offload(), *ENGINE_UP]),
    "serving": (world(trainer=trainer(), engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3)))), []),
    "the engine has died": (
        world(trainer=trainer(), engine=EngineSeen("exited", "e", -9), arena=3, known=knows()),
        ENGINE_UP,
    ),
    "the engine's shim does not answer": (world(trainer=trainer(), engine=EngineSeen("away"), arena=3, known=knows()), ENGINE_UP),
    "an engine was forked ahead": (
        world(trainer=trainer(resident=True), engine=EngineSeen("running", "e"), arena=3, known=knows(ahead=(3, "e"))),
        [Offload(), StartEngine(), Gate("engine"), LoadEngine(3), Attest(3)],
    ),
    "the engine has failed": (
        world(trainer=trainer(), engine=engine(), arena=3, known=knows(unfit=frozenset({"e"}))),
        [StopEngine("it failed"), *ENGINE_UP],
    ),
    "the engine was attested, but that was another one": (
        world(trainer=trainer(), engine=engine(), arena=3, known=knows(attested=("e0", 3, truth(3)))),
        [Attest(3)],
    ),
    "the engine holds an old version": (
        world(trainer=trainer(), engine=engine(2), arena=3, known=knows(gate="engine", attested=("e", 2, truth(2)))),
        [LoadEngine(3), Attest(3)],
    ),
    "the engine sleeps": (
        world(PAUSED_SITE, trainer=trainer(), engine=engine(None, paused=True), arena=3, known=knows()),
        [Gate("engine"), LoadEngine(3), Attest(3)],
    ),
    "the engine has the weights, and is paused": (
        world(trainer=trainer(), engine=engine(paused=True), arena=3, known=knows()),
        [Gate("engine"), LoadEngine(3), Attest(3)],
    ),
    "the trainer is loading": (world(trainer=trainer(busy="load"), arena=3, known=knows()), [StartTrainer(), Offload(), *ENGINE_UP]),
    "the agent has lost its memory, the engine serves": (
        world(trainer=trainer(), engine=engine(), arena=3),
        [Recall(3), Attest(3)],
    ),
    "the agent has lost its memory, the trainer is on the accelerator": (
        world(trainer=trainer(resident=True), arena=3),
        [Recall(3), Offload(), *ENGINE_UP],
    ),
    "the agent has lost its memory, and the master does not know the version": (
        world(trainer=trainer(), arena=3, known=Known(unknown_to_master=3)),
        [Gate("trainer"), Onload(), Export(3, truth(3)), Register(3), Offload(), *ENGINE_UP],
    ),
    "the arena is gone": (
        world(trainer=trainer(), engine=engine(), known=knows(attested=("e", 3, truth(3)))),
        [RESTART, Gate("trainer"), Onload(), Export(3, truth(3)), Offload(), *ENGINE_UP],
    ),
    "the agent has lost its memory, and the master did not know the version before": (
        world(trainer=trainer(), arena=3, known=Known(unknown_to_master=2)),
        [Recall(3), *ENGINE_UP],
    ),
    "the agent has lost its memory, and the arena was refused": (
        world(trainer=trainer(), arena=3, known=Known(arena_refused=True)),
        [Gate("trainer"), Onload(), Export(3, truth(3)), Register(3), Offload(), *ENGINE_UP],
    ),
    "the version before is registered": (
        world(trainer=trainer(), arena=3, known=replace(knows(), registered=(2, truth(2)))),
        [Register(3), *ENGINE_UP],
    ),
    "the engine holds other weights of this number": (
        world(trainer=trainer(), engine=EngineSeen("running", "e", state=EngineState(3, "other", False)), arena=3, known=knows()),
        [Gate("engine"), LoadEngine(3), Attest(3)],
    ),
    "the arena was refused": (
        world(trainer=trainer(), arena=3, known=knows(arena_refused=True)),
        [Gate("trainer"), Onload(), Export(3, truth(3)), Offload(), *ENGINE_UP],
    ),
    "the trainer has failed, the engine serves": (
        world(
            trainer=trainer(), engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3)), unfit=frozenset({"t"}))
        ),
        [EndTrainer("it failed")],
    ),
    "the trainer is dead, the engine serves": (
        world(trainer=TrainerSeen("exited", "t", 1), engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3)))),
        [],
    ),
    "the megatron shim does not answer": (
        world(trainer=AWAY, engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3)))),
        [EndTrainer("its shim does not answer")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "expected"), TRAIN_CASES.values(), ids=TRAIN_CASES)
def test_train(seen: Observed, expected: list[Step]) -> None:
    assert steps(desired("train"), seen) == expected


@pytest.mark.parametrize(("seen", "expected"), ROLLOUT_CASES.values(), ids=ROLLOUT_CASES)
def test_rollout(seen: Observed, expected: list[Step]) -> None:
    assert steps(desired("rollout"), seen) == expected


def test_version_0_is_exported_without_a_known_checksum() -> None:
    taken = steps(desired("rollout", 0, None), world())
    assert taken == [
        Gate("trainer"), StartTrainer(), Load(0), Export(0, None), Register(0), Offload(), Gate("engine"), StartEngine(), LoadEngine(0),
        Attest(0),
    ]  # fmt: skip


def test_weights_of_the_right_number_and_the_wrong_checksum_are_exported_again() -> None:
    seen = world(trainer=trainer(), arena=3, known=Known(manifest=manifest_of(3, "other"), registered=(3, "other")))
    assert steps(desired("rollout"), seen)[:3] == [Gate("trainer"), Onload(), Export(3, truth(3))]


ROLLOUT = Site("rollout", "cpu", "restart")


def test_a_node_without_a_trainer_pulls_what_is_wanted_and_serves_it() -> None:
    assert steps(desired("rollout"), world(ROLLOUT)) == [Pull(3, truth(3)), Gate("engine"), StartEngine(), LoadEngine(3), Attest(3)]
    assert steps(desired("rollout", 0, None), world(ROLLOUT))[0] == Pull(0, None)


SPREAD = Site("worker", "cpu", "restart", nodes=2)


def test_one_of_several_workers_pulls_a_version_that_it_lost() -> None:
    lost = world(SPREAD, trainer=trainer(), known=knows())
    assert steps(desired("rollout"), lost) == [Pull(3, truth(3)), *ENGINE_UP]
    serving = world(SPREAD, trainer=trainer(), engine=engine(), known=knows(attested=("e", 3, truth(3))))
    assert decide(desired("rollout"), serving, 0.0) == StopEngine("it still reads version 3, and the next one takes that memory")


def test_one_of_several_workers_exports_what_nobody_has_or_nobody_knows() -> None:
    assert steps(desired("rollout"), world(SPREAD, known=Known(nobody_has=3))) == steps(desired("rollout"), world())
    assert steps(desired("rollout"), world(SPREAD, known=Known(nobody_has=2)))[0] == Pull(3, truth(3))
    assert steps(desired("rollout", 0, None), world(SPREAD))[3] == Export(0, None)


def test_that_nobody_had_a_version_is_asked_again_after_a_trainers_step_has_failed() -> None:
    seen = world(SPREAD, trainer=trainer(), known=Known(nobody_has=3, trainer="t"))
    for error in (WrongState("look again"), InfrastructureError("it went away")):
        assert failed(seen.known, Onload(), error, seen, 0.0).nobody_has is None
    assert noticed(seen.known, world(SPREAD), 0.0).nobody_has is None
    assert goal_changed(seen.known).nobody_has is None


def test_a_fill_that_failed_is_tried_once_more_with_the_same_trainer() -> None:
    seen = world(SPREAD, trainer=trainer(4, resident=True), known=Known(trained=metrics(4), checkpointed=4))
    step = decide(desired("train"), seen, 0.0)
    assert step == Export(4, None)
    once = failed(seen.known, step, FillFailed("a wrong byte"), seen, 0.0)
    assert decide(desired("train"), replace(seen, known=once), 0.0) == step
    twice = failed(once, step, FillFailed("a wrong byte"), replace(seen, known=once), 0.0)
    assert decide(desired("train"), replace(seen, known=twice), 9.0) == EndTrainer("it failed")


def test_only_one_of_several_workers_forgets_what_it_trained_when_it_cannot_be_loaded() -> None:
    knew = Known(trained=metrics(4), checkpointed=4)
    for site, kept in ((SPREAD, None), (WORKER, 4)):
        assert failed(knew, Load(4), WrongState("others load 3"), world(site, known=knew), 0.0).checkpointed == kept


def test_an_engine_with_an_older_version_stays_and_takes_the_next_in_its_place() -> None:
    seen = world(ROLLOUT, engine=engine(2), arena=2, known=knows(2, attested=("e", 2, truth(2)), gate="engine"))
    assert steps(desired("rollout"), seen) == [Pull(3, truth(3)), LoadEngine(3), Attest(3)]
    assert not routable(desired("rollout"), seen)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"engine": engine(1)}, "it still reads version 1, and the next one takes that memory"),
        ({"engine": EngineSeen("running", "e")}, "it does not answer"),
        ({"engine": EngineSeen("away")}, "its shim does not answer"),
        ({"engine": engine(2), "known": knows(2, unfit=frozenset({"e"}))}, "it failed"),
    ],
)
def test_an_engine_that_may_read_what_the_next_pull_writes_is_ended_first(bad: dict[str, Any], why: str) -> None:
    seen = world(ROLLOUT, **{"arena": 2, "known": knows(2), **bad})
    assert decide(desired("rollout"), seen, 0.0) == StopEngine(why)


def test_an_engine_that_says_nothing_of_what_it_reads_is_ended_once_that_is_in_the_way() -> None:
    """It was told to load the next version, and the agent was killed before it did."""
    seen = world(ROLLOUT, engine=engine(None), arena=2)
    step = decide(desired("rollout"), seen, 0.0)
    assert step == Pull(3, truth(3))
    after = failed(seen.known, step, ArenaHeld("an engine serves from it"), seen, 0.0)
    assert steps(desired("rollout"), replace(seen, known=after)) == [
        StopEngine("it failed"), Pull(3, truth(3)), Gate("engine"), StartEngine(), LoadEngine(3), Attest(3)
    ]  # fmt: skip
    other = failed(seen.known, step, InfrastructureError("nobody has it"), seen, 0.0)
    assert decide(desired("rollout"), replace(seen, known=other), 0.0) == step


def test_while_others_train_a_node_without_a_trainer_keeps_its_engine_or_makes_one_ready() -> None:
    ready = world(ROLLOUT, engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3))))
    assert steps(desired("train"), ready) == []
    assert not routable(desired("train"), ready)
    assert steps(desired("train"), world(ROLLOUT)) == steps(desired("rollout"), world(ROLLOUT))
    assert steps(desired("train", 0, None), world(ROLLOUT)) == []
    assert steps(desired("idle"), ready) == []


def test_a_node_without_a_trainer_serves_the_old_version_while_others_train_if_that_is_wanted() -> None:
    ahead = desired("train").model_copy(update={"ahead": True})
    ready = world(ROLLOUT, engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3))))
    assert decide(ahead, ready, 0.0) == Rollout()
    assert routable(ahead, ready)
    worker = world(engine=engine(), arena=3, known=knows(attested=("e", 3, truth(3))))
    assert not routable(ahead, worker)


def test_an_agent_that_was_started_again_asks_whether_what_it_has_is_what_is_wanted() -> None:
    assert steps(desired("rollout"), world(ROLLOUT, arena=3))[:2] == [Recall(3), Gate("engine")]


def test_weights_that_an_engine_refused_are_pulled_again() -> None:
    seen = world(ROLLOUT, arena=3, known=knows(3, arena_refused=True))
    assert steps(desired("rollout"), seen)[0] == Pull(3, truth(3))


def test_idle_leaves_the_accelerator_and_keeps_the_state() -> None:
    assert steps(desired("idle"), world(trainer=trainer(resident=True), engine=engine())) == [RESTART, Offload()]


def test_stop_ends_at_once_even_in_a_pause() -> None:
    assert decide(desired("stop"), world(known=Known(retry_at=99.0)), 0.0) == Finish()


def test_after_a_failure_nothing_happens_before_its_time() -> None:
    seen = world(known=Known(retry_at=99.0))
    assert decide(desired("train"), seen, 98.0) == Idle("pause after a failure", 99.0)
    assert decide(desired("train"), seen, 99.0) == Gate("trainer")


def test_without_a_word_of_the_master_nothing_happens() -> None:
    assert isinstance(decide(None, world(), 0.0), Idle)


ATTESTED = knows(attested=("e", 3, truth(3)))


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (desired("train"), world(engine=engine(), known=ATTESTED)),
        (desired("rollout", 4, truth(4)), world(engine=engine(), known=ATTESTED)),
        (desired("rollout", 4, None), world(engine=engine(), known=ATTESTED)),
        (desired("rollout", 3, "other"), world(engine=engine(), known=ATTESTED)),
        (desired("rollout"), world(engine=engine(incarnation="e2"), known=ATTESTED)),
        (desired("rollout"), world(engine=engine(2), known=ATTESTED)),
        (desired("rollout"), world(engine=engine(None), known=ATTESTED)),
        (desired("rollout"), world(engine=engine(paused=True), known=ATTESTED)),
        (desired("rollout"), world(engine=EngineSeen("running", "e"), known=ATTESTED)),
        (desired("rollout"), world(engine=EngineSeen("exited", "e", 1), known=ATTESTED)),
        (desired("rollout"), world(engine=engine(), known=replace(ATTESTED, unfit=frozenset({"e"})))),
        (desired("rollout"), world(engine=engine(), known=knows())),
        (None, world(engine=engine(), known=ATTESTED)),
    ],
)
def test_only_what_is_proven_and_wanted_is_routable(wanted: NodeDesired | None, seen: Observed) -> None:
    assert routable(desired("rollout"), world(engine=engine(), known=ATTESTED))
    assert not routable(wanted, seen)


@pytest.mark.parametrize(
    ("accelerator", "policy", "keeps"),
    [("cpu", "auto", False), ("cpu", "sleep", True), ("cpu", "restart", False), ("nvidia", "auto", True), ("nvidia", "restart", False)],
)
def test_the_policy_says_whether_an_engine_is_kept_and_why(accelerator: Any, policy: Any, keeps: bool) -> None:
    kept, reason = keeps_engine(world(Site("worker", accelerator, policy)))
    assert kept == keeps
    assert policy in reason
