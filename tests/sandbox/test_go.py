"""Programs in Go, right ones and attacks. One service for all of them, as it has to compile Go's standard library once."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.sandbox.forgeries import OTHERS
from tests.sandbox.real import judged, real_service
from tests.sandbox.sandbox import processes_of_runs, request
from tests.sandbox.test_threats_calls import CALLS, asked_for, assert_refused

from rljob.sandbox import languages, requests
from rljob.sandbox.inside import archive
from rljob.sandbox.inside.runner import Ended
from rljob.sandbox.languages import TABLE, Found, Toolchain
from rljob.sandbox.pool import Pool, PoolSettings, Program
from rljob.sandbox.service import Service
from rljob.sandbox.slot import Job, Ran, SlotError
from rljob.wire.sandbox import COMPILE_LIMITS, Limits

pytestmark = pytest.mark.asyncio(loop_scope="module")

(GO,) = (row for row in TABLE if row.name == "go")
ENTRY = Found(GO, Toolchain({"go": "/go"}), "1")
SQUARE = 'package main\n\nimport "fmt"\n\nfunc main() {\n\tvar n int\n\tfmt.Scan(&n)\n\tfmt.Println(n * n)\n}\n'
TESTS = [{"stdin": str(n), "expected": str(n * n)} for n in (0, 3, 12)]
ATTACKS = {
    "a fork bomb": ("time_limit", "wall_limit", "process_limit", "runtime_error"),
    "a thread bomb": ("time_limit", "wall_limit", "process_limit", "runtime_error"),
    "a memory bomb": ("memory_limit", "runtime_error", "time_limit"),
    "processor time": ("time_limit",),
    "doing nothing": ("wall_limit",),
    "an output flood": ("output_limit",),
    "a full disk": ("runtime_error", "disk_limit", "memory_limit"),
    "killing everything": ("ok", "runtime_error"),
    "reaching out": ("ok",),
    "a daemon": ("ok",),
    "mapping a file that is not there": ("ok", "runtime_error", "disk_limit"),
}
"""What may become of each."""
ATTACKER = """
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "a fork bomb":
		for {
			os.StartProcess("/bin/sleep", []string{"sleep", "9"}, &os.ProcAttr{})
		}
	case "a thread bomb":
		for {
			go syscall.Nanosleep(&syscall.Timespec{Sec: 9}, nil)
			time.Sleep(time.Microsecond)
		}
	case "a memory bomb":
		for kept := []string{}; ; {
			kept = append(kept, strings.Repeat("x", 1<<20))
		}
	case "processor time":
		for {
		}
	case "doing nothing":
		time.Sleep(time.Minute)
	case "an output flood":
		for {
			fmt.Print(strings.Repeat("x", 1<<16))
		}
	case "a full disk":
		file, _ := os.Create("big")
		for {
			if _, err := file.Write(make([]byte, 1<<20)); err != nil {
				os.Exit(1)
			}
		}
	case "killing everything":
		for _, pid := range []int{-1, 1, os.Getppid(), 0} {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	case "a daemon":
		os.StartProcess("/usr/bin/setsid", []string{"setsid", "sleep", "60"}, &os.ProcAttr{})
	case "mapping a file that is not there":
		file, _ := os.Create("sparse")
		kept := file.Truncate(1 << 30)
		if mapped, err := syscall.Mmap(int(file.Fd()), 0, 1<<30, syscall.PROT_WRITE, syscall.MAP_SHARED); kept == nil && err == nil {
			for at := 0; at < 1<<30; at += 4096 {
				mapped[at] = 1
			}
			fmt.Println("ESCAPED")
		}
	case "calls":
		var a [7]uintptr
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); a = [7]uintptr{} {
			for place, word := range strings.Fields(lines.Text()) {
				value, _ := strconv.ParseInt(word, 10, 64)
				a[place] = uintptr(value)
			}
			r, _, err := syscall.Syscall6(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
			fmt.Println(int64(r), int(err))
		}
	case "reaching out":
		for _, path := range strings.Fields("/etc/shadow /root/.ssh /home /sys /proc/1/mem /proc/1/environ /proc/sys /var/lib") {
			if _, err := os.ReadFile(path); err == nil {
				fmt.Println("ESCAPED", path)
			}
			if _, err := os.ReadDir(path); err == nil {
				fmt.Println("ESCAPED", path)
			}
		}
		for _, family := range []int{syscall.AF_INET, syscall.AF_INET6, syscall.AF_UNIX, syscall.AF_NETLINK} {
			if _, err := syscall.Socket(family, syscall.SOCK_STREAM, 0); err == nil {
				fmt.Println("ESCAPED", family)
			}
		}
		for _, name := range os.Environ() {
			if strings.HasPrefix(name, "RLJOB") {
				fmt.Println("ESCAPED", name)
			}
		}
	}
}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    """The real thing."""
    async with real_service() as made:
        yield made


async def test_a_right_program_passes_within_the_default_limits_in_a_service_that_has_just_started(service: Service) -> None:
    result = await judged(service, language="go", code=SQUARE, tests=TESTS)
    assert (result.verdict, result.passed) == ("passed", 3), result


async def test_a_library_instead_of_a_program_does_not_compile_and_is_no_failure_of_ours(service: Service) -> None:
    result = await judged(service, language="go", code="package foo\n\nfunc F() {}", tests=TESTS)
    assert (result.verdict, result.reason) == ("compile_error", "the compiler made no program build/main: the code is a library, perhaps")


