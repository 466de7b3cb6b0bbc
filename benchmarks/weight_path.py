"""From the trainer's memory to a proven engine, against a memcpy of the same bytes.

    python benchmarks/weight_path.py [--rounds 5] [--small] [--json]

A real trainer replica (Megatron-core, one rank, fp32) of half a billion random weights (2 GiB; `--small`: the main example's shape, 513
MiB, where fixed costs weigh more). A round makes a version and takes the way that the node agent takes, with the product's own code:
*export* (`trainer.weights.export`: copy into the warm arena under Hugging Face's names, query, key and value regrouped, checksum of every
tensor, and the canary's forward pass), *register* (the manifest as JSON, parsed and checked as the master does), *load* (the engine
verifies every byte and takes the weights where they lie), *attest* (version, checksum, and log-probs of the canary by the engine's own
forward pass). `share_of_memcpy` is the time of one memcpy(3) of all the weights, in one thread into the warm arena in the same round,
divided by the sum; both are the median round's.

`export_load_share` is the same for the bytes alone: one memcpy's time divided by that of *write* and load together. *write* is what export
does but for the canary's pass, which is half of the proof; it is done once more by itself in the same round.

`share_of_floor` holds the way against what its passes over the bytes would take if each did nothing else, in the same round: one copy
(memcpy in all threads) and `READS` readings (a sum of the arena's words in all threads): the trainer's canary, the engine's checksums, the
engine's canary. `floor_share_of_memcpy` is the best `share_of_memcpy` that any way of so many passes could reach on this machine.

One engine runs all the time; a first round, in which it maps the arena and meets its
first request, is left out (what a fresh engine needs is part of its start: `phase_switch.py`).
"""

import argparse
import asyncio
import ctypes
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from _bars import add_bar_column, bars
from _engine import HALF_BILLION, SMOLLM2, Shape, Zygote, free_port, job, processor, shared_memory, until_healthy, write_config
from rich.console import Console
from rich.table import Table

from rljob.checkpoint_engine.act import attest
from rljob.checkpoint_engine.arena import TensorFile, verify_manifest
from rljob.checkpoint_engine.clients import HttpEngine
from rljob.rollout.client import EngineClient
from rljob.wire.weights import Manifest

STAGES = ("export", "register", "load", "attest")
READS = 3
"""Passes over all bytes beside the copy."""


