"""Threats to the other backend, a container of crun for each run: the same attacks, some of each kind, and those on a runner that is the
program's own user and the first process that it sees."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox import test_threats_files as files
from tests.sandbox import test_threats_unprivileged as unprivileged
from tests.sandbox.sandbox import Sandbox, request
from tests.sandbox.test_threats_calls import CALLS, PYTHON_CALLER
from tests.sandbox.test_threats_files import (  # noqa: F401 - the same tests, of this module's `sandbox`
    test_a_hard_link_out_of_the_working_space_cannot_be_made,
    test_fetched_are_regular_files_only,
    test_nothing_outside_the_working_space_can_be_written,
    test_the_kernels_settings_cannot_be_changed,
    test_the_library_that_later_runs_import_cannot_be_changed,
)
from tests.sandbox.test_threats_neighbours import (  # noqa: F401
    KILL_EVERYTHING,
    test_files_of_another_run_are_not_there,
    test_nothing_can_be_left_on_a_device_file,
    test_the_clock_cannot_be_turned,
    test_the_host_name_is_not_the_machines,
)
from tests.sandbox.test_threats_network import (  # noqa: F401
    test_there_is_no_interface_but_a_loopback_that_is_down,
    test_unix_sockets_of_the_machine_are_out_of_reach,
)
from tests.sandbox.test_threats_resources import BURN, FLOOD, FORK_BOMB, MEMORY_BOMB, SLEEP
from tests.sandbox.test_threats_streams import (  # noqa: F401
    test_descriptors_beyond_the_three_are_not_inherited,
    test_output_after_the_program_has_ended_is_not_waited_for,
    test_the_input_cannot_be_written,
    test_the_status_of_our_own_failures_cannot_be_forged,
)

from rljob.api.errors import ConfigurationError
from rljob.sandbox import crun
from rljob.wire.sandbox import RunRequest, RunResult

REACH = """
import os, socket
for path in ("/etc/shadow", "/root/.ssh", "/home", "/sys/kernel", "/var/run", "/proc/1/mem", "/proc/1/environ", "/proc/1/fd", "/dev/mem"):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(10)
        print("ESCAPED", path)
    except OSError:
        pass
for path in ("/usr/x", "/etc/x", "/run/rljob/sandbox/inside/runner.py", "/proc/sys/kernel/core_pattern"):
    try:
        open(path, "a").write("x")
        print("ESCAPED", path)
    except OSError:
        pass
try:
    socket.socket()
    print("ESCAPED")
except OSError:
    pass
print("RLJOB" in str(os.environ), os.getuid() != 0)
"""
SMALLER_THAN_THE_RUNNER = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    write(open("/proc/self/oom_score_adj", O_WRONLY), "0", 1);
    for (int i = 0; i < 20; i++)
        if (fork() == 0) {
            volatile char *memory = malloc(10 << 20);
            for (long at = 0; at < 10 << 20; at += 4096) memory[at] = 1;
            sleep(2);
            _exit(0);
        }
    sleep(2);
    puts("end");
}
"""
"""More memory than it may have, in processes of which each is smaller than the runner."""
UNREADABLE = r"""
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int count, char **words) {
    if (count == 1) { chmod("build/main", 0111); execl("build/main", "main", "again", (char *)0); }
    for (;;) {
        volatile char *memory = malloc(1 << 20);
        for (long at = 0; at < 1 << 20; at += 4096) memory[at] = 1;
    }
}
"""
"""The kernel lets nobody look into a process that executes a file which it may not read."""
TO_THE_FIRST_PROCESS = "import os, resource\n{call}\nprint('ESCAPED')"
ATTACKS: dict[str, tuple[RunRequest, tuple[str, ...], str]] = {
    "a fork bomb": (request("c", FORK_BOMB["c"], processes=16, cpu_seconds=0.5, wall_seconds=3), ("time_limit", "wall_limit"), ""),
    "a memory bomb": (request("python", MEMORY_BOMB["python"], memory_mb=96), ("memory_limit", "runtime_error"), ""),
    "processor time": (request("python", BURN["python"], cpu_seconds=0.3), ("time_limit",), ""),
    "doing nothing": (request("bash", SLEEP["bash"], wall_seconds=0.5), ("wall_limit",), ""),
    "an output flood": (request("python", FLOOD["python"], output_kb=16), ("output_limit",), "x" * 16384),
    "a full disk": (request("bash", "cat /dev/zero > big", disk_mb=16), ("runtime_error", "disk_limit"), ""),
    "killing everything": (request("python", KILL_EVERYTHING["python"]), ("ok", "runtime_error"), ""),
    "signals to the first process": (
        request("python", "import os\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass\nprint('alive')"),
        ("ok",),
        "alive\n",
    ),
    "limits of the first process": (
        request("python", TO_THE_FIRST_PROCESS.format(call="resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))"), fetch=("x",)),
        ("runtime_error",),
        "",
    ),
    "the priority of the first process": (
        request("python", TO_THE_FIRST_PROCESS.format(call="os.setpriority(os.PRIO_PROCESS, 1, 19)")),
        ("runtime_error",),
        "",
    ),
    "the processors of the first process": (
        request("python", TO_THE_FIRST_PROCESS.format(call="os.sched_setaffinity(1, {min(os.sched_getaffinity(0))})")),
        ("runtime_error",),
        "",
    ),
    "having the runner killed for memory": (
        request("c", SMALLER_THAN_THE_RUNNER, memory_mb=96, cpu_seconds=10, wall_seconds=20),
        ("ok",),
        "end\n",
    ),
    "reaching out": (request("python", REACH), ("ok",), "False True\n"),
}
WITHOUT_PRIVILEGES = (
    "a fork bomb in C",
    "memory of many processes",
    "processor time of orphans",
    "signals to the first process",
    "killing everything",
    "fighting whoever fetches results",
    "new namespaces",
    "files of the machine",
)


