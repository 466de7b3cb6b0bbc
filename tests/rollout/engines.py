"""A zygote and its engines as the shim would drive them, in blocking calls."""

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from rljob.api import RLJob
from rljob.rollout.client import EngineClient
from rljob.rollout.engine import engine_argv, engine_environment, zygote_environment
from rljob.rollout.zygote import session_members
from rljob.wire.data import Prepared

PREPARED = Prepared(
    model_type="llama", eos_token_ids=(2,), vocab_size=192, context_length=2048, max_length=1024,
    parameters=1, train=1, heldout=0, warmstart=0, digest="",
)  # fmt: skip
JOB = RLJob.model_validate(
    {
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "engine-test"},
        "spec": {
            "model": {"source": {"path": "model"}},
            "data": {"train": {"path": "train.jsonl"}},
            "rollout": {"engine": {"maxSequences": 8}},
        },
    }
)


@dataclass
class Zygote:
    """What the shim does with a zygote, in blocking calls."""

    process: "subprocess.Popen[str]"
    log: Path
    engines: list[int] = field(default_factory=list)

    @property
    def pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.pipes[1].readline())
        return answer

    def say(self, line: str) -> dict[str, Any]:
        self.pipes[0].write(line + "\n")
        self.pipes[0].flush()
        return self.hear()

    def start(self, model: Path, job: RLJob = JOB) -> tuple[int, str]:
        """Process id and address of a new engine, once it is healthy."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv = engine_argv(job, PREPARED, model, "127.0.0.1", port)
        pid = int(self.say(json.dumps({"start": {"argv": argv, "env": engine_environment(job), "log": str(self.log)}}))["started"])
        self.engines.append(pid)
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 90
        while not ask(url, EngineClient.healthy):
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            assert session_members(pid), self.log.read_text()[-4000:]
            select.select([], [], [], 0.05)
        return pid, url


def ask[T](url: str, question: Callable[[EngineClient], Awaitable[T]]) -> T:
    async def asking() -> T:
        async with httpx.AsyncClient(verify=False) as http:  # without certificates: they take 20 times as long as the question
            return await question(EngineClient(url, http))

    return asyncio.run(asking())


def start_zygote(folder: Path) -> Zygote:
    environment = zygote_environment(JOB, {**os.environ, "OMP_NUM_THREADS": "1", "MARK": str(folder)})
    process = subprocess.Popen(
        [sys.executable, "-m", "rljob.rollout.zygote"], env=environment, text=True, cwd=folder,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "zygote.log").open("w"),
    )  # fmt: skip
    zygote = Zygote(process, folder / "engine.log")
    assert zygote.hear().keys() == {"ready"}
    return zygote
