"""Trainers of several parallel sizes, one after the other, each as real processes over gloo. Run as a program: `shapes.py FOLDER`.

Importing Megatron takes longer than everything that is tried here, so one process imports it and forks the ranks of each size. What they
do is in `_Rank.go`: the trainer's own commands, in the order of a job. Rank 0 leaves what it saw in FOLDER/SIZE.json.
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rljob.api import RLJobSpec
from rljob.wire.batch import Batch
from rljob.wire.trainer import CheckpointCommand, LoadCommand
from rljob.wire.weights import Manifest

STEP = 1e-3
"""Learning rate of `spec`."""


@dataclass(frozen=True)
class Size:
    """Parallel sizes of a trainer; expert parallel ranks are data parallel ones."""

    tensor: int
    pipeline: int
    data: int
    expert: int = 1
    chunks: int = 1
    """Of each pipeline stage."""
    context: int = 1
    nodes: int = 1
    """Over which the ranks are spread; here all are on one machine, and each has arenas of its own."""

    @property
    def ranks(self) -> int:
        return self.tensor * self.context * self.pipeline * self.data

    def __str__(self) -> str:
        experts = f"-ep{self.expert}" if self.expert > 1 else ""
        chunks = f"x{self.chunks}" if self.chunks > 1 else ""
        context = f"-cp{self.context}" if self.context > 1 else ""
        return f"tp{self.tensor}{context}-pp{self.pipeline}{chunks}-dp{self.data}{experts}{f'-n{self.nodes}' if self.nodes > 1 else ''}"


@dataclass(frozen=True)
class Case:
    """A model and what to train it with."""

    name: str
    model: str
    """Folder."""
    spec: dict[str, Any]
    """Of the job, without parallel sizes."""
    again: bool = False
    """Make version 1 twice, to see that it is the same to the last bit."""
    task: Literal["rl", "preference"] = "rl"


@dataclass
class Seen:
    """What rank 0 saw of one case."""

    logprobs: list[float]
    """Of the canary's tokens, of version 0 in the training precision."""
    held: list[int]
    """Weights that each rank holds."""
    metrics: list[dict[str, float]]
    """Of the two training tasks."""
    checksums: dict[str, str]
    """Of the exports, by name of the file."""
    canaries: list[list[float]]
    """Of versions 0, 1, 2."""


def spec(precision: str) -> dict[str, Any]:
    """A job's spec, without parallel sizes, whose steps do not make noise large.

    With Adam's default epsilon any gradient, also one that is mere rounding, makes a full step; with a larger one its size decides.
    """
    return {
        "model": {"source": {"path": "model"}},
        "data": {"train": {"path": "train.jsonl"}},
        "algorithm": {"tau": 0.1, "stepsPerIteration": 2, "resetOptimizer": False},
        "trainer": {"precision": precision, "microBatchTokens": 64, "optimizer": {"learningRate": STEP, "epsilon": 1e-2}},
    }


