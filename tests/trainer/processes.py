"""A trainer as processes, one per rank, and a client of its HTTP interface."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from rljob.api import RLJobSpec
from rljob.wire.batch import Batch
from rljob.wire.node import TrainTask
from rljob.wire.trainer import TASK_HEADER, TrainerStatus
from rljob.wire.weights import Manifest

DEADLINE = 120


class Client:
    """What a node agent does."""

    def __init__(self, socket: Path, checkpoints: Path, shm: Path) -> None:
        self.http = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://trainer", timeout=DEADLINE)
        self.checkpoints, self.shm = checkpoints, shm

    def status(self) -> TrainerStatus:
        return TrainerStatus.model_validate_json(self.http.get("/v1/status").content)

    def post(self, command: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/{command}", content=json.dumps(body))

    def do(self, command: str, **body: Any) -> httpx.Response:
        answer = self.post(command, **body)
        assert answer.status_code == 200, answer.text
        return answer

    def train(self, batch: Batch, **task: Any) -> httpx.Response:
        wanted = TrainTask(**{"version": batch.version, "kind": "rl", "steps": 1, "iteration": 1, **task})
        return self.http.post("/v1/train", content=batch.encode(), headers={TASK_HEADER: wanted.model_dump_json()})

    def export(self, version: int) -> Manifest:
        return Manifest.model_validate_json(self.do("export", version=version, arena=str(self.shm / "arena")).content)


@contextmanager
def trainer(folder: Path, model: Path, spec: RLJobSpec, port: int) -> Iterator[tuple[Client, list[subprocess.Popen[bytes]]]]:
    """All ranks of a job as processes; `folder` keeps checkpoints, shared memory and logs."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="rlj") as sockets:  # short, unix sockets' names are limited
        for name in ("checkpoints", "shm"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        job = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "test"}, "spec": spec.model_dump(mode="json")}
        (folder / "job.json").write_text(json.dumps(job))
        common = {
            **os.environ, "RLJOB_JOB": str(folder / "job.json"), "RLJOB_NODE": "worker-0", "RLJOB_DIR_MODEL": str(model),
            "RLJOB_DIR_CACHE": str(folder / "cache"), "RLJOB_DIR_CHECKPOINTS": str(folder / "checkpoints"),
            "RLJOB_DIR_SHM": str(folder / "shm"), "RLJOB_DIR_SOCKETS": sockets,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(spec.world_size), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes = []
        for rank in range(spec.world_size):
            log = stack.enter_context((folder / f"rank-{rank}.log").open("ab"))
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen([sys.executable, "-m", "rljob.trainer"], env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        client = Client(Path(sockets) / "trainer.sock", folder / "checkpoints", folder / "shm")
        _wait_until_ready(client, processes, folder)
        yield client, processes


def _wait_until_ready(client: Client, processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert all(p.poll() is None for p in processes), (folder / "rank-0.log").read_text()
        try:
            if client.status().busy is None:
                return
        except httpx.TransportError:
            pass  # not listening yet
        select.select([], [], [], 0.05)
    raise AssertionError((folder / "rank-0.log").read_text())
