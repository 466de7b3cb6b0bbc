"""Threats to a service that has no privilege and no cgroups: memory and processor time are then watched, processes limited per slot."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.sandbox.sandbox import Sandbox, descendants, request
from tests.sandbox.test_threats_neighbours import KILL_EVERYTHING
from tests.sandbox.test_threats_resources import BURN, FORK_BOMB, MEMORY_BOMB

from rljob.api.errors import ConfigurationError
from rljob.wire.sandbox import RunRequest, RunResult

ORPHANS = r"""
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>
int main(void) {
    int ends[2];
    char c;
    pipe(ends);
    for (int i = 0; i < 25; i++) {
        pid_t child = fork();
        if (child == 0) {
            if (fork() == 0) {
                struct timespec used;
                do clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used); while (used.tv_nsec < 100000000);
                write(ends[1], "x", 1);
            }
            _exit(0);
        }
        waitpid(child, 0, 0);
        read(ends[0], &c, 1);
    }
    write(1, "ESCAPED", 7);
}
"""
FORGOTTEN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(15):
    if os.fork() == 0:
        while time.process_time() < 0.2: pass
        os._exit(0)
    try:
        os.wait()
    except OSError:
        pass
print("ESCAPED")
"""
WAITED_FOR = """
import os, time
def burn(depth):
    if os.fork() == 0:
        if depth: burn(depth - 1)
        while time.process_time() < 0.2: pass
        os._exit(0)
    os.wait()
for _ in range(2): burn(1)
print("done")
"""
PAGE_TABLES = r"""
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    long count = 100000;
    volatile char *memory = mmap(0, count << 21, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    madvise((void *)memory, count << 21, MADV_NOHUGEPAGE);
    for (long i = 0; i < count; i++) memory[i << 21];
    sleep(5);
    write(1, "ESCAPED", 7);
}
"""
SOCKETS = r"""
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>
static char data[65536];
int main(void) {
    int pair[2];
    fork();
    fork();
    while (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0)
        for (int i = 0; i < 2; i++)
            while (write(pair[i], data, sizeof data) > 0);
    sleep(5);
    write(1, "ESCAPED", 7);
}
"""
BIG = (
    "".join(f'__asm__(".pushsection .d{n},\\"a\\"; .balign 33554432; .byte 1; .popsection");\n' for n in range(4))
    + "int main(void) { return 0; }"
)
"""Some 128 MiB when it is built."""

ATTACKS: dict[str, tuple[RunRequest, tuple[str, ...]]] = {
    "a fork bomb": (request("python", FORK_BOMB["python"], processes=16, cpu_seconds=0.5, wall_seconds=2), ("time_limit", "wall_limit")),
    "a fork bomb in C": (request("c", FORK_BOMB["c"], processes=16, cpu_seconds=0.5, wall_seconds=2), ("time_limit", "wall_limit")),
    "a memory bomb": (request("python", MEMORY_BOMB["python"], memory_mb=96), ("memory_limit", "runtime_error")),
    "a memory bomb in C": (request("c", MEMORY_BOMB["c"], memory_mb=96), ("memory_limit", "runtime_error")),
    "memory of many processes": (
        request(
            "python",
            "import os, time\nfor _ in range(6): os.fork() or (bytearray(b'x' * (40 << 20)), time.sleep(5), "
            "print('ESCAPED'), os._exit(0))\n"
            "os.wait()",
            memory_mb=128,
            wall_seconds=9,
        ),
        ("memory_limit", "runtime_error"),
    ),
    "processor time": (request("python", BURN["python"], cpu_seconds=0.3), ("time_limit",)),
    "processor time of children": (
        request("python", "import os\nfor _ in range(4): os.fork()\nwhile True: pass", cpu_seconds=0.4, wall_seconds=20),
        ("time_limit",),
    ),
    "processor time of orphans": (request("c", ORPHANS, cpu_seconds=0.5, wall_seconds=60), ("time_limit",)),
    "processor time of children for which nobody waits": (
        request("python", FORGOTTEN, cpu_seconds=0.5, wall_seconds=60),
        ("time_limit",),
    ),
    "page tables": (request("c", PAGE_TABLES, memory_mb=64, cpu_seconds=20, wall_seconds=60), ("memory_limit",)),
    "the buffers of sockets": (request("c", SOCKETS, memory_mb=64, cpu_seconds=20, wall_seconds=60), ("memory_limit",)),
    "buffers of sockets that are enlarged": (
        request("python", "import socket\nfor end in socket.socketpair(): end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)"),
        ("runtime_error",),
    ),
    "memory that is shared": (
        request(
            "python",
            "import mmap, time\nkept = mmap.mmap(-1, 256 << 20)\nfor _ in range(256): kept.write(bytes([1]) * (1 << 20))\n"
            "time.sleep(5)\nprint('ESCAPED')",
            memory_mb=64,
            wall_seconds=60,
        ),
        ("memory_limit",),
    ),
    "hiding from whoever watches": (
        request("python", "import ctypes, sys\nsys.exit(ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) and 'refused' or print('ESCAPED'))"),
        ("runtime_error",),
    ),
    "a file that was built and is bigger than the memory": (request("c", BIG, memory_mb=32, disk_mb=256), ("ok",)),
    "a file that was built and is bigger than the disk": (request("c", BIG, memory_mb=32, disk_mb=64), ("disk_limit",)),
    "signals to the first process": (
        request("python", "import os\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass\nprint('alive')"),
        ("ok",),
    ),
    "a full disk": (request("bash", "cat /dev/zero > big", disk_mb=16), ("runtime_error", "disk_limit")),
    "killing everything": (request("python", KILL_EVERYTHING["python"]), ("ok", "runtime_error")),
    "fighting whoever fetches results": (
        request(
            "python",
            "import os\nopen('f', 'w').close()\n"
            "if os.fork() == 0:\n    while True:\n        try: os.kill(-1, 9)\n        except OSError: pass",
            fetch=("f",),
        ),
        ("ok", "disk_limit", "runtime_error"),
    ),
    "looking at the first process": (request("python", "open('/proc/1/mem', 'rb')"), ("runtime_error",)),
    "mounting": (request("bash", "mount -t tmpfs x /mnt"), ("runtime_error",)),
    "new namespaces": (request("bash", "unshare -Ur id"), ("runtime_error",)),
    "files of the machine": (request("bash", f"cat {Path(__file__)} /etc/shadow && echo ESCAPED"), ("runtime_error",)),
}
PLAIN = request("python", "print(6 * 7)", wall_seconds=20)


