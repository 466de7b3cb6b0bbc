"""Threats to the other backend, a container of crun for each run: the same attacks, some of each kind."""

from collections.abc import Iterator

import pytest
from tests.sandbox.sandbox import Sandbox, request
from tests.sandbox.test_threats_calls import CALLS, PYTHON_CALLER
from tests.sandbox.test_threats_neighbours import KILL_EVERYTHING
from tests.sandbox.test_threats_resources import BURN, FLOOD, FORK_BOMB, MEMORY_BOMB, SLEEP

from rljob.api.errors import ConfigurationError
from rljob.sandbox import crun
from rljob.wire.sandbox import RunRequest

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
    "reaching out": (request("python", REACH), ("ok",), "False True\n"),
}


@pytest.fixture(scope="module")
def containers() -> Iterator[Sandbox]:
    with Sandbox(slots=1, backend="crun") as sandbox:
        yield sandbox


@pytest.mark.parametrize("what", ATTACKS)
def test_is_survived_in_a_container(what: str, containers: Sandbox) -> None:
    attack, allowed, output = ATTACKS[what]
    result = containers.do(containers.pool.run(attack))
    assert result.status in allowed, result
    assert result.run is not None
    assert result.run.stdout == output
    assert containers.prints("python", "print(6 * 7)", wall_seconds=20) == "42"
    assert containers.pool.slots_rebuilt == 0


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


def test_a_machine_without_crun_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="apt-get install crun"):
        crun.crun()
