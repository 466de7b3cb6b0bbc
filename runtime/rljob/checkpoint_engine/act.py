"""The effects of steps. Each is idempotent: it may be repeated after a crash of anybody, at any point."""

import asyncio
import logging
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from rljob.api import InfrastructureError, RLJobError
from rljob.checkpoint_engine import gate
from rljob.checkpoint_engine.clients import Engine, Filler, Master, Peers, Shim, Trainer, WeightSource
from rljob.checkpoint_engine.decide import keeps_engine
from rljob.checkpoint_engine.outcome import AttestationFailed, ChecksumMismatch, DeadlineExceeded, FillFailed, exit_error, telling_line
from rljob.checkpoint_engine.processes import KILL_DEADLINE
from rljob.checkpoint_engine.state import (
    Attest,
    Checkpoint,
    EndTrainer,
    Export,
    ForkEngine,
    Gate,
    Known,
    Load,
    LoadEngine,
    Observed,
    Offload,
    Onload,
    Owner,
    Pull,
    Recall,
    Register,
    Save,
    Site,
    SleepEngine,
    StartEngine,
    StartTrainer,
    Step,
    StopEngine,
    Train,
)
from rljob.wire.checkpoints import checkpoint_folder
from rljob.wire.node import NodeAddresses, Progress, TrainMetrics, TrainTask
from rljob.wire.shim import ShimStatus, StartRequest
from rljob.wire.trainer import CheckpointCommand, ExportCommand, LoadCommand, OffloadCommand
from rljob.wire.weights import Manifest

log = logging.getLogger(__name__)

STOP_GRACE = 5.0
"""Seconds that a payload gets between SIGTERM and SIGKILL."""
STOP_DEADLINE = STOP_GRACE + KILL_DEADLINE + 5.0
"""Seconds after which a shim that was asked to stop its payload has either done so or failed."""
LAST_TRIES = 7
"""So often at least is a shim asked to stop its payload when all is over, however short `switch.deadlineSeconds` is: nobody asks later."""
HAND_BACK = 5.0
"""Seconds that an engine which is about to end gets to answer what it is writing."""
PROGRESS_POLL = 1.0
_POLL = 0.05


@dataclass(frozen=True)
class Plan:
    """What does not change while the agent runs."""

    site: Site
    node: str
    engine_url: str
    engine_argv: tuple[str, ...]
    engine_env: Mapping[str, str]
    trainer_env: Mapping[str, str]
    model: Path
    """Folder of version 0."""
    checkpoints: Path
    arena: Path
    deadline: float
    """Seconds that one step may take."""
    gate_deadline: float
    leak_tolerance: int
    claims: Mapping[Owner, int]
    """Bytes that an owner is estimated to need."""
    storage: float = 0.0
    """Seconds on top for a step that reads or writes a checkpoint."""
    engine_grace: float = STOP_GRACE
    """Seconds that an engine gets between SIGTERM and SIGKILL."""
    weights_url: str = ""
    """Where other nodes can have this node's weights."""


@dataclass(frozen=True)
class Parts:
    """Whom the agent works with."""

    trainer_shim: Shim
    trainer: Trainer
    engine_shim: Shim
    engine: Engine
    master: Master
    weights: WeightSource
    memory: gate.DeviceMemory
    new_incarnation: Callable[[], str]
    peers: Peers | None = None
    """None at a node that makes its weights alone."""
    filler: Filler | None = None
    """At a worker node that makes them together with others."""