class Clock:
    """Seconds by stage of one round."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - began


class Trainer:
    """One rank of the trainer, in this process, with random weights."""

    def __init__(self, folder: Path, path: Path) -> None:
        """Threads and allocator are set as the trainer's process sets them (`rljob.trainer.main`)."""
        from rljob.trainer import device, weights
        from rljob.trainer.architecture import read_architecture
        from rljob.trainer.ranks import Ranks

        here = device.Cpu()
        here.prepare()
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        self.ranks = Ranks(device.join(here))
        from rljob.trainer.build import build

        spec = job("float32").spec.trainer
        self.replica = build(read_architecture(folder), spec, "fp32", here)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, master in self.replica.masters().items():
                master.fill_(1.0) if "norm" in name else master.uniform_(-0.05, 0.05)
        self._weights, self._arena, self.path = weights, weights.Arena(), path

    def nudge(self) -> None:
        """What an optimizer step does to the weights, as far as it matters here: every one is another, and has just been written."""
        with torch.no_grad():
            for name, master in self.replica.masters().items():
                if "norm" not in name:
                    master.mul_(1.0001)

    def export(self, version: int) -> Manifest:
        """As the trainer does."""
        manifest = self._weights.export(self.replica, self.ranks, self._arena, self.path, version, torch.float32, "bench")
        if manifest is None:
            raise RuntimeError("unreachable: this is the leading rank")
        return manifest

    def write(self) -> None:
        """What export does with the bytes: copy, regroup, checksums."""
        layout = self._weights.layout(self.replica, torch.float32)
        file = self._arena.file(self.replica, self.ranks, self.path, layout)
        self._weights.write(file, self.replica, self.replica.masters())

    def bare_seconds(self, file: TensorFile) -> dict[str, float]:
        """The best of three of each: one copy of as many bytes as the weights have, one call of the C library, warm memory on both sides;
        the same in all threads; reading them in all threads."""
        source: Any = self.replica.chunks[0].ddp.buffers[0].grad_data.fill_(0.5)
        target = file.mapping().data_ptr() + file.data_start
        if source.nbytes < file.nbytes:
            raise RuntimeError("the gradients are fewer than the weights")

        words = file.mapping()[file.data_start : file.data_start + file.nbytes // 8 * 8].view(torch.int64)
        threads = len(os.sched_getaffinity(0))
        parts = [range(file.nbytes)[i * file.nbytes // threads : (i + 1) * file.nbytes // threads] for i in range(threads)]

        def copy(part: range) -> None:
            ctypes.memmove(target + part.start, source.data_ptr() + part.start, len(part))

        with ThreadPoolExecutor(threads) as pool:
            ways: dict[str, Callable[[], object]] = {
                "memcpy": lambda: copy(range(file.nbytes)),
                "memcpy in all threads": lambda: list(pool.map(copy, parts)),
                "read in all threads": lambda: words.sum(),
            }
            return {name: min(seconds(way) for _ in range(3)) for name, way in ways.items()}


def seconds(way: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


async def one_round(engine: EngineClient, trainer: Trainer, version: int) -> dict[str, float]:
    """Seconds of each stage."""
    clock = Clock()
    with clock.stage("export"):
        manifest = trainer.export(version)
    with clock.stage("register"), TensorFile.open(trainer.path) as file:
        received = Manifest.model_validate_json(manifest.model_dump_json())
        verify_manifest(received, file, contents=False)
    with clock.stage("load"):
        await engine.load_weights(received, trainer.path, share=True)
        await engine.resume()
    with clock.stage("attest"):
        await attest(HttpEngine(engine), received)
    return clock.stages


async def measure(rounds: int, shape: Shape, folder: Path, arena: Path) -> tuple[list[dict[str, float]], int]:
    """Stages of every round, and the bytes of the weights."""
    write_config(shape, folder)
    warnings.simplefilter("ignore")  # Megatron and torch say at every start what is missing, as it may be
    trainer = Trainer(folder, arena)
    zygote = Zygote(job("float32", sequences=8), folder)
    found: list[dict[str, float]] = []
    try:
        async with httpx.AsyncClient() as http:
            engine = EngineClient(zygote.start(128), http)
            await until_healthy(engine)
            for version in range(rounds + 1):
                trainer.nudge()
                bare: dict[str, float] = {}
                if version:
                    await engine.release_weights()
                    with TensorFile.open(arena, writable=True) as file:
                        bare, total = trainer.bare_seconds(file), file.nbytes
                    bare["write"] = seconds(trainer.write)
                stages = await one_round(engine, trainer, version)
                if version:
                    found.append(bare | stages)
    finally:
        zygote.close()
    return found, total


def report(rounds: list[dict[str, float]], total: int, console: Console) -> dict[str, float]:
    """A table; the keys of the benchmark."""
    sums = [sum(r[name] for name in STAGES) for r in rounds]
    floors = [r["memcpy in all threads"] + READS * r["read in all threads"] for r in rounds]
    shares = [r["memcpy"] / s for r, s in zip(rounds, sums, strict=True)]
    middle = shares.index(statistics.median_low(shares))
    table = Table(title=f"{total / 2**20:.0f} MiB of weights on {processor()}")
    for heading in ("", "milliseconds", "GB/s", "all rounds"):
        table.add_column(heading, justify="left" if not heading else "right")
    add_bar_column(table, "milliseconds")
    rows = {name: [r[name] for r in rounds] for name in rounds[0]} | {
        f"floor: the copy and {READS} readings": floors,
        "way of the weights": sums,
    }
    for (name, values), bar in zip(rows.items(), bars([values[middle] for values in rows.values()]), strict=True):
        rate = f"{total / values[middle] / 1e9:.1f}"
        table.add_row(name, f"{1e3 * values[middle]:.1f}", rate, " ".join(f"{1e3 * value:.0f}" for value in values), bar)
    console.print(table)
    best = rounds[middle]["memcpy"] / floors[middle]
    console.print(f"share of the floor: {floors[middle] / sums[middle]:.2f}; at the floor the share of memcpy would be {best:.2f}")
    export_load = statistics.median_low(r["memcpy"] / (r["write"] + r["load"]) for r in rounds)
    console.print(f"share of memcpy by the bytes alone, written and loaded: {export_load:.2f} (at least 0.5 is wanted)")
    console.print(f"share of memcpy: {shares[middle]:.2f} (at least 0.5 is wanted; rounds {', '.join(f'{s:.2f}' for s in shares)})")
    return {
        "share_of_memcpy": round(shares[middle], 3),
        "export_load_share": round(export_load, 3),
        "floor_share_of_memcpy": round(best, 3),
        "share_of_floor": round(floors[middle] / sums[middle], 3),
        "mebibytes": round(total / 2**20, 1),
        "floor_s": round(floors[middle], 4),
        **{f"{name}_s": round(rounds[middle][name], 4) for name in ["memcpy", "write", *STAGES]},
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="the main example's model instead of one of 2 GiB")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rljob-bench-") as folder, shared_memory("weights") as arena:
        rounds, total = asyncio.run(measure(arguments.rounds, SMOLLM2 if arguments.small else HALF_BILLION, Path(folder), arena))
    keys = report(rounds, total, Console(width=110))
    if arguments.json:
        print(json.dumps(keys))


if __name__ == "__main__":
    main()
