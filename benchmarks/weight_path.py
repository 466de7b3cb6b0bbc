"""From the trainer's memory to a proven engine, against a memcpy of the same bytes.

    python benchmarks/weight_path.py [--rounds 5] [--small] [--json]

A model of half a billion random weights (2 GiB in fp32; `--small`: the main example's, 513 MiB, where fixed costs weigh more). A round
makes a version and takes the way that the node agent takes: *export* (copy into the warm arena, checksum of every tensor), *register* (the
manifest as JSON, parsed and checked as the master does), *load* (the engine verifies every byte and takes the weights where they lie),
*attest* (version, checksum, and log-probs of the canary by the engine's own forward pass). `share_of_memcpy` is the time of one memcpy(3)
of all the weights, in one thread into the warm arena in the same round, divided by the sum; both are the median round's. One engine runs
all the time; a first round, in which it maps the arena and meets its first request, is left out (what a fresh engine needs is part of its
start: `phase_switch.py`).
"""

import argparse
import asyncio
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from _engine import (
    HALF_BILLION,
    SMOLLM2,
    Shape,
    Zygote,
    export,
    job,
    processor,
    random_weights,
    shared_memory,
    specs,
    until_healthy,
    write_config,
)
from rich.console import Console
from rich.table import Table

from rljob.checkpoint_engine.arena import TensorFile, verify_manifest
from rljob.rollout.client import EngineClient, weight_label
from rljob.wire.weights import Canary, Manifest

CANARY = tuple(range(100, 108))
"""As long as the trainer's (`rljob.trainer.weights.CANARY_LENGTH`)."""


class Clock:
    """Seconds by stage of one round."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - began


def memcpy_seconds(source: torch.Tensor, file: TensorFile) -> float:
    """One copy of all bytes, one call of the C library, warm memory on both sides; the best of three."""
    target = file.mapping().data_ptr() + file.data_start

    def once() -> float:
        began = time.perf_counter()
        ctypes.memmove(target, source.data_ptr(), source.nbytes)
        return time.perf_counter() - began

    return min(once() for _ in range(3))


async def one_round(
    engine: EngineClient, file: TensorFile, tensors: dict[str, torch.Tensor], version: int, expected: Sequence[float] | None
) -> tuple[dict[str, float], list[float]]:
    """Seconds of each stage, and what the engine says of the canary."""
    clock = Clock()
    canary = Canary(tokens=CANARY, logprobs=tuple(expected or ()), tolerance=1e-4)
    with clock.stage("export"):
        manifest = export(file, tensors, version, canary)
    with clock.stage("register"):
        received = Manifest.model_validate_json(manifest.model_dump_json())
        verify_manifest(received, file, contents=False)
    with clock.stage("load"):
        await engine.load_weights(received, file.path, share=True)
        await engine.resume()
    with clock.stage("attest"):
        assert await engine.weight_version() == weight_label(version, manifest.checksum)
        found = await engine.logprobs(CANARY)
    if expected is not None:
        assert statistics.fmean(abs(a - b) for a, b in zip(found, expected, strict=True)) < canary.tolerance
    return clock.stages, found


async def measure(rounds: int, shape: Shape, folder: Path, arena: Path) -> tuple[list[dict[str, float]], int]:
    """Stages of every round, and the bytes of the weights."""
    write_config(shape, folder)
    flat, tensors = random_weights(shape, torch.float32)
    zygote = Zygote(job("float32", sequences=8), folder)
    file = TensorFile.create(arena, specs(tensors), {})
    found: list[dict[str, float]] = []
    expected: list[float] | None = None
    try:
        async with httpx.AsyncClient() as http:
            engine = EngineClient(zygote.start(128), http)
            await until_healthy(engine)
            for version in range(rounds + 1):
                await engine.release_weights()
                memcpy = memcpy_seconds(flat, file)
                stages, expected = await one_round(engine, file, tensors, version, expected)
                if version:
                    found.append({"memcpy": memcpy, **stages})
    finally:
        zygote.close()
        file.close()
    return found, flat.nbytes


def report(rounds: list[dict[str, float]], total: int, console: Console) -> dict[str, float]:
    """A table; the keys of the benchmark."""
    stages = [name for name in rounds[0] if name != "memcpy"]
    sums = [sum(r[name] for name in stages) for r in rounds]
    shares = [r["memcpy"] / s for r, s in zip(rounds, sums, strict=True)]
    middle = shares.index(statistics.median_low(shares))
    table = Table(title=f"{total / 2**20:.0f} MiB of weights on {processor()}")
    for heading in ("", "milliseconds", "GB/s", "all rounds"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in ["memcpy", *stages]:
        seconds = rounds[middle][name]
        rates = f"{total / seconds / 1e9:.1f}"
        table.add_row(name, f"{1e3 * seconds:.1f}", rates, " ".join(f"{1e3 * r[name]:.0f}" for r in rounds))
    table.add_row(
        "way of the weights", f"{1e3 * sums[middle]:.1f}", f"{total / sums[middle] / 1e9:.1f}", " ".join(f"{1e3 * s:.0f}" for s in sums)
    )
    console.print(table)
    console.print(f"share of memcpy: {shares[middle]:.2f} (at least 0.5 is wanted; rounds {', '.join(f'{s:.2f}' for s in shares)})")
    return {
        "share_of_memcpy": round(shares[middle], 3),
        "mebibytes": round(total / 2**20, 1),
        **{f"{name}_s": round(rounds[middle][name], 4) for name in ["memcpy", *stages]},
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
    keys = report(rounds, total, Console())
    if arguments.json:
        print(json.dumps(keys))


if __name__ == "__main__":
    main()