def try_all(folder: Path, sizes: Sequence[Size], cases: Sequence[Case], batches: Mapping[str, Sequence[Batch]]) -> None:
    """Run this program: every case at every size, a training task for each batch of its kind. What it has seen lies in `folder` then."""
    asked = {"sizes": [astuple(size) for size in sizes], "cases": [asdict(case) for case in cases]}
    (folder / "asked.json").write_text(json.dumps(asked))
    for kind, several in batches.items():
        for batch in several:
            (folder / f"{kind}-{batch.version}").write_bytes(batch.encode())
    program = [sys.executable, "-m", "tests.trainer.shapes", str(folder)]
    done = subprocess.run(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def arenas(folder: Path, node: str) -> Path:
    """Where a node's arenas lie."""
    return folder if node == "worker-0" else folder / node


def job(spec: dict[str, Any], size: Size) -> RLJobSpec:
    """The spec of a job of this size."""
    sizes = {"tensorParallel": size.tensor, "pipelineParallel": size.pipeline, "expertParallel": size.expert}
    sizes |= {"virtualPipelineParallel": size.chunks, "contextParallel": size.context}
    return RLJobSpec.model_validate({**spec, "trainer": {**spec["trainer"], **sizes}, "accelerator": {"perNode": size.ranks}})


class _Rank:
    """One rank of one size."""

    def __init__(self, folder: Path, size: Size, before: Size | None) -> None:
        from rljob.trainer import device
        from rljob.trainer.ranks import Ranks

        self.folder, self.size, self.before = folder, size, before
        self.here = device.Cpu()
        self.here.prepare()
        self.node = f"worker-{int(os.environ['RANK']) * size.nodes // size.ranks}"
        self.ranks = Ranks.joined(device.join(self.here), self.node)
        self.checksums: dict[str, str] = {}
        self.canaries: list[list[float]] = []

    def go(self, case: Case) -> Seen:
        """Load, export in both precisions, train, checkpoint; then go on from the checkpoint that the size before has written."""
        from rljob.trainer.commands import Checkpoint, Load
        from rljob.trainer.packing import sequence_row
        from rljob.trainer.training import logprobs
        from rljob.trainer.weights import CANARY_LENGTH

        self.checksums, self.canaries = {}, []
        trainer = self._trainer(case)
        trainer.execute(Load(LoadCommand(version=0, path=case.model)))
        self._export(trainer, case, 0, torch.float32)
        self._export(trainer, case, 0, torch.bfloat16)
        found = logprobs(trainer.replica, sequence_row([(7919 * (i + 1)) % 103 for i in range(CANARY_LENGTH)])).tolist()
        metrics = [self._train(trainer, case, 1)]
        mine = self._checkpoint(case, self.size)
        trainer.execute(Checkpoint(CheckpointCommand(version=1, path=str(mine))))
        self._export(trainer, case, 1, torch.float32)
        if case.again:
            trainer.execute(Load(LoadCommand(version=0, path=case.model)))
            self._train(trainer, case, 1)
            self._export(trainer, case, 1, torch.float32, "again")
        trainer.execute(Load(LoadCommand(version=1, path=str(self._checkpoint(case, self.before) if self.before else mine))))
        metrics.append(self._train(trainer, case, 2))
        self._export(trainer, case, 2, torch.float32)
        held = [int(n) for n in self.ranks.collect(str(sum(p.numel() for _, p in trainer.replica.parameters())).encode())]
        return Seen(found, held, metrics, self.checksums, self.canaries)

    def _trainer(self, case: Case) -> Any:
        from rljob.trainer import device
        from rljob.trainer.architecture import read_architecture
        from rljob.trainer.build import build
        from rljob.trainer.loop import Trainer

        spec, model = job(case.spec, self.size), Path(case.model)
        precision = device.precision(spec.trainer.precision, self.here)
        replica = build(read_architecture(model), spec.trainer, precision, self.here, self.ranks.names)
        return Trainer(replica, self.ranks, spec, model_folder=model, scratch=self.folder, node=self.node, incarnation="test")

    def _train(self, trainer: Any, case: Case, version: int) -> dict[str, float]:
        from rljob.trainer.commands import Train
        from rljob.wire.node import TrainTask

        batch = (self.folder / f"{case.task}-{version}").read_bytes()
        made = trainer.execute(Train(TrainTask(version=version, kind=case.task, steps=2, iteration=version), batch))
        return {name: value for name, value in made.model_dump().items() if name != "seconds"}

    def _export(self, trainer: Any, case: Case, version: int, dtype: torch.dtype, suffix: str = "") -> None:
        """To a file of its own, so that it can be looked at afterwards."""
        from rljob.trainer import weights

        name = f"{self.size}.{case.name}.{version}.{str(dtype).removeprefix('torch.')}{suffix}"
        folder = arenas(self.folder, self.node)
        folder.mkdir(exist_ok=True)
        manifest = weights.export(trainer.replica, self.ranks, weights.Arena(), folder / name, version, dtype, self.node)
        if self.size.nodes > 1:
            self._fill(manifest, folder / name)
        if manifest is not None:
            (folder / f"{name}.manifest").write_text(manifest.model_dump_json())
            self.checksums[name.removeprefix(f"{self.size}.{case.name}.")] = manifest.checksum
            if dtype == torch.float32:
                self.canaries.append(list(manifest.canary.logprobs))

    def _fill(self, manifest: Manifest | None, arena: Path) -> None:
        """What the agents of all nodes do next; here each node's first rank does it."""
        from rljob.checkpoint_engine.fill import Filler
        from rljob.checkpoint_engine.transport import HttpTransport
        from rljob.checkpoint_engine.weight_server import Shelf, WeightServer

        shelf = Shelf(arena)
        server = WeightServer(shelf, "127.0.0.1")
        told = self.ranks.collect(f"http://127.0.0.1:{server.port}".encode())
        first = {node: told[self.ranks.names.index(node)].decode() for node in self.ranks.nodes}

        async def sources() -> dict[str, str]:
            return first

        with self.ranks.together():
            if manifest is not None:
                filler = Filler(HttpTransport(60), shelf, arena, self.node, patience=240, pause=0.05)
                asyncio.run(filler.fill(manifest, sources, lambda progress: None))
        server.close()

    def _checkpoint(self, case: Case, size: Size) -> Path:
        return self.folder / f"{size}.{case.name}.checkpoint"


def main(folder: Path) -> None:
    """Do every case at every size. Exits with 1 if a rank failed; its traceback is on stderr."""
    asked = json.loads((folder / "asked.json").read_text())
    sizes, cases = [Size(*s) for s in asked["sizes"]], [Case(**c) for c in asked["cases"]]
    from rljob.trainer import device
    from rljob.trainer.main import _quieten_libraries

    _quieten_libraries()
    device.Cpu().prepare()
    # What takes long to import, once for all ranks; the compiler, because every optimizer asks not to be compiled.
    import torch._dynamo  # noqa: F401

    from rljob.trainer import loop, policy  # noqa: F401

    before = None
    for size in sizes:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        ranks = [_fork(folder, size, before, cases, rank, port) for rank in range(size.ranks)]
        if any(os.waitpid(pid, 0)[1] for pid in ranks):
            sys.exit(1)
        before = size


def _fork(folder: Path, size: Size, before: Size | None, cases: list[Case], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    failed = 1
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size.ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        mine = _Rank(folder, size, before)
        seen = {case.name: asdict(mine.go(case)) for case in cases}
        if rank == 0:
            (folder / f"{size}.json").write_text(json.dumps(seen))
        failed = 0
    except Exception:  # the boundary of this process
        logging.exception("rank %d of %s failed", rank, size)
    finally:
        sys.stderr.flush()
        os._exit(failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
