"""A world in memory for the node agent: sidecars, trainer, engine, arena and master, whose every operation can go wrong.

It follows the contracts of `rljob.wire`; time is the virtual loop's. A master of a few lines drives a whole job and checks every report: an
engine that is called routable must truly hold the weights that the job calls by that version.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from tests.master.virtual import clock

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.act import Parts, Plan
from rljob.checkpoint_engine.gate import IDLE_CARD, NvmlMemory, Reading
from rljob.checkpoint_engine.node import Node
from rljob.checkpoint_engine.outcome import ChecksumMismatch, MasterAway
from rljob.checkpoint_engine.state import EngineState, Owner, Site
from rljob.wire.node import NodeAddresses, NodeDesired, NodeReport, TrainMetrics, TrainTask
from rljob.wire.shim import ShimStatus, StartRequest
from rljob.wire.trainer import CheckpointCommand, ExportCommand, LoadCommand, OffloadCommand, TrainerStatus
from rljob.wire.weights import Canary, Manifest

GiB = 1 << 30
Kind = Literal["kill", "fail", "hang", "kill-shim", "kill-agent", "master-away", "corrupt-arena", "lose-arena", "master-forgets"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, in the middle of the n-th time that something is done."""

    point: str
    nth: int
    kind: Kind


class NVMLError(Exception):
    """What NVML's functions raise."""