@dataclass(frozen=True)
class Answers:
    """What the pool of the other process said, and what the machine saw."""

    protections: dict[str, bool]
    results: dict[str, list[RunResult]]
    most_processes: int


@pytest.fixture(scope="module")
def answers() -> Answers:
    requests = [item for attack, _ in ATTACKS.values() for item in (attack, PLAIN, PLAIN)]
    text = "".join(item.model_dump_json() + "\n" for item in requests)
    with subprocess.Popen([sys.executable, "-m", "tests.sandbox.unprivileged"], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        with ThreadPoolExecutor() as threads:
            talk = threads.submit(process.communicate, text, 200)
            most = 0
            while not talk.done():
                most = max(most, descendants(process.pid))
            output, errors = talk.result()
    assert process.returncode == 0, errors
    first, *lines = output.splitlines()
    results = [RunResult.model_validate_json(line) for line in lines]
    by_attack = dict(zip(ATTACKS, (results[start : start + 3] for start in range(0, len(results), 3)), strict=True))
    return Answers(json.loads(first), by_attack, most)


@pytest.mark.parametrize("what", ATTACKS)
def test_is_survived_without_privileges(what: str, answers: Answers) -> None:
    attack, *after = answers.results[what]
    assert attack.status in ATTACKS[what][1], attack
    assert attack.run is not None
    assert "ESCAPED" not in attack.run.stdout
    assert [result.run.stdout for result in after if result.run] == ["42\n", "42\n"], after


def test_processor_time_of_children_for_whom_somebody_waits_counts_once() -> None:
    with Sandbox(slots=1, use_cgroups=False) as fresh:
        assert fresh.prints("python", WAITED_FOR, cpu_seconds=1.4, wall_seconds=60) == "done"


def test_an_unprivileged_service_says_what_is_off(answers: Answers) -> None:
    protections = answers.protections
    assert {name for name, on in protections.items() if not on} == {"cgroup_memory", "cgroup_pids", "cgroup_cpu"}


def test_a_bomb_without_cgroups_never_has_more_processes_on_the_machine_than_it_may(answers: Answers) -> None:
    """At most one bomb runs at a time, of 16 processes; besides, there are the service and two slots of two processes and a first one."""
    assert 5 <= answers.most_processes <= 16 + 1 + 2 * 3 + 1


def test_a_service_without_cgroups_refuses_to_start_where_all_protections_are_wanted() -> None:
    with pytest.raises(ConfigurationError, match="minimum full wants cgroup_memory"), Sandbox(use_cgroups=False, minimum="full"):
        pass
