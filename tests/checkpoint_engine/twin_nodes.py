"""Two worker nodes in memory whose trainers are one: each with an agent, an arena and an engine of its own (`twins`), and one master.

The trainers follow `trainer.presence` and `trainer.nodes`: they begin and end together, rank 0 shares what its agent asks for, and the
other does it once its own agent has asked for the same. Each writes a part of the arena. A filler brings the rest, or another node gives
all of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.checkpoint_engine.twins import Fault, MasterTwin, Sidecar, TrainerTwin, World, manifest_of, truth
from tests.master.virtual import clock

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.act import Parts, Plan
from rljob.checkpoint_engine.outcome import ChecksumMismatch, FillFailed, MasterAway, WrongState
from rljob.checkpoint_engine.pull import HOPELESS, PullFailed
from rljob.wire.node import NodeAddresses, NodeDesired, NodeReport, Progress, TrainTask
from rljob.wire.pieces import HEARTBEAT
from rljob.wire.trainer import ExportCommand
from rljob.wire.weights import Manifest

PATIENCE = 60.0
TICK = 0.1
SERVES = 4.0
"""Seconds that all nodes have to serve before the next version is trained."""


@dataclass
class Asked:
    """What an agent wants of its node's trainer."""

    name: str
    version: int | None
    seconds: float
    effect: Callable[[], None]
    answer: asyncio.Future[None]

    @property
    def subject(self) -> tuple[str, int | None]:
        return self.name, self.version

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # an agent that was killed does not ask for it


class Group:
    """The ranks of both nodes."""

    def __init__(self) -> None:
        self.trainers: list[NodeTrainer] = []
        self.begun: list[str | None] | None = None
        """Incarnations that are together."""
        self.shared: Asked | None = None
        """What rank 0 does, or waits for the other to be asked for."""
        self.queue: list[Asked] = []
        self.asked: Asked | None = None
        """What the agent of the second node wants."""
        self.later: list[Asked] = []
        """What it asked for while its trainer was at something."""
        self.doing = False

    def ask(self, trainer: "NodeTrainer", asked: Asked) -> None:
        if trainer is self.trainers[0]:
            self.queue.append(asked)
            return
        if self.doing:
            self.later.append(asked)
            return
        if not trainer.has_to(asked):
            return
        if self.asked is not None:
            self.asked.fail(WrongState(f"asked to {asked.name} meanwhile"))
        self.asked = asked

    def busy(self, trainer: "NodeTrainer") -> str | None:
        first = trainer is self.trainers[0]
        at = (self.shared or next(iter(self.queue), None)) if first else self.asked
        return at.name if at is not None else None

    async def run(self) -> None:
        """Presence and commands, until cancelled."""
        work: asyncio.Task[None] | None = None
        while True:
            together = [t.incarnation() for t in self.trainers]
            if self.begun is None and None not in together:
                await asyncio.sleep(5)
                self.begun = together if together == [t.incarnation() for t in self.trainers] else None
            elif self.begun is not None and together != self.begun:
                if work is not None:
                    work.cancel()
                self._end()
            if self.begun is not None and (work is None or work.done()) and self._agree():
                work = asyncio.create_task(self._do())
            await asyncio.sleep(TICK)

    def _end(self) -> None:
        for trainer, incarnation in zip(self.trainers, self.begun or [], strict=True):
            if trainer.incarnation() == incarnation:
                trainer.sidecar.die(1)
        for asked in [*self.queue, *self.later, self.shared, self.asked]:
            if asked is not None:
                asked.fail(InfrastructureError("the trainer went away"))
        self.queue, self.later, self.shared, self.asked, self.begun, self.doing = [], [], None, None, None, False

    def _agree(self) -> bool:
        """Whether there is something that both nodes' agents have asked for."""
        if self.shared is None and self.queue:
            self.shared = self.queue.pop(0)
            if not self.trainers[0].has_to(self.shared):
                self.shared = None
        if self.shared is None or self.asked is None:
            return False
        if self.shared.subject != self.asked.subject:
            self.asked.fail(WrongState(f"the other wants to {self.shared.name}, this one to {self.asked.name}"))
            self.asked = None
            return False
        return True

    async def _do(self) -> None:
        one, other = self.shared, self.asked
        assert one is not None
        assert other is not None
        self.doing = True
        steps = [t.world.at(f"trainer.{asked.name}", asked.seconds, t.alive) for t, asked in zip(self.trainers, (one, other), strict=True)]
        failed = [error for error in await asyncio.gather(*steps, return_exceptions=True) if isinstance(error, BaseException)]
        for asked in (one, other):
            if failed:
                asked.fail(InfrastructureError(str(failed[0])))
            else:
                asked.effect()
        self.shared = self.asked = None
        self.doing, later, self.later = False, self.later, []
        for asked in (one, other):
            if not asked.answer.done():
                asked.answer.set_result(None)
        for asked in later:
            self.ask(self.trainers[1], asked)


