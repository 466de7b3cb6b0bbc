"""Threats: reaching other runs, the runner that forks them, the service, or what comes after."""

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.sandbox.sandbox import Sandbox, only, processes_of_runs, request

from rljob.sandbox import cgroups, requests
from rljob.sandbox.pool import Pool

_C_KILL = """
#include <signal.h>
#include <unistd.h>
int main(void) { kill(-1, 9); kill(1, 9); for (int i = 3; i < 3000; i++) kill(i, 9); kill(getppid(), 9); }"""
KILL_EVERYTHING = {
    "python": "import os, signal\nfor pid in [-1, 1, 0, os.getppid()] + list(range(3, 3000)):\n    try:\n"
    "        os.kill(pid, signal.SIGKILL)\n"
    "    except OSError:\n        pass\n",
    "c": _C_KILL,
    "cpp": _C_KILL,
    "bash": "kill -9 -1 1 $PPID; for i in $(seq 3 500); do kill -9 $i; done 2> /dev/null",
    "javascript": "for (const p of [-1, 1, process.ppid]) try { process.kill(p, 'SIGKILL'); } catch (e) {}",
}
_C_WHO = r"""
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    DIR *all = opendir("/proc");
    int others = 0;
    for (struct dirent *e; (e = readdir(all));) others += isdigit(e->d_name[0]) && atoi(e->d_name) != getpid();
    printf("%s %s %d\n", others ? "False" : "True", getpid() < 10 ? "True" : "False", getppid());
}"""
WHO = {
    "c": _C_WHO,
    "cpp": _C_WHO,
    "javascript": "const seen = require('fs').readdirSync('/proc').filter(name => /^\\d+$/.test(name));\n"
    "console.log(seen.join() === String(process.pid) ? 'True' : 'False', process.pid < 10 ? 'True' : 'False', process.ppid);",
    "python": "import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()) == [os.getpid()], "
    "os.getpid() < 10, os.getppid())",
    "bash": "set -- /proc/[0-9]*; echo $([ $# -le 2 ] && echo True) $([ $$ -lt 10 ] && echo True) $PPID",
}


CLOSED = ("environ", "mem", "maps", "fd", "cmdline", "root", "cwd", "exe", "stack", "auxv", "ns/pid", "task", "syscall")
_C_LOOK = r"""
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    char name[64], path[128];
    while (scanf("%63s", name) == 1) {
        snprintf(path, sizeof path, "/proc/1/%s", name);
        int f = open(path, O_RDONLY);
        if (f >= 0 || opendir(path)) printf("ESCAPED %s\n", name);
    }
}"""
LOOK_AT_THE_FIRST = {
    "python": """
import os
for name in input().split():
    try:
        path = f"/proc/1/{name}"
        found = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(10)
        print("ESCAPED", name, found)
    except OSError:
        pass
""",
    "c": _C_LOOK,
    "cpp": _C_LOOK,
    "bash": 'for name in $(cat); do { ls /proc/1/$name/ || cat /proc/1/$name; } > /dev/null 2>&1 && echo "ESCAPED $name"; done; true',
    "javascript": """
const fs = require('fs');
for (const name of fs.readFileSync(0, 'utf8').split(' '))
    for (const look of [fs.readdirSync, fs.readFileSync, fs.readlinkSync])
        try { console.log('ESCAPED', name, look('/proc/1/' + name)); } catch (e) {}""",
}
_C_SAY = r"""
#include <stdio.h>
extern char **environ;
static char b[1 << 16];
int main(void) {
    for (char **e = environ; *e; e++) puts(*e);
    FILE *f = fopen("/proc/self/environ", "r");
    fwrite(b, 1, fread(b, 1, sizeof b, f), stdout);
}"""
SAY_ENVIRONMENT = {
    "python": "import os; print(os.environ, open('/proc/self/environ').read().strip(chr(0)))",
    "bash": "env; tr '\\0' '\\n' < /proc/self/environ",
    "c": _C_SAY,
    "cpp": _C_SAY,
    "javascript": "console.log(process.env, require('fs').readFileSync('/proc/self/environ', 'utf8'), process.execArgv)",
}
_C_DAEMON = """
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    if (!fork()) {
        setsid();
        for (int i = 1; i < 65; i++) signal(i, SIG_IGN);
        if (!fork()) for (;;) usleep(10000);
        _exit(0);
    }
    puts("left");
}"""
DAEMON = {
    "python": """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if os.fork() == 0:
        while True: time.sleep(0.01)
    os._exit(0)
print("left")
""",
    "c": _C_DAEMON,
    "cpp": _C_DAEMON,
    "bash": "(trap '' HUP TERM INT; setsid sleep 60 > /dev/null 2>&1 &); echo left",
    "javascript": "require('child_process').spawn('sleep', ['60'], {detached: true, stdio: 'ignore'}).unref(); console.log('left');",
}


