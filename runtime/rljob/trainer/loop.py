"""The trainer's life: wait for a command, do it, answer. The table of contents of this folder."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from rljob.api import InfrastructureError, RLJobError, RLJobSpec
from rljob.checkpoint_engine.arena import TensorFile, WeightsRefused, verify_manifest
from rljob.checkpoint_engine.draft import part_of
from rljob.trainer import checkpoint, preferences, weights
from rljob.trainer.build import Replica
from rljob.trainer.commands import Checkpoint, Command, Export, Load, Offload, Onload, Train, WrongState, decode, encode, name
from rljob.trainer.offload import Offloader
from rljob.trainer.ranks import Ranks
from rljob.trainer.training import train
from rljob.wire.base import Message
from rljob.wire.batch import Batch
from rljob.wire.node import Progress, TrainMetrics, TrainTask
from rljob.wire.trainer import TrainerStatus
from rljob.wire.weights import Manifest

log = logging.getLogger(__name__)


class Board(Protocol):
    """Where rank 0 gets commands and shows its status; the server, or a list in a test."""

    def next(self) -> Command:
        """Wait for the next command."""

    def show(self, status: TrainerStatus) -> None:
        """Replace the status."""

    def answer(self, outcome: Message | Exception) -> None:
        """Answer the command that `next` returned."""


@dataclass(frozen=True)
class Held:
    """What this rank holds."""

    version: int | None = None
    checksum: str | None = None
    """Of the fp32 weights, if they are those of a checkpoint."""
    exported: int | None = None
    checkpointed: int | None = None
    trained: TrainMetrics | None = None
    manifest: Manifest | None = None
    """Of the newest export."""


class Trainer:
    """One rank: what it holds and how each command changes it."""

    def __init__(
        self,
        replica: Replica,
        ranks: Ranks,
        spec: RLJobSpec,
        *,
        model_folder: Path,
        scratch: Path,
        node: str,
        incarnation: str,
        arenas: Path | None = None,
    ) -> None:
        """`scratch` may hold the offloaded state; `arenas` is where this node has its arena, if that may be elsewhere than at rank 0's."""
        self.replica, self.ranks, self.spec = replica, ranks, spec
        self.model_folder, self.node, self.incarnation, self._arenas = model_folder, node, incarnation, arenas
        self.held = Held()
        self.offloader = Offloader(replica, scratch)
        self.arena = weights.Arena()
        self._freed = 0
        self.report: Callable[[int, int], None] = lambda done, total: None

    def status(self, busy: str | None = None, progress: Progress | None = None, error: str | None = None) -> TrainerStatus:
        h = self.held
        return TrainerStatus(
            incarnation=self.incarnation,
            version=h.version,
            resident=self.offloader.resident,
            freed=0 if self.offloader.resident else self._freed,
            busy=busy,
            progress=progress,
            exported=h.exported,
            checkpointed=h.checkpointed,
            error=error,
            trained=h.trained,
        )

    def refuse(self, command: Command) -> None:
        """Raises WrongState if the command does not fit what is held. Every rank comes to the same result."""
        held = self.held.version
        match command:
            case Train(task) if held not in (task.version, task.version - 1):
                raise WrongState(f"holds version {held}; a task for version {task.version} needs version {task.version - 1}: load it first")
            case Train(task) if held == task.version and self._result(task.version) is None:
                raise WrongState(f"holds version {held} but not the result of the task that made it: load version {task.version - 1}")
            case Train(task, blob) if held != task.version and (found := Batch.version_of(blob)) != task.version:
                raise WrongState(f"the batch is for version {found}, the task for version {task.version}")
            case Export(body) | Checkpoint(body) if held != body.version:
                raise WrongState(f"holds version {held}, not {body.version}: load it first")
        if isinstance(command, Train | Export) and not self.offloader.resident and self.fulfilled(command) is None:
            raise WrongState(f"cannot {name(command)} while offloaded: onload first")

    def fulfilled(self, command: Command) -> Message | None:
        """The answer to a command that has nothing left to do. For a node's first rank, which answers without bothering the others."""
        match command:
            case Train(task) if self.held.version == task.version:
                return self._result(task.version)
            case Checkpoint(body):
                return self.status() if self._already_at(Path(body.path)) else None
            case Export(body) if not self.offloader.resident or len(self.ranks.nodes) > 1:  # other nodes are filling from it
                return self._still_exported(body.version, self._here(body.arena))
        return None

    def _already_at(self, folder: Path) -> bool:
        """Whether this is a checkpoint of what is held; a damaged one is none, and is written anew."""
        try:
            record = checkpoint.read_record(folder)
        except InfrastructureError:
            return False
        return record is not None and (record.version, record.checksum) == (self.held.version, self.held.checksum)

    def _here(self, arena: str) -> Path:
        """This node's arena of that name; a command names the one of the node that asked."""
        return self._arenas / Path(arena).name if self._arenas is not None and len(self.ranks.nodes) > 1 else Path(arena)

    def _still_exported(self, version: int, arena: Path) -> Manifest | None:
        """The manifest of an export whose arena is untouched."""
        manifest = self.held.manifest
        if manifest is None or manifest.version != version or not arena.exists():
            return None
        with TensorFile.open(arena) as file:
            part = len(self.ranks.nodes) > 1 and file.metadata == part_of(manifest)  # which the node agent fills, and checks
            try:
                verify_manifest(manifest, file, contents=not part, part=part)
            except WeightsRefused:
                return None
        return manifest

    def execute(self, command: Command) -> Message | None:
        """Do it, on every rank. Rank 0 gets the answer, of an export every node's first rank; others possibly None."""
        match command:
            case Load(body):
                self._load(body.version, Path(body.path))
            case Train(task, blob):
                return self._train(task, Batch.decode(blob))
            case Export(body):
                return self._export(body.version, self._here(body.arena))
            case Checkpoint(body):
                self._checkpoint(body.version, Path(body.path))
            case Offload(body):
                with self.ranks.together():
                    self.offloader.offload(body.keep_freed)
                self._freed = self.ranks.total(self.offloader.freed)
            case Onload():
                self.offloader.onload()
        return self.status()

    def _result(self, version: int) -> TrainMetrics | None:
        trained = self.held.trained
        return trained if trained is not None and trained.version == version else None

    def _load(self, version: int, folder: Path) -> None:
        with self.ranks.together():
            record = checkpoint.read_record(folder)
            if record is not None and record.version != version:
                raise WrongState(f"{folder} holds version {record.version}, not {version}")
            if record is not None and self.ranks.leads:
                checkpoint.verify(folder, record)
        self.held = replace(self.held, version=None, checksum=None, manifest=None)
        with self.ranks.together():
            self.offloader.onload(contents=False)
            weights.load(self.replica, folder)
            if record is None:
                self.replica.optimizer.reset()
            else:
                checkpoint.load_moments(self.replica, folder, record)
        if record is None:
            self.held = replace(self.held, version=version)
        else:
            self.held = replace(self.held, version=version, checksum=record.checksum, checkpointed=version, trained=record.trained)

    def _train(self, task: TrainTask, batch: Batch) -> TrainMetrics:
        # Until it is made it is neither the old nor the new version.
        self.held = replace(self.held, version=None, checksum=None, manifest=None)
        make = preferences.train if task.kind == "preference" else train
        metrics = make(self.replica, self.spec, task, batch, self.report)
        self.held = replace(self.held, version=task.version, trained=metrics)
        return metrics

    def _export(self, version: int, path: Path) -> Manifest | None:
        dtype = torch.float32 if self.spec.engine_dtype == "float32" else torch.bfloat16
        manifest = weights.export(self.replica, self.ranks, self.arena, path, version, dtype, self.node)
        self.held = replace(self.held, exported=version, manifest=manifest)
        return manifest

    def _checkpoint(self, version: int, folder: Path) -> None:
        trained = self._result(version)
        where = self.offloader.view
        record = checkpoint.save(self.replica, self.ranks, folder, version, trained, self.model_folder, self.incarnation, where)
        self.held = replace(self.held, checkpointed=version, checksum=record.checksum if record else None)