class Actor:
    """Carries out steps."""

    def __init__(self, plan: Plan, parts: Parts, publish: Callable[[Progress | None], None]) -> None:
        """`publish` is told how far a long step is."""
        self.plan, self.parts = plan, parts
        self._publish = publish
        self._saving: asyncio.Task[None] | None = None
        """The checkpoint that the trainer is writing while other steps go on (`Known.saving`)."""

    async def act(self, step: Step, seen: Observed) -> Known:
        """Do it; what is known afterwards.

        Raises:
            RLJobError: it did not work.
        """
        known = seen.known
        if isinstance(step, Train):
            trained, stale = await self._train(step.task), known.manifest is not None and known.manifest.version == step.task.version
            known = replace(known, have_trained=known.have_trained | {str(seen.trainer.incarnation)})
            # Made again after its export: what the arena holds is not known to be the same.
            return replace(known, trained=trained, manifest=None if stale else known.manifest)
        if isinstance(step, Pull):
            return await self._pull(step, known)
        extra = self.plan.gate_deadline if isinstance(step, Gate) else self.plan.storage if isinstance(step, Load | Checkpoint) else 0.0
        limit = self.plan.deadline + extra
        try:
            async with asyncio.timeout(limit):
                done = await self._act(step, seen)
        except TimeoutError as error:
            raise DeadlineExceeded(f"not done after {limit:.0f} s (switch.deadlineSeconds); it is ended and started again") from error
        if isinstance(step, Export) and self.parts.filler is not None:
            await self._fill(self.parts.filler, _present(done.manifest, step.version))
        return done

    async def _act(self, step: Step, seen: Observed) -> Known:
        known, parts = seen.known, self.parts
        match step:
            case StartTrainer() | EndTrainer() | Load() | Save() | Checkpoint() | Export() | Onload():
                return await self._trainer(step, known)
            case Offload():
                return await self._offload(seen)
            case StartEngine() | ForkEngine() | LoadEngine() | Attest() | StopEngine() | SleepEngine():
                return await self._engine(step, seen)
            case Gate(owner):
                return await self._gate(owner, seen)
            case Recall(version):
                manifest = await parts.master.manifest(version)
                if manifest is None:
                    return replace(known, unknown_to_master=version)
                return replace(known, manifest=manifest, registered=(version, manifest.checksum))
            case Register(version):
                manifest = _present(known.manifest, version)
                await parts.master.register(manifest)
                return replace(known, registered=(version, manifest.checksum))
            case _:
                raise TypeError(f"{step} is nothing to do")

    async def _pull(self, step: Pull, known: Known) -> Known:
        """Nothing changes if the master wants something else meanwhile. A pull that gets on may take as long as it takes."""
        if self.parts.peers is None:
            raise TypeError("this node pulls nothing")
        if self.plan.site.kind == "worker":
            addresses = await self._workers()
            if not any(held == step.version for node, held in addresses.held.items() if node != self.plan.node):
                return replace(known, nobody_has=step.version)
        manifest = await self.parts.peers.pull(step.version, step.checksum, self._publish)
        if manifest is None:
            return known
        label = (manifest.version, manifest.checksum)
        return replace(known, manifest=manifest, registered=label, arena_refused=False, unknown_to_master=None)

    async def _fill(self, filler: Filler, manifest: Manifest) -> None:
        """One that gets on may take as long as it takes, and it is not the trainer's fault if it does not."""

        async def sources() -> Mapping[str, str]:
            try:
                async with asyncio.timeout(self.plan.deadline):
                    return (await self._workers()).weights
            except TimeoutError as error:
                raise FillFailed(
                    f"not all of {self.plan.site.nodes} worker nodes have reported to the master for {self.plan.deadline:.0f} s, and "
                    f"version {manifest.version} lies on them in part"
                ) from error

        await filler.fill(manifest, sources, self._publish)

    async def _workers(self) -> NodeAddresses:
        """What all worker nodes have; a master that was started again hears of them one after the other."""
        while True:
            addresses = await self.parts.master.addresses()
            if len(addresses.weights) >= self.plan.site.nodes:
                return addresses
            await asyncio.sleep(_POLL)

    async def _trainer(self, step: Step, known: Known) -> Known:
        trainer = self.parts.trainer
        match step:
            case StartTrainer():
                request = StartRequest(env=dict(self.plan.trainer_env), incarnation=self.parts.new_incarnation())
                incarnation = await self._start(self.parts.trainer_shim, request, self._trainer_answers, "trainer")
                return replace(known, trainer=incarnation)
            case EndTrainer():
                await self._stop(self.parts.trainer_shim, STOP_GRACE)
                return replace(known, trainer=None)
            case Load(version):
                folder = checkpoint_folder(self.plan.checkpoints, version) if version else self.plan.model
                await trainer.load(LoadCommand(version=version, path=str(folder)))
            case Save(version):
                self._begin_saving(version)
                return replace(known, saving=version)
            case Checkpoint(version):
                begun = self._saving if known.saving == version else None
                await (begun or self._begin_saving(version))
                return replace(known, checkpointed=version, saving=None)
            case Export(version, checksum):
                manifest = await trainer.export(ExportCommand(version=version, arena=str(self.plan.arena)))
                if manifest.version != version or checksum not in (None, manifest.checksum):
                    raise ChecksumMismatch(
                        f"the trainer exported version {manifest.version} with checksum {manifest.checksum}, the job knows version "
                        f"{version} as {checksum}: it loads its checkpoint again"
                    )
                return replace(known, manifest=manifest, arena_refused=False, unknown_to_master=None, nobody_has=None)
            case Onload():
                await trainer.onload()
            case _:
                raise TypeError(f"{step} is no step of a trainer")
        return known

    def _begin_saving(self, version: int) -> asyncio.Task[None]:
        """Have the trainer write a checkpoint; what an earlier call comes to is of no interest any more."""
        if self._saving is not None:
            self._saving.cancel()
        folder = checkpoint_folder(self.plan.checkpoints, version)
        command = CheckpointCommand(version=version, path=str(folder))
        self._saving = asyncio.create_task(self.parts.trainer.checkpoint(command))
        self._saving.add_done_callback(_note_failure)
        return self._saving

    async def _engine(self, step: Step, seen: Observed) -> Known:
        known, engine = seen.known, self.parts.engine
        match step:
            case StartEngine():
                incarnation = await self._start(self.parts.engine_shim, self._engine_request(), self._engine_answers, "engine")
                return replace(known, engine=incarnation, attested=None)
            case ForkEngine(version):
                return await self._fork(version, known)
            case LoadEngine(version):
                if seen.engine.state is not None and seen.engine.state.paused:
                    await engine.wake()
                # In place, if the arena is not written as long as this engine reads it. On a rollout node the next version gets another
                # file.
                share = self.plan.site.kind == "rollout" or not keeps_engine(seen)[0]
                beside = self._saving is not None and not self._saving.done()
                await engine.load(_present(known.manifest, version), self.plan.arena, share, beside)
                return replace(known, attested=None)
            case Attest(version):
                manifest = _present(known.manifest, version)
                await attest(engine, manifest)
                return replace(known, attested=(str(seen.engine.incarnation), version, manifest.checksum))
            case StopEngine(reason):
                if self._on_cpu:  # how much of a device is an engine's own does not show; its arguments say it
                    known = _with_peak(known, "engine", (await self.parts.memory.read("engine")).rest)
                await self._stop(self.parts.engine_shim, self.plan.engine_grace)
                return replace(known, engine=None, attested=None, switch_policy="restart", switch_reason=reason)
            case SleepEngine(reason):
                before = await self.parts.memory.read("engine")
                await engine.sleep()
                known = await self._left("engine", seen, before)
                return replace(known, attested=None, switch_policy="sleep", switch_reason=reason)
            case _:
                raise TypeError(f"{step} is no step of an engine")

    async def _fork(self, version: int, known: Known) -> Known:
        """Start an engine if there is memory for it beside the trainer; no failure if not, it is started later then."""
        reading = await self.parts.memory.read("trainer")
        need = self._need("engine", known)
        if reading.free < need:
            log.info("no engine ahead of time: it needs %d MiB, %d MiB are free", need >> 20, reading.free >> 20)
            return replace(known, ahead=(version, None))
        status = await self.parts.engine_shim.start(self._engine_request())
        return replace(known, ahead=(version, status.incarnation), engine=status.incarnation, attested=None)

    def _engine_request(self) -> StartRequest:
        """Each engine draws random numbers of its own. Of two with one seed, vLLM gives equal answers to the n-th requests for one prompt
        (on GPUs their noise depends on nothing else), and one that is started anew would draw what the one before it drew. A seed among
        `extraArgs` comes later and counts."""
        incarnation = self.parts.new_incarnation()
        argv = ("--seed", str(zlib.crc32(incarnation.encode()) >> 1), *self.plan.engine_argv)
        return StartRequest(argv=argv, env=dict(self.plan.engine_env), incarnation=incarnation)

    async def hand_back(self) -> None:
        """Have the engine give up what it is writing. Whatever goes wrong costs those tokens and nothing else."""
        try:
            async with asyncio.timeout(HAND_BACK):
                await self.parts.engine.hand_back()
        except (RLJobError, TimeoutError) as error:
            log.warning("running answers are not handed back (%s); they are written again", error or f"not done after {HAND_BACK:.0f} s")

    async def finish(self) -> None:
        """End engine and trainer, and leave no shared memory. A shim that ends meanwhile ends its payload by itself."""
        if self._saving is not None:
            self._saving.cancel()
        site, parts = self.plan.site, self.parts
        shims = [*([parts.engine_shim] if site.serves else []), *([parts.trainer_shim] if site.kind == "worker" else [])]
        limit = max(self.plan.deadline, LAST_TRIES * STOP_DEADLINE)
        try:
            async with asyncio.timeout(limit):
                await asyncio.gather(*(self._end(shim) for shim in shims))
        except TimeoutError:
            log.warning("the sidecars did not end their processes within %.0f s", limit)
        finally:
            self.parts.weights.remove()

    async def _end(self, shim: Shim) -> None:
        while await shim.status() is not None:
            try:
                async with asyncio.timeout(STOP_DEADLINE):
                    await shim.stop(STOP_GRACE)
                return
            except (InfrastructureError, TimeoutError) as error:
                log.warning("a sidecar did not stop (%s); asking again", error or f"no answer within {STOP_DEADLINE:.0f} s")
                await asyncio.sleep(_POLL)

    async def _train(self, task: TrainTask) -> TrainMetrics:
        """Have the task done, and watch that it gets on."""
        batch = await self.parts.master.batch(task.version)
        loop = asyncio.get_running_loop()
        call = asyncio.ensure_future(self.parts.trainer.train(task, batch))
        last, since = None, loop.time()
        try:
            while not (await asyncio.wait([call], timeout=PROGRESS_POLL))[0]:
                status = await self.parts.trainer.status()
                mark = None if status is None else (status.busy, status.progress)
                if mark is not None and mark != last:
                    last, since = mark, loop.time()
                    self._publish(mark[1])
                elif loop.time() - since > self.plan.deadline:
                    raise DeadlineExceeded(
                        f"training version {task.version} made no progress for {self.plan.deadline:.0f} s (switch.deadlineSeconds)"
                    )
            return call.result()
        finally:
            call.cancel()

    async def _start(self, shim: Shim, request: StartRequest, answers: Callable[[], Awaitable[bool]], what: str) -> str:
        """Start a payload unless one lives, and wait until it answers; its incarnation."""
        status = await _answer_of(shim)
        if status.state in ("stopped", "exited"):
            status = await shim.start(request)
        while not (status.state == "running" and await answers()):
            if status.state in ("stopped", "exited"):
                for line in status.last_log_lines:
                    log.error("%s: %s", what, line)
                raise exit_error(what, status.exit_status, telling_line(status.last_log_lines))
            await asyncio.sleep(_POLL)
            status = await _answer_of(shim)
        return str(status.incarnation)

    async def _stop(self, shim: Shim, grace: float) -> None:
        await _answer_of(shim)
        await shim.stop(grace)

    async def _trainer_answers(self) -> bool:
        status = await self.parts.trainer.status()
        return status is not None and status.busy is None

    async def _engine_answers(self) -> bool:
        return await self.parts.engine.state() is not None

    async def _offload(self, seen: Observed) -> Known:
        """On CPU the trainer keeps what it has freed while memory is plenty, once it has shown what it has left without that."""
        before = await self.parts.memory.read("trainer")
        shown = _memory_key("trainer", seen) in seen.known.baselines
        plenty = gate.is_plenty(before.free, self._need("engine", seen.known))
        keep = self._on_cpu and self.plan.site.nodes == 1 and shown and plenty
        await self.parts.trainer.offload(OffloadCommand(keep_freed=keep))
        return await self._left("trainer", seen, before)

    async def _left(self, owner: Owner, seen: Observed, before: gate.Reading) -> Known:
        """What is known after an owner has left and lives on: how much it takes, which on a device only shows in what it has given back."""
        known = seen.known
        if self._on_cpu:
            return _with_peak(known, owner, before.rest)
        if owner == "trainer" and seen.trainer.incarnation not in known.have_trained:
            return known  # its first training task takes more than it has now
        given_back = before.rest - (await self.parts.memory.read(owner)).rest
        return replace(known, given_back=MappingProxyType({**known.given_back, str(_memory_key(owner, seen)): given_back}))

    @property
    def _on_cpu(self) -> bool:
        return self.plan.site.accelerator == "cpu"

    def _need(self, owner: Owner, known: Known) -> int:
        return max(self.plan.claims[owner], known.peaks.get(owner, 0))

    async def _gate(self, owner: Owner, seen: Observed) -> Known:
        known, plan = seen.known, self.plan
        rest = self._rest_key("trainer" if owner == "engine" else "engine", seen)
        coming = _memory_key(owner, seen) or ""
        need = self._need(owner, known)
        need = min(need, known.given_back.get(coming, need))  # one that comes back keeps something while it is away
        freed = seen.trainer.status.freed if seen.trainer.status is not None else 0
        # What it holds while it is away it does not have to get.
        held = (await self.parts.memory.read(owner)).rest if owner == "trainer" and freed else known.baselines.get(coming, 0)
        if owner == "engine" and _works(seen):
            need = 0  # it lives and has what it needs: only what the trainer keeps is judged
        if owner == "engine" and freed and (await self.parts.memory.read("trainer")).free < need - held:
            await self.parts.trainer.offload(OffloadCommand())
            freed = 0
        kept = freed if owner == "engine" else 0
        baseline = known.baselines.get(rest) if rest else None
        claim = gate.Claim(owner, max(0, need - held), baseline, plan.leak_tolerance, kept, not self._on_cpu)
        reading = await gate.wait_open(self.parts.memory, claim, plan.gate_deadline)
        baselines = known.baselines
        if rest is not None and rest not in baselines and not kept:
            baselines = MappingProxyType({**baselines, rest: reading.rest})
        log.info(
            "gate for the %s: claims %d MiB, free %d MiB, rest %d MiB", owner, claim.bytes >> 20, reading.free >> 20, reading.rest >> 20
        )
        return replace(known, gate=owner, baselines=baselines)

    def _rest_key(self, leaving: Owner, seen: Observed) -> str | None:
        """Under what name the rest at a hand-over is remembered; None if nothing can be said of it."""
        key = _memory_key(leaving, seen)
        if key is None or self._on_cpu:
            return key
        # A device does not tell whose memory is whose: what is left when both are away.
        return None if _works(seen) else f"{_memory_key('trainer', seen)}, {_memory_key('engine', seen)}"


