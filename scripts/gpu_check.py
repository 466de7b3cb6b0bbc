"""`make gpu-check`: which parts of the GPU path work on a machine with one NVIDIA GPU, and what they took.

    python -m scripts.gpu_check          every step, then a table
    python -m scripts.gpu_check STEP     one step, in this process

Each step is a process of its own, so that one that crashes takes no other with it and no CUDA context is inherited. The steps call the
product's own code; the two jobs are `rljob run` of the smallest example with `accelerator.type: nvidia`, once per switch policy.

Does not check: more than one GPU, models that nearly fill one, numbers (a step that ran is not a result that is right: for the jobs look at
the gap between the trainer's and the engine's log-probs, which is printed), and nothing of a cluster.
"""

import argparse
import asyncio
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
JOBS = Path("runs")
GiB = 1 << 30


@dataclass(frozen=True)
class Step:
    """One thing to try."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Steps without which this one is not worth trying."""
    limit: float = 180.0
    """Seconds after which it counts as failed."""


@dataclass(frozen=True)
class Result:
    """How it went."""

    name: str
    outcome: Literal["works", "fails", "not run"]
    seconds: float
    words: str
    """The last thing that the step said: figures, or what went wrong."""


def memory() -> str:
    """The memory gate's view of the device."""
    from rljob.checkpoint_engine.gate import NvmlMemory

    seen = NvmlMemory.open()
    reading = asyncio.run(seen.read("engine"))
    return f"{reading.free / GiB:.1f} of {seen.total() / GiB:.1f} GiB are free"


def copies() -> str:
    """An offloaded trainer's way: device to registered host memory and back."""
    import torch

    device = _device()
    on_device = torch.arange(GiB // 4, dtype=torch.int32, device=device.device).view(torch.uint8)
    host = device.host_buffer(GiB, Path("/nonexistent"))
    away = _seconds(device, lambda: host.copy_(on_device))
    back = _seconds(device, lambda: on_device.copy_(host))
    right = bool((on_device.view(torch.int32).cpu() == torch.arange(GiB // 4, dtype=torch.int32)).all())
    device.unregister(host)
    if not right:
        raise SystemExit("what came back is not what went away")
    return f"1 GiB away in {away:.3f} s ({1 / away:.0f} GiB/s), back in {back:.3f} s; bf16: {'yes' if device.has_bf16() else 'no'}"


def arena() -> str:
    """A weight arena's way: device to registered shared memory."""
    import torch

    device = _device()
    weights = torch.full((GiB // 4,), 7, dtype=torch.uint8, device=device.device)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, weights.numel())
        shared = torch.frombuffer(mmap.mmap(file.fileno(), weights.numel()), dtype=torch.uint8)
        device.register(shared)
        took = _seconds(device, lambda: shared.copy_(weights))
        device.unregister(shared)
        if not bool((shared == 7).all()):
            raise SystemExit("what arrived is not what was sent")
    return f"256 MiB to shared memory in {took:.3f} s ({0.25 / took:.0f} GiB/s)"


def group() -> str:
    """The trainer's process group, of one rank, and what leaving the device leaves on it."""
    import torch
    import torch.distributed as dist

    from rljob.trainer.device import join

    device = _device()
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    join(device)
    ones = torch.ones(1024, device=device.device)
    dist.all_reduce(ones)
    (ones[:, None] @ ones[None, :]).sum().item()
    del ones
    device.release()
    left = torch.cuda.memory_reserved(device.device)
    dist.destroy_process_group()
    return f"NCCL group of one; {left >> 20} MiB stay reserved by torch after release"


def job(policy: str) -> str:
    """The smallest example, two iterations: warm start, hand-overs in both directions, training, export, checkpoint."""
    folder = JOBS / f"gpu-check-{policy}"
    file = ROOT / "examples" / "tiny" / "rljob.yaml"
    sets = ("spec.accelerator.type=nvidia", f"spec.switch.policy={policy}", "spec.iterations=2", "spec.warmStart.steps=40")
    command = [str(Path(sys.executable).with_name("rljob")), "run", str(file), "--fresh", "--workdir", str(folder)]
    done = subprocess.run([*command, *(word for one in sets for word in ("--set", one))], check=False)
    if done.returncode:
        raise SystemExit(f"rljob run ended with status {done.returncode}; see {folder}/logs")
    return figures((folder / "metrics.jsonl").read_text())


def figures(metrics: str) -> str:
    """The last iteration of a `metrics.jsonl` in one line."""
    last: dict[str, Any] = json.loads(metrics.splitlines()[-1])
    steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in last["seconds"].items() if name not in ("total", "other") and seconds)
    return f"{last['iteration']} iterations, {last.get('switch_policy')}, log-prob gap {last['logprob_gap']:.2g}; seconds: {steps}"


STEPS: dict[str, Callable[[], str]] = {
    "memory": memory,
    "copies": copies,
    "arena": arena,
    "group": group,
    "job-restart": lambda: job("restart"),
    "job-sleep": lambda: job("sleep"),
}


def plan() -> tuple[Step, ...]:
    """All steps in the order in which they are tried. A job is tried even where a part of it failed alone, unless there is no device."""

    def command(name: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "scripts.gpu_check", name)

    jobs = [Step(name, command(name), ("memory",), 1800.0) for name in STEPS if name.startswith("job-")]
    return (*(Step(name, command(name)) for name in STEPS if not name.startswith("job-")), *jobs)


def check(steps: Sequence[Step], say: Callable[[str], None]) -> list[Result]:
    """Try every step, and say how each went."""
    results: dict[str, Result] = {}
    for step in steps:
        missing = [name for name in step.needs if results[name].outcome != "works"]
        result = Result(step.name, "not run", 0.0, f"needs {', '.join(missing)}") if missing else _try(step)
        results[step.name] = result
        say(f"{result.name:<12} {result.outcome:<8} {result.seconds:7.1f} s  {result.words}")
    return list(results.values())


def table(results: Sequence[Result]) -> str:
    """For docs/gpu.md."""
    rows = [f"| {r.name} | {r.outcome} | {r.seconds:.1f} | {r.words} |" for r in results]
    return "\n".join(["| step | | seconds | |", "|---|---|---|---|", *rows])


def _try(step: Step) -> Result:
    begun = time.monotonic()
    try:
        done = subprocess.run(step.command, capture_output=True, text=True, check=False, timeout=step.limit, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return Result(step.name, "fails", step.limit, f"not done after {step.limit:.0f} s")
    took = time.monotonic() - begun
    said = [line for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines() if line.strip()]
    return Result(step.name, "fails" if done.returncode else "works", took, said[-1] if said else f"status {done.returncode}")


def _device() -> Any:
    from rljob.trainer.device import Nvidia

    device = Nvidia(0)
    device.prepare()
    return device


def _seconds(device: Any, work: Callable[[], object]) -> float:
    device.synchronize()
    begun = time.perf_counter()
    work()
    device.synchronize()
    return time.perf_counter() - begun


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description="Which steps of the GPU path work on this machine.")
    parser.add_argument("step", nargs="?", choices=list(STEPS), help="only this step, in this process")
    wanted = parser.parse_args().step
    if wanted:
        print(STEPS[wanted]())
        return 0
    results = check(plan(), print)
    print(f"\n{table(results)}")
    return 0 if all(result.outcome == "works" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