@pytest.mark.parametrize("attack", [attack for language, attack in OTHERS if language == "go"])
async def test_no_reward_for_a_program_that(service: Service, attack: str) -> None:
    result = await judged(service, language="go", code=OTHERS["go", attack], tests=TESTS)
    assert (result.verdict, result.passed) == ("wrong_answer", 0), result


async def test_what_a_build_leaves_does_not_reach_the_next_one(service: Service) -> None:
    pool = service.pool
    assert isinstance(pool, Pool)
    await pool.build(request("go", SQUARE))
    library = await pool._library(pool._found["go"])
    before = archive.read(library)
    await pool.build(request("go", 'package main\n\nfunc main() { println("something new") }'))
    assert archive.read(library) == before
    with pytest.raises(PermissionError):
        os.pwrite(library, b"x", 0)


@pytest.mark.parametrize("more", [-20, 3])
async def test_a_build_that_has_less_disk_than_its_library_and_itself_take_is_told_so(service: Service, more: int) -> None:
    """With more than its library it begins, and finds no space then."""
    pool = service.pool
    assert isinstance(pool, Pool)
    disk_mb = (os.fstat(await pool._library(pool._found["go"])).st_size >> 20) + more
    limits = COMPILE_LIMITS.model_copy(update={"disk_mb": disk_mb})
    built = (await pool.build(request("go", SQUARE, compile_limits=limits))).compile
    assert built is not None
    told = rf"compile_limits.disk_mb, of the compiler: more than {disk_mb} MiB of files; \d+ MiB is the library of go, .*: raise disk_mb"
    assert (built.status, re.fullmatch(told, built.reason) is not None) == ("disk_limit", True), built


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacker(service: Service) -> Program:
    assert isinstance(service.pool, Pool)
    limits = Limits(cpu_seconds=1, wall_seconds=8, memory_mb=96, processes=40, output_kb=16, disk_mb=16)
    return await service.pool.build(request("go", ATTACKER).model_copy(update={"limits": limits}))


@pytest.mark.parametrize("attack", ATTACKS)
async def test_is_survived(service: Service, attacker: Program, attack: str) -> None:
    result = await attacker.run(arguments=(attack,), wall_seconds=0.5 if attack == "doing nothing" else 8)
    assert result.status in ATTACKS[attack], result
    assert result.run is not None
    assert "ESCAPED" not in result.run.stdout
    assert isinstance(service.pool, Pool)
    assert processes_of_runs(service.pool) == 0
    plain = request("python", "print(6 * 7)", wall_seconds=20)
    for after in await asyncio.gather(*(service.pool.run(plain) for _ in range(service.pool.slots))):
        assert after.run is not None
        assert after.run.stdout == "42\n"
    assert service.pool.slots_rebuilt == 0, "a slot was lost"


async def test_forbidden_calls_are_refused(attacker: Program) -> None:
    result = await attacker.run(asked_for(CALLS), ("calls",))
    assert result.run is not None, result
    assert_refused(CALLS, result.run.stdout)


async def test_go_is_found_where_only_the_path_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make test` has it on a machine without one of its own."""
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text("#!/bin/sh\n")
    go.chmod(0o755)
    monkeypatch.setattr(languages, "_which", lambda name: None)
    monkeypatch.setenv("PATH", str(go.parent))
    assert GO.find() == Toolchain({"go": str(go)}, (str(tmp_path),), (str(go), "version"))


def answering(pool: Pool, monkeypatch: pytest.MonkeyPatch, *statuses: int | OSError) -> asyncio.Event:
    """Runs of the pool end with these statuses, or do not begin, once the event is set."""
    left, let = list(statuses), asyncio.Event()

    async def ran(job: Job) -> Ran:
        await let.wait()
        status = left.pop(0)
        if isinstance(status, OSError):
            raise status
        return Ran(Ended(1, status=status), b"", b"first\nno space", False, b"made", False, False)

    monkeypatch.setattr(pool, "_ran", ran)
    return let


async def test_who_leaves_while_the_library_is_made_does_not_take_it_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(PoolSettings(slots=1))
    let = answering(pool, monkeypatch, 0)
    first, second = (asyncio.create_task(pool._library(ENTRY)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    let.set()
    library = await second
    assert first.cancelled()
    assert (await pool._library(ENTRY), archive.read(library)) == (library, b"made")
    await pool.stop()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(library)


@pytest.mark.parametrize(("first", "why"), [(1, "no space"), (OSError(24, "Too many open files"), "Too many open files")])
async def test_a_library_that_could_not_be_made_is_a_failure_of_ours_and_made_again(
    first: int | OSError, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(PoolSettings(slots=1))
    answering(pool, monkeypatch, first, 0).set()
    with pytest.raises(SlotError, match=f"the library of go could not be made ready: .*{why}"):
        await pool._library(ENTRY)
    assert archive.read(await pool._library(ENTRY)) == b"made"
    await pool.stop()


@pytest.mark.parametrize("name", ["library", "library/00/x-a"])
async def test_a_request_cannot_put_anything_into_the_library(name: str) -> None:
    asked = request("go", SQUARE, files={name: ""})
    with pytest.raises(ValueError, match="files has a path in library/"):
        requests.check(asked, {"go": ENTRY}, Limits(memory_mb=4096, processes=256, cpu_seconds=60, wall_seconds=60, disk_mb=512))