class Nvml:
    """The module pynvml, as far as it is used: what each device uses is told, and not by whom."""

    NVMLError = NVMLError
    NVMLError_InvalidArgument = type("NVMLError_InvalidArgument", (NVMLError,), {})
    NVMLError_NotFound = type("NVMLError_NotFound", (NVMLError,), {})
    NVMLError_NotSupported = type("NVMLError_NotSupported", (NVMLError,), {})
    NVMLError_NoPermission = type("NVMLError_NoPermission", (NVMLError,), {})

    def __init__(self, used: list[int], total: int = 80 * GiB, cut: Container[int] = ()) -> None:
        """`cut` are devices in MIG mode."""
        self.used, self.total, self.cut = used, total, cut

    def nvmlInit(self) -> None:
        return

    def nvmlDeviceGetCount(self) -> int:
        return len(self.used)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.used):
            raise self.NVMLError_InvalidArgument("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        """`GPU-1` is device 1, and `MIG-1` a part of it."""
        if uuid[:4] not in ("GPU-", "MIG-"):
            raise self.NVMLError_NotFound("Not Found")
        return int(uuid[4:])

    def nvmlDeviceGetMigMode(self, device: int) -> list[int]:
        if not self.cut:
            raise self.NVMLError_NotSupported("Not Supported")
        return [int(device in self.cut)] * 2

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:
        if device in self.cut:
            raise self.NVMLError_NoPermission("Insufficient Permissions")
        return SimpleNamespace(total=self.total, used=self.used[device])


def truth(version: int) -> str:
    """Checksum of a version's weights; training is deterministic."""
    return f"c{version}"


def manifest_of(version: int, content: str) -> Manifest:
    canary = Canary(tokens=(1, 2, 3), logprobs=logprobs_of(content), tolerance=1e-3)
    return Manifest(version=version, dtype="F32", tensors=(), checksum=content, canary=canary)


def logprobs_of(content: str) -> tuple[float, float]:
    return (-float(int.from_bytes(content.encode()) % 997), -1.0)


class Sidecar:
    """A shim and its payload."""

    def __init__(self, world: "World", name: Owner) -> None:
        self.world, self.name = world, name
        self.status_now = ShimStatus()
        self.away_until = 0.0
        self.starts = 0
        self.requests: list[StartRequest] = []
        self.on_start: Callable[[], None] = lambda: None
        self.hung = False
        self.exit_at_start: int | None = None

    @property
    def alive(self) -> bool:
        return self.status_now.state == "running"

    def die(self, status: int = -9) -> None:
        if self.alive:
            last = ("error: the model is too big",) if status == 2 else ("bye",)
            self.status_now = self.status_now.model_copy(
                update={"state": "exited", "exit_status": status, "pid": None, "last_log_lines": last}
            )

    def kill_shim(self) -> None:
        self.status_now = ShimStatus()
        self.away_until = self.world.now + 2

    async def status(self, memory: bool = False) -> ShimStatus | None:
        return None if self.world.now < self.away_until else self.status_now

    async def start(self, request: StartRequest) -> ShimStatus:
        await self.world.at(f"{self.name}.start", 0.1)
        if self.status_now.incarnation == request.incarnation:
            return self.status_now
        assert not self.alive, "two payloads at once"
        self.starts += 1
        self.requests.append(request)
        self.hung = False
        self.status_now = ShimStatus(incarnation=request.incarnation, state="running", pid=self.starts, started_at=self.world.now)
        self.on_start()
        if self.exit_at_start is not None:
            self.die(self.exit_at_start)
        return self.status_now

    async def stop(self, grace: float) -> ShimStatus:
        if self.world.now < self.away_until:
            raise InfrastructureError(f"the shim of the {self.name} does not answer")
        await self.world.at(f"{self.name}.stop", 0.2)
        self.status_now = ShimStatus()
        return self.status_now


class TrainerTwin:
    """Commands run one at a time and go on if nobody waits for them any more; a repeated one answers at once."""

    def __init__(self, world: "World", sidecar: Sidecar) -> None:
        self.world, self.sidecar = world, sidecar
        sidecar.on_start = self._fresh
        self._fresh()

    def _fresh(self) -> None:
        self.version: int | None = None
        self.content = ""
        self.resident = False
        self.trained: TrainMetrics | None = None
        """The last result; also one that a checkpoint tells of."""
        self.has_stepped = False
        self.checkpointed: int | None = None
        self.busy: str | None = None
        self.kept = 0
        self.offloads: list[bool] = []
        self.lock = asyncio.Lock()
        self.ready_at = self.world.now + 5

    async def status(self) -> TrainerStatus | None:
        if not self.sidecar.alive or self.sidecar.hung or self.world.now < self.ready_at:
            return None
        return TrainerStatus(
            incarnation=str(self.sidecar.starts), version=self.version, resident=self.resident, busy=self.busy,
            checkpointed=self.checkpointed, trained=self.trained, freed=0 if self.resident else self.kept,
        )  # fmt: skip

    async def load(self, command: LoadCommand) -> None:
        def effect() -> None:
            version = command.version
            assert version == 0 or version in self.world.checkpoints, f"no checkpoint of version {version}"
            self.version, self.content, self.resident = version, truth(version), True
            self.checkpointed = version or None
            self.trained = metrics(version) if version else None

        await self._command("load", 1.0, effect, command.version)

    async def train(self, task: TrainTask, batch: bytes) -> TrainMetrics:
        def effect() -> None:
            if self.trained is not None and self.trained.version == task.version:
                return
            assert self.resident, "training off the accelerator"
            assert self.version == task.version - 1, f"training {task.version} from {self.version}"
            assert batch == b"batch %d" % task.version
            self.world.own("trainer")
            self.version, self.content = task.version, truth(task.version)
            self.trained, self.has_stepped = metrics(task.version), True

        await self._command("train", 10.0, effect, task.version)
        assert self.trained is not None
        return self.trained

    async def export(self, command: ExportCommand) -> Manifest:
        def effect() -> None:
            assert self.version == command.version
            assert self.resident
            assert not self.world.engine.shares, "the arena is written while an engine reads it in place"
            self.world.arena = (command.version, self.content)

        self.world.arena = None
        await self._command("export", 0.5, effect)
        return manifest_of(command.version, self.content)

    async def checkpoint(self, command: CheckpointCommand) -> None:
        def effect() -> None:
            assert self.version == command.version
            self.world.checkpoints.add(command.version)
            self.checkpointed = command.version

        await self._command("checkpoint", 1.0, effect, command.version)

    async def offload(self, command: OffloadCommand) -> None:
        def effect() -> None:
            self.resident = False
            self.kept = self.world.freed if command.keep_freed else 0
            self.offloads.append(command.keep_freed)

        await self._command("offload", 0.3, effect)

    async def onload(self) -> None:
        await self._command("onload", 0.3, lambda: setattr(self, "resident", True))

    async def _command(self, name: str, seconds: float, effect: Callable[[], None], version: int | None = None) -> None:
        incarnation = self.sidecar.status_now.incarnation
        lock = self.lock

        async def run() -> None:
            async with lock:
                self._check(incarnation)
                self.busy = name
                try:
                    await self.world.at(f"trainer.{name}", seconds, lambda: self._check(incarnation))
                    self._check(incarnation)
                    effect()
                finally:
                    if self.lock is lock:
                        self.busy = None

        task = self.world.keep(run())
        await asyncio.shield(task)

    def _check(self, incarnation: str | None) -> None:
        if not self.sidecar.alive or self.sidecar.status_now.incarnation != incarnation:
            raise InfrastructureError("the trainer went away")


class EngineTwin:
    """Holds what it loaded, whatever it is told that is called."""

    def __init__(self, world: "World", sidecar: Sidecar) -> None:
        self.world, self.sidecar = world, sidecar
        sidecar.on_start = self._fresh
        self._fresh()

    def _fresh(self) -> None:
        self.content = "dummy"
        self.label: tuple[int, str] | None = None
        self.asleep = self.paused = False
        self._shares = False
        self.ready_at = self.world.now + 3

    @property
    def shares(self) -> bool:
        return self._shares and self.sidecar.alive

    async def state(self) -> EngineState | None:
        if not self.sidecar.alive or self.sidecar.hung or self.world.now < self.ready_at:
            return None
        version, checksum = self.label or (None, None)
        return EngineState(version, checksum, self.paused)

    async def load(self, manifest: Manifest, arena: Path, share: bool, beside: bool) -> None:
        assert not self.asleep, "loading into a sleeping engine"
        self.world.own("engine")
        self.label = None
        await self.world.at("engine.load", 0.5, self._check)
        if self.world.arena != (manifest.version, manifest.checksum):
            raise InfrastructureError(f"refused: the arena holds {self.world.arena}")
        self.content, self.label, self._shares = self.world.arena[1], (manifest.version, manifest.checksum), share
        self.paused = False

    async def logprobs(self, tokens: tuple[int, ...]) -> list[float]:
        await self.world.at("engine.attest", 0.2, self._check)
        return list(logprobs_of(self.content))

    async def sleep(self) -> None:
        await self.world.at("engine.sleep", 0.1, self._check)
        self.asleep, self.paused, self.content, self.label = True, True, "dummy", None

    async def wake(self) -> None:
        await self.world.at("engine.wake", 0.1, self._check)
        self.asleep = False

    async def hand_back(self) -> None:
        await self.world.at("engine.hand-back", 0.1, self._check)
        self.paused = True

    def _check(self) -> None:
        if not self.sidecar.alive:
            raise InfrastructureError("the engine went away")


class MasterTwin:
    """Runs a job of `iterations` training tasks and checks every report."""

    def __init__(self, world: "World", iterations: int) -> None:
        self.world, self.iterations = world, iterations
        self.committed = 0
        self.manifests: dict[int, Manifest] = {}
        self.reports: list[NodeReport] = []
        self.desired = NodeDesired(revision=1, phase="idle", version=0, checksum=None)
        self.changed = asyncio.Condition()
        self.refuses: Exception | None = None
        """What every call comes to."""
        self.pause = 0.0
        """Seconds that an answer takes at least."""
        self.served_since: float | None = None
        self.serving: str | None = None
        self.want_rollout()

    def want(self, **update: Any) -> None:
        wanted = NodeDesired.model_validate({**self.desired.model_dump(), "task": None, **update})
        if wanted != self.desired:
            self.desired = wanted.model_copy(update={"revision": self.desired.revision + 1})

    def want_rollout(self) -> None:
        known = self.manifests.get(self.committed)
        self.want(phase="rollout", version=self.committed, checksum=known.checksum if known else None)

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired:
        await self.world.at("master.sync", 0.005)
        self._answers()
        self._check(report)
        self.reports.append(report)
        self._advance(report)
        await asyncio.sleep(self.pause)
        if self.desired.revision == report.seen_revision:
            try:
                async with asyncio.timeout(wait):
                    async with self.changed:
                        await self.changed.wait_for(lambda: self.desired.revision != report.seen_revision)
            except TimeoutError:
                pass
        self._answers()
        return self.desired

    def _advance(self, report: NodeReport) -> None:
        new, desired = self.committed + 1, self.desired
        if desired.phase == "train":
            made = report.trained is not None and report.trained.version == new and (report.checkpointed or 0) >= new
            if made and new in self.manifests:
                self.committed = new
                self.world.checkpoints -= set(range(1, new - 1))
                self.want_rollout()
        elif desired.phase == "rollout":
            self.want_rollout()
            engine = report.engine
            serving = engine.incarnation if engine is not None and engine.routable else None
            if serving is None or serving != self.serving:
                self.served_since = self.world.now if serving else None
            self.serving = serving
            if serving:
                self.world.keep(self._generated(serving))

    async def _generated(self, serving: str) -> None:
        await self.world.at("rollout", 4.0)
        if self.serving == serving and self.desired.phase == "rollout" and self.served_since is not None:
            if self.world.now - self.served_since >= 4.0:
                self.serving = None
                self._next()

    def _next(self) -> None:
        if self.committed >= self.iterations:
            self.want(phase="stop", checksum=truth(self.committed))
        else:
            new = self.committed + 1
            self.want(phase="train", task=TrainTask(version=new, kind="rl", steps=1, iteration=new))

        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        self.world.keep(tell())

    def _check(self, report: NodeReport) -> None:
        engine = report.engine
        if engine is not None and engine.routable:
            assert engine.checksum == truth(engine.version), f"routable with {engine.checksum} for version {engine.version}"
            if self.world.sidecars["engine"].status_now.incarnation == engine.incarnation:
                held = self.world.engine
                assert held.content in (truth(engine.version), "dummy"), f"says {engine.version}, holds {held.content}"

    def _answers(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.world.now < self.world.master_away_until:
            raise MasterAway("the master does not answer")

    async def batch(self, version: int) -> bytes:
        await self.world.at("master.batch", 0.05)
        self._answers()
        return b"batch %d" % version

    async def register(self, manifest: Manifest) -> None:
        await self.world.at("master.register", 0.05)
        self._answers()
        known = self.manifests.setdefault(manifest.version, manifest)
        if known.checksum != manifest.checksum:
            raise ChecksumMismatch("other weights")

    async def addresses(self) -> NodeAddresses:
        return NodeAddresses(weights={}, held={})

    async def manifest(self, version: int) -> Manifest | None:
        await self.world.at("master.manifest", 0.05)
        self._answers()
        return self.manifests.get(version)


@dataclass
class World:
    """Everything around the agent."""

    iterations: int = 3
    policy: Literal["auto", "restart", "sleep"] = "restart"
    accelerator: Literal["cpu", "nvidia"] = "cpu"
    faults: Sequence[Fault] = ()
    checkpoints: set[int] = field(default_factory=set)
    arena: tuple[int, str] | None = None
    master_away_until: float = 0.0
    rest: dict[Owner, int] = field(default_factory=lambda: {"trainer": GiB, "engine": GiB})
    free: int = 100 * GiB
    freed: int = 0
    """What the trainer has to give back when it is offloaded."""
    claims: dict[Owner, int] = field(default_factory=lambda: {"trainer": 2 * GiB, "engine": 2 * GiB})

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.happened: list[Fault] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.owner: Owner | None = None
        self.removed = False
        self.sidecars: dict[Owner, Sidecar] = {"trainer": Sidecar(self, "trainer"), "engine": Sidecar(self, "engine")}
        self.trainer: TrainerTwin = TrainerTwin(self, self.sidecars["trainer"])
        self.engine = EngineTwin(self, self.sidecars["engine"])
        self.master = MasterTwin(self, self.iterations)
        self.agent: asyncio.Task[None] | None = None
        self.node: Node | None = None
        self.agent_dies = asyncio.Event()
        self.ids = (f"i{n}" for n in itertools.count())
        self.nvml = Nvml([IDLE_CARD], self.total())
        self.device = NvmlMemory(self.nvml)

    @property
    def now(self) -> float:
        return clock()

    def own(self, who: Owner) -> None:
        """Somebody uses the accelerator: the other must have left it."""
        if who == "trainer":
            assert not self.sidecars["engine"].alive or self.engine.paused, "both own the accelerator"
        else:
            assert not self.sidecars["trainer"].alive or not self.trainer.resident, "both own the accelerator"

    def keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        return task

    async def at(self, point: str, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        """Something takes time; half-way its fault, if it has one, happens."""
        self.counts[point] += 1
        nth = self.counts[point]
        await asyncio.sleep(seconds / 2)
        check()
        for fault in self.faults:
            if (fault.point, fault.nth) == (point, nth):
                self.happened.append(fault)
                await self._happen(fault, "engine" if point.startswith(("engine", "rollout")) else "trainer")
        await asyncio.sleep(seconds / 2)
        check()

    async def _happen(self, fault: Fault, whose: Owner) -> None:
        match fault.kind:
            case "kill":
                self.sidecars[whose].die()
            case "kill-shim":
                self.sidecars[whose].kill_shim()
            case "kill-agent":
                self.agent_dies.set()
            case "master-away":
                self.master_away_until = self.now + 7
            case "corrupt-arena":
                self.arena = None if self.arena is None else (self.arena[0], "garbage")
            case "fail":
                if not fault.point.startswith(("master", "rollout")):
                    raise InfrastructureError(f"{fault.point} failed")
            case "hang" if fault.point.startswith("master"):
                await asyncio.sleep(60)
                raise MasterAway("no answer within 60 s")
            case "hang":
                self.sidecars[whose].hung = True
                incarnation = self.sidecars[whose].status_now.incarnation
                await self.until(lambda: not self.sidecars[whose].alive or self.sidecars[whose].status_now.incarnation != incarnation)

    async def until(self, condition: Callable[[], bool]) -> None:
        while True:
            if condition():
                return
            await asyncio.sleep(0.1)

    def version(self) -> int | None:
        return self.arena[0] if self.arena else None

    def remove(self) -> None:
        self.arena, self.removed = None, True

    async def read(self, leaving: Owner) -> Reading:
        if self.accelerator == "nvidia":
            self.nvml.used = [IDLE_CARD + self.on_device("trainer") + self.on_device("engine")]
            return await self.device.read(leaving)
        sidecar = self.sidecars[leaving]
        heap = self.freed if self.trainer.resident else self.trainer.kept
        rest = self.rest[leaving] + (heap if leaving == "trainer" else 0)
        return Reading(self.free - heap, rest if sidecar.alive else 0)

    def on_device(self, owner: Owner) -> int:
        """Bytes of a device that an owner holds; a trainer has moments and NCCL's buffers there once it has made a step."""
        if not self.sidecars[owner].alive:
            return 0
        if owner == "engine":
            return self.rest[owner] if self.engine.asleep else self.claims[owner]
        return (self.claims[owner] if self.trainer.resident else self.rest[owner]) // (1 if self.trainer.has_stepped else 4)

    def total(self) -> int:
        return 100 * GiB

    def plan(self) -> Plan:
        return Plan(
            site=Site("worker", self.accelerator, self.policy), node="worker-0", engine_url="http://e", engine_argv=("--x",), engine_env={},
            trainer_env={}, model=Path("/model"), checkpoints=Path("/checkpoints"), arena=Path("/shm/weights"), deadline=60,
            gate_deadline=5, storage=30, leak_tolerance=GiB // 2, claims=self.claims,
        )  # fmt: skip

    def parts(self) -> Parts:
        return Parts(
            self.sidecars["trainer"], self.trainer, self.sidecars["engine"], self.engine, self.master, self, self, lambda: next(self.ids)
        )

    def make_node(self) -> Node:
        return Node(self.plan(), self.parts(), next(self.ids), clock)

    async def run(self, limit: float = 3600) -> None:
        """The whole job, with an agent that is started again when it is killed."""
        async with asyncio.timeout(limit):
            over = False
            while not over:
                self.node = self.make_node()
                self.agent = asyncio.create_task(self.node.run())
                dies = asyncio.create_task(self.agent_dies.wait())
                await asyncio.wait([self.agent, dies], return_when=asyncio.FIRST_COMPLETED)
                over = self.agent.done()
                if over:
                    self.agent.result()
                else:
                    self.agent_dies.clear()
                    self.agent.cancel()
                    await asyncio.wait([self.agent])
                    await asyncio.sleep(1)
                dies.cancel()
        for task in self.tasks:
            task.cancel()
            if task.done() and not task.cancelled() and isinstance(error := task.exception(), AssertionError):
                raise error


def metrics(version: int) -> TrainMetrics:
    return TrainMetrics(
        version=version, loss=0.0, grad_norm=1.0, learning_rate=1e-6, steps=1, samples=1, tokens=1, seconds=1.0, kl=0.0, logprob_gap=0.0
    )