@pytest.fixture(scope="module")
def containers() -> Iterator[Sandbox]:
    with Sandbox(slots=1, backend="crun") as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(containers: Sandbox) -> Iterator[Sandbox]:
    """For the tests of other modules."""
    yield containers
    assert containers.pool.slots_rebuilt == 0


@pytest.mark.parametrize("what", ATTACKS)
def test_is_survived_in_a_container(what: str, containers: Sandbox) -> None:
    attack, allowed, output = ATTACKS[what]
    result = containers.do(containers.pool.run(attack))
    assert result.status in allowed, result
    assert result.run is not None
    assert result.run.stdout == output
    assert containers.prints("python", "print(6 * 7)", wall_seconds=20) == "42"
    assert containers.pool.slots_rebuilt == 0


@pytest.mark.parametrize("language", ["python", "bash", "c"])
def test_files_of_the_machine_are_not_in_a_container(sandbox: Sandbox, language: str, tmp_path: Path) -> None:
    files.test_files_of_the_machine_are_not_there(sandbox, language, tmp_path)


def test_forbidden_calls_are_refused_in_a_container(containers: Sandbox) -> None:
    code = f"import sys\ncalls = {list(CALLS.values())}\nsource = {PYTHON_CALLER!r}\n" + (
        "for call in calls:\n    sys.argv[1:] = [str(word) for word in call]\n    exec(source)\n"
    )
    lines = containers.prints("python", code, cpu_seconds=5, wall_seconds=20).splitlines()
    assert len(lines) == len(CALLS)
    assert [what for what, line in zip(CALLS, lines, strict=True) if not line.startswith("-1 ")] == []


def test_a_program_is_built_once_and_its_files_are_fetched_from_containers(containers: Sandbox) -> None:
    code = '#include <stdio.h>\nint main(void) { int n; scanf("%d", &n); fprintf(fopen("out", "w"), "%d", n + 1); return n; }'
    program = containers.build("c", code)
    result = containers.do(program.run("41\n", fetch=("out",)))
    assert result.run is not None
    assert (result.run.exit_code, result.files) == (41, {"out": "42"})


def test_a_signal_is_reported_as_what_it_is_from_a_container(containers: Sandbox) -> None:
    output = containers.output("python", "import os; os.kill(os.getpid(), 11)")
    assert (output.exit_code, output.signal) == (None, 11)


def test_nothing_of_a_container_is_left(containers: Sandbox) -> None:
    slot = containers.pool._all[0]
    containers.prints("python", "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass")
    assert slot.cgroup.members() == []  # type: ignore[attr-defined]


def test_the_runner_is_the_only_other_process_that_a_program_sees_and_shows_nothing(containers: Sandbox) -> None:
    code = """
import os
print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) == [1, os.getpid()])
for name in ("environ", "mem", "maps", "fd", "cmdline", "root", "cwd", "exe", "stack", "auxv", "ns/pid", "syscall"):
    try:
        path = f"/proc/1/{name}"
        print("ESCAPED" * bool(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(100).strip(bytes(1))))
    except OSError:
        pass
"""
    assert containers.prints("python", code).split() == ["True"]


def test_attacks_in_containers_of_a_service_without_privileges_are_survived() -> None:
    attacks = {what: unprivileged.ATTACKS[what] for what in WITHOUT_PRIVILEGES} | {
        **{what: ATTACKS[what][:2] for what in ("limits of the first process", "the processors of the first process")},
        "a program that nobody may read": (request("c", UNREADABLE, memory_mb=64, cpu_seconds=5, wall_seconds=20), ("memory_limit",)),
    }
    text = "".join(f"{one.model_dump_json()}\n" for attack, _ in attacks.values() for one in (attack, unprivileged.PLAIN))
    done = subprocess.run([sys.executable, "-m", "tests.sandbox.unprivileged", "crun"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    protections, *lines = done.stdout.splitlines()
    assert [name for name, on in json.loads(protections).items() if not on] == ["time", "cgroup_memory", "cgroup_pids", "cgroup_cpu"]
    results = [RunResult.model_validate_json(line) for line in lines]
    for (what, (_, allowed)), result in zip(attacks.items(), results[::2], strict=True):
        assert result.status in allowed, (what, result)
        assert result.run is not None
        assert "ESCAPED" not in result.run.stdout, what
    assert {result.run.stdout for result in results[1::2] if result.run} == {"42\n"}


def test_a_machine_where_crun_makes_no_container_is_told_what_crun_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crun").write_text("#!/bin/sh\nsleep 0.3\necho this kernel is too old\nexit 1\n")
    (tmp_path / "crun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), os.pathsep)
    with pytest.raises(ConfigurationError, match="it said: this kernel is too old"), Sandbox(slots=1, backend="crun"):
        pass


def test_a_machine_without_crun_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="apt-get install crun"):
        crun.crun()