def _with_peak(known: Known, owner: Owner, held: int) -> Known:
    return replace(known, peaks=MappingProxyType({**known.peaks, owner: max(held, known.peaks.get(owner, 0))}))


async def attest(engine: Engine, manifest: Manifest) -> None:
    """Have the engine prove that it holds the manifest's weights: identity, then the canary's log-probs.

    Raises:
        AttestationFailed: it does not.
    """
    state = await engine.state()
    if state is None or (state.version, state.checksum) != (manifest.version, manifest.checksum):
        said = "nothing" if state is None else f"version {state.version} with checksum {state.checksum}"
        raise AttestationFailed(f"the engine says it holds {said}, not version {manifest.version} with checksum {manifest.checksum}")
    canary = manifest.canary
    gap = mean_gap(await engine.logprobs(canary.tokens), canary.logprobs)
    if not gap <= canary.tolerance:
        raise AttestationFailed(
            f"the engine's log-probs of the canary differ from the trainer's by {gap:.3g} per token, {canary.tolerance:.3g} is allowed: "
            f"it does not compute with the weights of version {manifest.version}"
        )
    log.info("attested version %d: canary gap %.3g per token (allowed %.3g)", manifest.version, gap, canary.tolerance)


def mean_gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """Mean absolute difference per token; infinite if the lengths differ, not a number if an entry is none."""
    if len(found) != len(expected) or not expected:
        return math.inf
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected)