class NodeTrainer(TrainerTwin):
    """A node's first rank."""

    world: "NodeWorld"

    def __init__(self, world: "NodeWorld", sidecar: Sidecar, group: Group) -> None:
        self.group = group
        super().__init__(world, sidecar)
        group.trainers.append(self)

    def _fresh(self) -> None:
        super()._fresh()
        self.exported: int | None = None

    def incarnation(self) -> str | None:
        return self.sidecar.status_now.incarnation if self.sidecar.alive else None

    def alive(self) -> None:
        self._check(self.incarnation())

    async def status(self) -> Any:
        together = self.group.begun is not None and self.incarnation() in self.group.begun
        self.busy = self.group.busy(self) if together else None
        return await super().status() if together else None

    async def export(self, command: ExportCommand) -> Manifest:
        world, version = self.world, command.version

        def effect() -> None:
            assert self.resident
            assert not world.engine.shares, "the arena is written while an engine reads it in place"
            world.arena, world.part = None, (version, self.content)
            self.exported = version

        await self._command("export", 0.5, effect, version)
        return manifest_of(version, truth(version))

    def has_to(self, asked: Asked) -> bool:
        """False if it was answered at once: it is done, or cannot be."""
        wanted, held = asked.version, self.version
        done = {
            "train": held == wanted and self.trained is not None and self.trained.version == wanted,
            "checkpoint": wanted in self.world.checkpoints and held == wanted,
            "export": held == wanted == self.exported and (wanted, self.content) in (self.world.arena, self.world.part),
        }
        if done.get(asked.name, False):
            asked.answer.set_result(None)
            return False
        lacks = asked.name in ("export", "checkpoint") and held != wanted
        if lacks or (asked.name in ("export", "train") and not self.resident):
            asked.fail(WrongState(f"cannot {asked.name} {wanted} with {held}"))
            return False
        return True

    async def _command(self, name: str, seconds: float, effect: Callable[[], None], version: int | None = None) -> None:
        def changes() -> None:
            self.exported = None if name in ("load", "train") else self.exported
            effect()

        if self.group.begun is None or self.incarnation() not in self.group.begun:
            raise InfrastructureError("the trainer does not answer")
        asked = Asked(name, version, seconds, changes, asyncio.get_running_loop().create_future())
        self.group.ask(self, asked)
        await asyncio.shield(asked.answer)


class NodeWorld(World):
    """What is around one node's agent."""

    def __init__(self, pair: "Pair", name: str, faults: Sequence[Fault]) -> None:
        self.pair, self.name = pair, name
        self.part: tuple[int, str] | None = None
        """What the node's own ranks have written."""
        self.gives: tuple[int, str] | None = None
        """The part that it offers to the other while it fills its arena."""
        super().__init__(iterations=pair.iterations, faults=faults, checkpoints=pair.checkpoints)
        self.trainer = NodeTrainer(self, self.sidecars["trainer"], pair.group)
        self.master = NodeMaster(self, pair)

    def plan(self) -> Plan:
        plan = super().plan()
        return replace(plan, site=replace(plan.site, nodes=2), node=self.name, weights_url=f"http://{self.name}")

    def parts(self) -> Parts:
        return replace(super().parts(), peers=self, filler=self)

    @property
    def other(self) -> "NodeWorld":
        return next(world for world in self.pair.worlds if world is not self)

    async def fill(
        self, manifest: Manifest, sources: Callable[[], Awaitable[Mapping[str, str]]], publish: Callable[[Progress | None], None]
    ) -> None:
        label = (manifest.version, manifest.checksum)
        if self.arena == label:
            return
        addresses = await sources()
        if self.part != label:
            raise InfrastructureError("not this node's part: export again")
        if self.other.name not in addresses:
            raise FillFailed("nobody knows the address of the other node")
        self.gives, since = label, self.now
        try:
            while label not in (self.other.gives, self.other.arena):
                if self.now - since > PATIENCE:
                    raise FillFailed("the other node's part did not come")
                await asyncio.sleep(HEARTBEAT)
            try:
                await self.at("trainer.fill", self.pair.fill)
            except InfrastructureError as error:
                raise FillFailed(str(error)) from error
            if self.part != label:
                raise InfrastructureError("the arena was written meanwhile")
            self.arena, self.part = label, None
            await asyncio.sleep(HEARTBEAT)  # the other is at most so much later
        finally:
            self.gives = None

    async def pull(self, version: int, checksum: str | None, publish: Callable[[Progress | None], None]) -> Manifest | None:
        manifest = await self.master.manifest(version)
        if manifest is None or checksum not in (None, manifest.checksum):
            await asyncio.sleep(HEARTBEAT)
            return None
        since = self.now
        while self.other.arena != (version, manifest.checksum):
            if self.pair.desired.version != version:
                return None
            if self.now - since > HOPELESS:
                raise PullFailed("nobody is left who has it")
            await asyncio.sleep(HEARTBEAT)
        await self.at("trainer.pull", 1.0)
        self.pair.pulls.append((self.name, version))
        self.arena = (version, manifest.checksum)
        return manifest

    async def _happen(self, fault: Fault, whose: Any) -> None:
        match fault.kind:
            case "lose-arena":
                self.arena = self.part = None
            case "master-forgets":
                self.pair.forget()
            case _:
                await super()._happen(fault, whose)