def pids(pool: Pool) -> list[int]:
    """Runners, as the machine sees them."""
    return [slot._process.pid for slot in pool._all.values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("language", only(*KILL_EVERYTHING))
def test_killing_everything_kills_nobody_else(sandbox: Sandbox, language: str) -> None:
    before = pids(sandbox.pool)
    neighbour = request("python", "import time; time.sleep(1); print('alive')", wall_seconds=20)
    attack = request(language, KILL_EVERYTHING[language], wall_seconds=20)
    results = sandbox.together(neighbour, attack)
    assert results[0].run is not None
    assert results[0].run.stdout == "alive\n"
    assert pids(sandbox.pool) == before


def test_a_signal_to_the_process_group_reaches_the_run_alone(sandbox: Sandbox) -> None:
    before = pids(sandbox.pool)
    output = sandbox.output("python", "import os, signal; os.kill(0, signal.SIGKILL)")
    assert (output.status, output.signal) == ("runtime_error", 9)
    assert pids(sandbox.pool) == before


@pytest.mark.parametrize("language", only(*WHO))
def test_no_other_process_is_seen(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, WHO[language]) == "True True 0"


@pytest.mark.parametrize("language", only(*LOOK_AT_THE_FIRST))
def test_the_first_process_of_the_run_is_closed(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, LOOK_AT_THE_FIRST[language], stdin=" ".join(CLOSED)) == ""


@pytest.mark.parametrize("language", only(*SAY_ENVIRONMENT))
def test_the_services_environment_is_not_there(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("RLJOB_CONTAINER", secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("PYTHONPATH", secret)
    with Sandbox(slots=1) as fresh:
        text = fresh.prints(language, SAY_ENVIRONMENT[language])
    assert secret not in text
    assert "TOKEN" not in text
    assert "RLJOB" not in text
    assert "/tmp/work" in text


SEARCH_MEMORY = """
found = 0
first, second = (word.encode() for word in sys.argv[1:])
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
    for line in maps:
        span, rights = line.split()[:2]
        if rights.startswith("r") and "[v" not in line:
            start, end = (int(part, 16) for part in span.split("-"))
            memory.seek(start)
            try:
                data = memory.read(end - start)
            except OSError:
                continue
            position = -1
            while (position := data.find(first, position + 1)) >= 0:
                found += data[position + len(first):position + len(first) + len(second)] == second
print(found)
"""
"""Counts where the two words stand one after the other in the program's own memory; it never puts them so itself."""


def in_memory(sandbox: Sandbox, word: str) -> int:
    """How often a word is in the memory of a run."""
    parts = (word[:12], word[12:])
    return int(sandbox.prints("python", "import sys" + SEARCH_MEMORY, arguments=parts, memory_mb=512))


def test_secrets_of_the_service_are_nowhere_in_a_runs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("HF_TOKEN", secret)
    with Sandbox(slots=1) as fresh:
        assert in_memory(fresh, secret) == 0


def test_the_code_and_the_input_of_an_earlier_run_are_nowhere_in_memory() -> None:
    mark, said = secrets.token_hex(12), secrets.token_hex(12)
    with Sandbox(slots=1) as fresh:
        fresh.prints("python", f"print(len(input() + '{mark}'))", stdin=said, files={"notes.txt": mark}, arguments=(mark,))
        assert (in_memory(fresh, mark), in_memory(fresh, said)) == (0, 0)


def test_the_search_of_memory_finds_what_is_there(sandbox: Sandbox) -> None:
    mark = secrets.token_hex(12)
    code = f"import sys\nkept = '{mark}'.encode()\n" + SEARCH_MEMORY
    assert int(sandbox.prints("python", code, arguments=(mark[:12], mark[12:]), memory_mb=512)) > 0


def test_files_of_another_run_are_not_there(sandbox: Sandbox) -> None:
    paths = ("/tmp/left", "left", "/dev/shm/left", "/var/tmp/left")
    writer = f"for path in {paths}: open(path, 'w').write('x')"
    reader = f"import os; print([path for path in {paths} if os.path.exists(path)])"
    for _ in range(sandbox.pool.slots):
        sandbox.prints("python", writer)
    for _ in range(sandbox.pool.slots):
        assert sandbox.prints("python", reader) == "[]"


def test_files_of_a_run_beside_are_not_there(sandbox: Sandbox) -> None:
    writer = request("python", "import time; open('/tmp/beside', 'w').write('x'); time.sleep(1)", wall_seconds=20)
    code = """
import os, time
for _ in range(8):
    time.sleep(0.1)
    if os.path.exists("/tmp/beside"):
        print("ESCAPED")
"""
    reader = request("python", code, wall_seconds=20)
    results = sandbox.together(writer, reader)
    assert results[1].run is not None
    assert (results[1].status, results[1].run.stdout) == ("ok", "")


@pytest.mark.parametrize(
    "code",
    [
        "import builtins; builtins.print = builtins.len = builtins.int = None",
        "import sys; sys.modules.clear(); sys.path.clear(); sys.setrecursionlimit(10**6)",
        "import json, os, re; json.loads = os.listdir = os._exit = re.compile = lambda *a, **k: 1 / 0",
        "import gc\nfor thing in gc.get_objects():\n    if isinstance(thing, dict) and thing.get('__name__', '').startswith('rljob'):"
        " thing.clear()",
        "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_globals.clear()\n    frame = frame.f_back",
        "import ctypes; ctypes.memset(id(int), 0, 64)",
        "import signal, os\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass",
        "import atexit, os; atexit.register(lambda: os._exit(0)); os.register_at_fork(before=lambda: 1 / 0)",
        "import sys, os\nsys.stdout = sys.stderr = sys.stdin = None; os.closerange(0, 256)",
        "import gc; gc.disable(); gc.freeze(); gc.set_threshold(1)",
        "import os; os.umask(0o777); os.chdir('/'); os.environ.clear()",
        "import threading; threading._shutdown = None; threading.Thread.start = None",
        "import sys; sys.excepthook = lambda *a: 1 / 0; sys.unraisablehook = None\n1 / 0",
        "import sys; sys.settrace(lambda *a: 1 / 0); sys.setprofile(lambda *a: 1 / 0)",
        "import locale, random; random.seed(1); locale.setlocale(locale.LC_ALL, 'C')",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
    ],
    ids=["built-ins", "modules", "library functions", "our objects", "our frames", "types", "signals", "hooks", "streams", "collector",
         "process", "threads", "except hook", "tracing", "random numbers", "limits"],
)  # fmt: skip
def test_the_next_run_does_not_feel_what_this_one_did_to_the_interpreter(code: str, sandbox: Sandbox) -> None:
    for _ in range(sandbox.pool.slots):
        sandbox.run("python", code)
    check = """
import json, os, random, re
print(json.dumps([len("abc"), int("4")]), os.umask(0o22), re.compile("a").match("a") is not None, os.getcwd())
"""
    for _ in range(sandbox.pool.slots):
        assert sandbox.prints("python", check) == "[3, 4] 18 True /tmp/work"


def test_what_runs_share_is_kept_for_ever_and_what_they_make_is_not(sandbox: Sandbox) -> None:
    code = """
import gc, json, sys, weakref
kept = sys.getrefcount(None)
class Own: pass
ring = Own()
ring.ring = ring
gone = [weakref.ref(ring)]
del ring
text = "".join(["a", "b"])
print(all(sys.getrefcount(thing) == kept for thing in (json, json.loads, dict, "__main__", sys.modules)), sys.getrefcount(text) < 9)
print(gc.isenabled(), gc.collect() > 0, gone[0]() is None, json.loads(json.dumps({"a": [1.5]})) == {"a": [1.5]})
"""
    assert sandbox.prints("python", code).split() == ["True"] * 6


def test_random_numbers_differ_between_runs_and_hashes_do_not(sandbox: Sandbox) -> None:
    code = "import random, os, uuid; print(random.random(), os.urandom(8), uuid.uuid4(), hash('x'))"
    lines = [sandbox.prints("python", code).split() for _ in range(4)]
    assert len({line[0] for line in lines}) == len({line[2] for line in lines}) == 4
    assert len({line[-1] for line in lines}) == 1


@pytest.mark.parametrize("language", only(*DAEMON))
def test_a_daemon_does_not_outlive_its_run(sandbox: Sandbox, language: str) -> None:
    program = sandbox.build(language, DAEMON[language])
    for _ in range(3):
        result = sandbox.do(program.run())
        assert (result.status, result.run and result.run.stdout) == ("ok", "left\n")
    assert processes_of_runs(sandbox.pool) == 0


def test_a_tree_that_forks_while_it_is_killed_leaves_nobody(sandbox: Sandbox) -> None:
    code = "import os\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass"
    sandbox.run("python", code, wall_seconds=0.5, cpu_seconds=5)
    sandbox.run("python", "import os\nif os.fork() == 0:\n    while True:\n        if os.fork(): os._exit(0)\nelse: os._exit(0)")
    assert processes_of_runs(sandbox.pool) == 0


def test_interprocess_objects_do_not_outlive_their_run(sandbox: Sandbox) -> None:
    code = """
from multiprocessing import shared_memory
import sys
try:
    shared_memory.SharedMemory(name="left", create=True, size=4096)
except FileExistsError:
    print("ESCAPED")
import os
print("made")
sys.stdout.flush()
os._exit(0)
"""
    for _ in range(2 * sandbox.pool.slots):
        assert sandbox.prints("python", code) == "made"


def test_nothing_can_be_left_on_a_device_file(sandbox: Sandbox) -> None:
    code = """
import os
for name in ("null", "zero", "full", "random", "urandom"):
    for change in (os.utime, lambda path: os.chmod(path, 0o600), lambda path: os.chown(path, os.getuid(), os.getgid())):
        try:
            change(f"/dev/{name}")
            print("ESCAPED", name)
        except OSError:
            pass
open("/dev/null", "w").write("x")
print(open("/dev/zero", "rb").read(2))
"""
    before = os.stat("/dev/null").st_mtime_ns
    assert sandbox.prints("python", code) == r"b'\x00\x00'"
    assert os.stat("/dev/null").st_mtime_ns == before


def test_the_host_name_is_not_the_machines(sandbox: Sandbox) -> None:
    assert sandbox.prints("python", "import os; print(os.uname().nodename)") == "sandbox"


def test_how_long_the_machine_is_up_is_not_told(sandbox: Sandbox) -> None:
    code = "import time; print(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"
    monotonic, boot = map(float, sandbox.prints("python", code).split())
    assert max(monotonic, boot) < max(600, time.monotonic() / 2)


def test_the_user_is_nobody_of_the_machine_and_another_one_in_each_slot(sandbox: Sandbox) -> None:
    run = request("python", "import os, time; print(os.getuid()); time.sleep(1.5)", wall_seconds=20)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(sandbox.together, *[run] * sandbox.pool.slots)
        seen: set[int] = set()
        while not waiting.done():
            seen |= users_below(pids(sandbox.pool))
        assert {result.run.stdout for result in waiting.result() if result.run} == {"1000\n"}
    assert 0 not in seen
    assert len(seen) == 2 * sandbox.pool.slots, "one of each slot's runner and one of its runs"


def users_below(parents: list[int]) -> set[int]:
    """Users of all descendants of processes."""
    parent_of, user_of = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = dict(line.split(":", 1) for line in open(f"/proc/{name}/status", encoding="utf-8").read().splitlines())
        except OSError:
            continue
        parent_of[int(name)], user_of[int(name)] = int(fields["PPid"]), int(fields["Uid"].split()[0])
    # By generations: when ids begin again at 1, a child's is smaller than its parent's.
    below, youngest = set[int](), set(parents)
    while youngest := {pid for pid, parent in parent_of.items() if parent in youngest}:
        below |= youngest
    return {user_of[pid] for pid in below}


def test_the_clock_cannot_be_turned(sandbox: Sandbox) -> None:
    code = """
import time
for clock in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC):
    try:
        time.clock_settime(clock, 0)
        print("ESCAPED")
    except OSError:
        pass
"""
    assert sandbox.prints("python", code) == ""


def test_a_fake_clock_in_the_program_does_not_change_what_is_measured(sandbox: Sandbox) -> None:
    output = sandbox.output("python", "import time\nreal = time.sleep\ntime.monotonic = time.time = lambda: 0\nreal(0.3)")
    assert output.wall_seconds >= 0.3


def test_cancelling_kills_the_run_and_frees_the_slot(sandbox: Sandbox) -> None:
    import asyncio

    async def cancel() -> float:
        task = asyncio.create_task(sandbox.pool.run(request("python", "while True: pass", cpu_seconds=30, wall_seconds=60)))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return time.monotonic() - began

    for _ in range(sandbox.pool.slots + 1):
        assert sandbox.do(cancel()) < 5
    assert processes_of_runs(sandbox.pool) == 0


def test_a_slot_whose_runner_is_killed_is_made_anew() -> None:
    """Not something a run can do; whatever kills a runner, the pool goes on, and the run it held is a failure of ours."""
    import asyncio
    import signal

    with Sandbox(slots=2) as fresh:

        async def murder() -> str:
            task = asyncio.create_task(fresh.pool.run(request("python", "import time; time.sleep(30)", wall_seconds=40)))
            await asyncio.sleep(0.3)
            busy = next(slot for slot in fresh.pool._all.values() if slot not in fresh.pool._idle._queue)  # type: ignore[attr-defined]
            os.kill(busy._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            return (await task).status

        assert fresh.do(murder()) == "sandbox_error"
        for _ in range(2 * fresh.pool.slots):
            assert fresh.prints("python", "print(1)") == "1"
        assert made_anew(fresh) == 1


def made_anew(fresh: Sandbox) -> int:
    """How many slots were, once one was."""
    deadline = time.monotonic() + 60
    while not fresh.pool.slots_rebuilt and time.monotonic() < deadline:
        fresh.prints("python", "print(1)")
    return fresh.pool.slots_rebuilt


def test_a_slot_in_which_no_run_can_begin_is_made_anew() -> None:
    with Sandbox(slots=1) as fresh:
        job = requests.run_job(request("python", "print(1)"), requests.Inputs(), fresh.pool._found["python"], counted=False, artefact=None)
        unmountable = replace(job, bounds={**job.bounds, "disk": "nonsense"})
        assert "mount tmpfs" in fresh.do(fresh.pool._ran(unmountable)).ended.trouble
        assert fresh.prints("python", "print(1)") == "1"
        assert made_anew(fresh) == 1


def test_a_slot_is_kept_if_the_files_of_a_request_do_not_fit() -> None:
    with Sandbox(slots=1, use_cgroups=False) as fresh:
        assert fresh.run("python", "", files={"big": "x" * (3 << 20)}, disk_mb=2).status == "disk_limit"
        assert fresh.run("python", "", files={"big": "x" * (90 << 20)}, disk_mb=128, memory_mb=16).status == "memory_limit"
        assert fresh.prints("python", "print(1)") == "1"
        assert fresh.pool.slots_rebuilt == 0


@pytest.mark.parametrize(
    ("killed", "room", "status"),
    [
        ((0,), (), "runtime_error"),  # nobody
        ((1, 1, 1), (1 << 40,), "runtime_error"),  # somebody beside it; tried again alone it ends by its own fault
        ((1, 1, 2), (1 << 40, 1 << 40), "memory_limit"),  # alone, too, where there was room for all that it may have
        ((1, 1, 2), (0, 1 << 40), "sandbox_error"),  # alone, but where there was none
        ((1, 1, 2), (1 << 40, 0), "sandbox_error"),  # alone, but somebody else has taken it meanwhile and has it still
    ],
)
def test_a_run_that_fills_the_memory_of_the_machine_has_itself_to_blame_and_no_other_has(
    killed: tuple[int, ...], room: tuple[int, ...], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing counts its memory then, so the kernel only says how many it has killed so far, here whenever it is asked."""
    with Sandbox(slots=1, use_cgroups=False) as fresh:
        there, looks, rooms = cgroups.killed_beside_us(), iter(killed), iter(room)
        monkeypatch.setattr(cgroups, "killed_beside_us", lambda: there + next(looks, killed[-1]))
        monkeypatch.setattr(cgroups, "room_beside_us", lambda: next(rooms))
        assert fresh.run("python", "import os; os.kill(os.getpid(), 9)").status == status
        assert fresh.run("python", "import os; os.kill(os.getpid(), 9)").status == "runtime_error", "nobody was killed since"


def test_a_slot_is_made_anew_after_its_share_of_runs() -> None:
    with Sandbox(slots=1, retire_after=3) as fresh:
        for _ in range(10):
            assert fresh.prints("python", "print(1)") == "1"
        assert fresh.pool.slots_rebuilt == 3