def lead(trainer: Trainer, board: Board) -> None:
    """Rank 0: take commands, share them with the other ranks, answer. Never returns."""
    error: str | None = None
    while True:
        board.show(trainer.status(error=error))
        command = board.next()
        outcome, error = carry_out(trainer, board.show, command, partial(_with_all, trainer, command))
        board.show(trainer.status(error=error))
        board.answer(outcome)
        end_if_apart(trainer.ranks, outcome)


def _with_all(trainer: Trainer, command: Command) -> Message | None:
    """Do it on all ranks, if there is something left to do."""
    trainer.refuse(command)
    done = trainer.fulfilled(command)
    if done is not None:
        return done
    trainer.ranks.share(encode(command))
    return trainer.execute(command)


def carry_out(
    trainer: Trainer, show: Callable[[TrainerStatus], None], command: Command, do: Callable[[], Message | None]
) -> tuple[Message | Exception, str | None]:
    """Have `do` do the command, and show how far it is; the answer, and the error to show if it is one."""
    busy, started, error = name(command), time.monotonic(), None
    show(trainer.status(busy))
    trainer.report = lambda done, total: show(trainer.status(busy, Progress(done=done, total=total)))
    try:
        outcome: Message | Exception | None = do()
    except (RLJobError, WrongState) as failure:
        outcome, error = failure, str(failure)
    except Exception as failure:  # the boundary of this process: a command's failure is its answer
        log.exception("%s failed", busy)
        outcome, error = failure, f"{type(failure).__name__}: {failure}"
    log.info("%s: %.2f s, version %s%s", busy, time.monotonic() - started, trainer.held.version, f", {error}" if error else "")
    return outcome if outcome is not None else trainer.status(), error


def follow(trainer: Trainer) -> None:
    """Other ranks: do what rank 0 shares. Never returns; ends with an exception when rank 0 is gone."""
    while True:
        command = decode(trainer.ranks.share(None))
        try:
            trainer.execute(command)
        except (RLJobError, WrongState) as failure:
            log.error("%s: %s", name(command), failure)  # all ranks have failed together, rank 0 answers


def end_if_apart(ranks: Ranks, outcome: object) -> None:
    """End this process if ranks did not agree on a failure: they are no longer in the same state, and only a new start helps."""
    if ranks.size > 1 and isinstance(outcome, Exception) and not isinstance(outcome, RLJobError | WrongState):
        log.error("ranks may have come apart; ending, to be started again")
        sys.exit(1)