class NodeMaster(MasterTwin):
    """The one master, as one node's agent hears it: its faults are that node's."""

    world: NodeWorld

    def __init__(self, world: NodeWorld, pair: "Pair") -> None:
        self.pair = pair
        super().__init__(world, pair.iterations)
        self.manifests = pair.manifests

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired:
        await self.world.at("master.sync", 0.005)
        self._answers()
        self._check(report)
        self.reports.append(report)
        self.pair.hear(report)
        epoch, revision = self.pair.epoch, report.seen_revision
        try:
            async with asyncio.timeout(wait):
                async with self.pair.changed:
                    await self.pair.changed.wait_for(lambda: self.pair.desired.revision != revision or self.pair.epoch != epoch)
        except TimeoutError:
            pass
        self._answers()
        if self.pair.epoch != epoch:
            raise MasterAway("the connection broke")
        return self.pair.desired

    async def addresses(self) -> NodeAddresses:
        await self.world.at("master.addresses", 0.005)
        self._answers()
        reports = self.pair.reports
        return NodeAddresses(
            weights={name: r.weights_url for name, r in reports.items()},
            held={name: r.weights.version for name, r in reports.items() if r.weights is not None},
        )

    async def register(self, manifest: Manifest) -> None:
        await super().register(manifest)
        if manifest.checksum != truth(manifest.version):
            raise ChecksumMismatch("other weights")


class Pair:
    """Two nodes, the trainer that they share, and a job of `iterations` training tasks. Each time both nodes have to serve."""

    def __init__(self, iterations: int = 2, faults: Sequence[tuple[int, Fault]] = (), late: float = 0.0, fill: float = 0.5) -> None:
        """
        Args:
            faults: with the number of the node where it happens.
            late: seconds after which the second node's agent begins.
            fill: seconds that it takes to fill an arena.
        """
        self.iterations, self.late, self.fill = iterations, late, fill
        self.checkpoints: set[int] = set()
        self.group = Group()
        self.manifests: dict[int, Manifest] = {}
        self.reports: dict[str, NodeReport] = {}
        self.pulls: list[tuple[str, int]] = []
        self.committed = self.epoch = 0
        self.serving: dict[str, str] = {}
        self.since = 0.0
        self.changed = asyncio.Condition()
        self.desired = NodeDesired(revision=1, phase="rollout", version=0, checksum=None)
        self.worlds = [NodeWorld(self, f"worker-{i}", [f for node, f in faults if node == i]) for i in (0, 1)]

    def want(self, **update: Any) -> None:
        wanted = NodeDesired.model_validate({**self.desired.model_dump(), "task": None, **update})
        if wanted != self.desired:
            self.desired = wanted.model_copy(update={"revision": self.desired.revision + 1})
            self._tell()

    def forget(self) -> None:
        """The master is started again: it knows what is durable, and no node."""
        self.reports.clear()
        self.epoch += 1
        self._tell()

    def hear(self, report: NodeReport) -> None:
        self.reports[report.node] = report

    async def drive(self) -> None:
        """What the job's loop does; until cancelled."""
        while True:
            match self.desired.phase:
                case "train":
                    self._commit()
                case "rollout":
                    known = self.manifests.get(self.committed)
                    self.want(phase="rollout", version=self.committed, checksum=known.checksum if known else None)
                    self._serve()
            await asyncio.sleep(TICK)

    def _commit(self) -> None:
        new = self.committed + 1
        made = [
            r for r in self.reports.values()
            if r.step == "idle" and (r.checkpointed or 0) >= new and r.trained is not None and r.trained.version == new
        ]  # fmt: skip
        if made and new in self.manifests:
            self.committed = new
            self.want(phase="rollout", version=new, checksum=self.manifests[new].checksum)

    def _serve(self) -> None:
        serving = {name: r.engine.incarnation for name, r in self.reports.items() if r.engine is not None and r.engine.routable}
        if serving != self.serving:
            self.serving, self.since = serving, clock()
        if len(serving) < 2 or clock() - self.since < SERVES:
            return
        self.serving = {}
        if self.committed >= self.iterations:
            self.want(phase="stop")
        else:
            new = self.committed + 1
            self.want(phase="train", task=TrainTask(version=new, kind="rl", steps=1, iteration=new))

    def _tell(self) -> None:
        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        self.worlds[0].keep(tell())

    async def run(self) -> None:
        """The whole job."""
        beside: list[Coroutine[Any, Any, None]] = [self.group.run(), self.drive()]
        tasks = [asyncio.create_task(each) for each in beside]
        agents = asyncio.gather(*(self._agent(i) for i in (0, 1)))
        every: list[asyncio.Future[Any]] = [*tasks, agents]
        done, _ = await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for each in done:
            each.result()

    async def _agent(self, index: int) -> None:
        await asyncio.sleep(self.late * index)
        await self.worlds[index].run()
