"""What the threat tests share: a pool behind plain calls, and the languages of this machine."""

import asyncio
import os
import statistics
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rljob.sandbox.languages import found
from rljob.sandbox.pool import Pool, PoolSettings, Program
from rljob.wire.sandbox import Limits, Output, RunRequest, RunResult

HERE: Final = tuple(found())
"""Languages of this machine; those of REQUIRED are tested in any case: `make test` sees to it that they are here."""
REQUIRED: Final = ("python", "bash", "c", "cpp", "go")
_PATIENCE = 120.0
_SLOWER = 3.0
_TRIES = 5
"""Of a measurement that neighbours disturb: a slot that an attack has made slow stays slow."""


def only(*names: str) -> list[str]:
    """Those of the languages that this machine has; the required ones in any case."""
    return [name for name in names if name in HERE or name in REQUIRED]


class Sandbox:
    """A pool with an event loop of its own, in a thread."""

    def __init__(self, **settings: Any) -> None:
        self.pool = Pool(PoolSettings(**({"slots": 2} | settings)))
        self._loop = asyncio.new_event_loop()
        self.usual = 0.0
        """CPU seconds of a plain run before any attack."""
        self.rebuilt = 0
        """Slots lost by what was run before."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self.pool.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.do(self.pool.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    def run(self, language: str, code: str, **fields: Any) -> RunResult:
        """Run; fields of the request and of its limits alike by name."""
        return self.do(self.pool.run(request(language, code, **fields)))

    def output(self, language: str, code: str, **fields: Any) -> Output:
        """Of a program that was at least started."""
        result = self.run(language, code, **fields)
        assert result.run is not None, result
        return result.run

    def prints(self, language: str, code: str, **fields: Any) -> str:
        """The standard output of a program that ends well, without space around."""
        output = self.output(language, code, **fields)
        assert output.status == "ok", output
        return output.stdout.strip()

    def together(self, *requests: RunRequest) -> list[RunResult]:
        """Run side by side."""

        async def gather() -> list[RunResult]:
            return list(await asyncio.gather(*(self.pool.run(request) for request in requests)))

        return self.do(gather())

    def build(self, language: str, code: str, **fields: Any) -> Program:
        """Build."""
        return self.do(self.pool.build(request(language, code, **fields)))

    def measure(self) -> None:
        """Remember what a plain run costs."""
        self.usual = statistics.median(self._plain_runs() for _ in range(9))

    def assert_well(self) -> None:
        """No slot was lost; every one answers a plain run correctly, as cheaply as at the start, and sees nothing of what was before."""
        lost, self.rebuilt = self.pool.slots_rebuilt - self.rebuilt, self.pool.slots_rebuilt
        assert not lost, "a slot was lost"
        costs = [self._plain_runs()]
        while costs[-1] > _SLOWER * self.usual:
            assert len(costs) < _TRIES, f"plain runs cost {costs} s of CPU, {self.usual} s at the start"
            costs.append(self._plain_runs())

    def _plain_runs(self) -> float:
        """One in every slot; CPU seconds of one, with what its runner did for it."""
        before = self._runners_seconds()
        results = self.together(*[request("python", PLAIN, stdin="41\n")] * self.pool.slots)
        for result in results:
            assert result.run is not None, result
            assert (result.status, result.run.stdout) == ("ok", "42 [] 0\n"), result
        assert processes_of_runs(self.pool) == 0, "somebody lives on"
        own = sum(result.run.cpu_seconds for result in results if result.run)
        return (own + self._runners_seconds() - before) / len(results)

    def _runners_seconds(self) -> float:
        runners = [child for slot in self.pool._all.values() for child in children(slot._process.pid)]  # type: ignore[attr-defined]
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in runners) / 1e9


PLAIN: Final = """
import os, builtins, sys
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
leftovers = [name for name in os.listdir("/tmp/work") if name != "main.py"] + [name for name in os.listdir("/tmp") if name != "work"]
print(int(input()) + 1, leftovers, len(others))
"""


def request(language: str, code: str, **fields: Any) -> RunRequest:
    """A request; limits by their own names."""
    limits = {name: fields.pop(name) for name in tuple(fields) if name in Limits.model_fields}
    return RunRequest(language=language, code=code, limits=Limits(**limits), **fields)


def processes_of_runs(pool: Pool) -> int:
    """Processes in the slots' cgroups besides the slots' own two; 0 where nothing counts them, as then nothing is known."""
    counts: list[int | None] = [slot.cgroup.processes() for slot in pool._all.values()]  # type: ignore[attr-defined]
    return sum(count - 2 for count in counts if count is not None)


def children(pid: int) -> list[int]:
    """Of a process with one thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> int:
    """Processes of the machine below `pid`, itself included; a zombie is one."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has just ended
    found, frontier = 1, {pid}
    while frontier := {child for child, parent in parents.items() if parent in frontier}:
        found += len(frontier)
    return found