def _note_failure(saving: asyncio.Task[None]) -> None:
    """So that a failure is in the log also if the step that would wait for it never comes; whoever waits gets it as well."""
    if not saving.cancelled() and (error := saving.exception()) is not None:
        log.warning("a checkpoint was not written: %s", error)


async def _answer_of(shim: Shim) -> ShimStatus:
    """Its status, as soon as it answers: a shim that died is started again by whoever runs the containers."""
    while True:
        if (status := await shim.status()) is not None:
            return status
        await asyncio.sleep(_POLL)


def _memory_key(owner: Owner, seen: Observed) -> str | None:
    """Under what name an owner's rest is remembered; None if it is not alive."""
    one = seen.trainer if owner == "trainer" else seen.engine
    if one.life not in ("running", "starting") or one.incarnation is None:
        return None
    # Gradients, optimizer state and NCCL's buffers appear with its first training task: that is no leak. Its status does not tell: what it
    # says of a training may be from its checkpoint.
    return f"{one.incarnation}{':trained' if one.incarnation in seen.known.have_trained else ''}"


def _works(seen: Observed) -> bool:
    """Whether the engine is on the accelerator."""
    return seen.engine.state is not None and not seen.engine.state.paused


def _present(manifest: Manifest | None, version: int) -> Manifest:
    if manifest is None or manifest.version != version:
        raise ValueError(f"this step needs the manifest of version {version}")
    return manifest
