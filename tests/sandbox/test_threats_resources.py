"""Threats: taking more time, memory, disk, processes or output than was given, or more than the machine can spare."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.sandbox.sandbox import Sandbox, descendants, only, request

FORK_BOMB = {
    "python": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "c": "#include <unistd.h>\nint main(void) { for (;;) fork(); }",
    "cpp": "#include <unistd.h>\nint main() { for (;;) fork(); }",
    "bash": "bomb() { bomb | bomb & }; bomb; wait; while :; do :; done",
    "javascript": "const {spawn} = require('child_process');\nsetInterval(() => { for (let i = 0; i < 50; i++) "
    "spawn('sleep', ['9']).on('error', () => {}); }, 1);",
    "java": 'public class Main { public static void main(String[] a) { while (true) try { new ProcessBuilder("sleep", "9").start(); } '
    "catch (Exception e) {} } }",
    "rust": 'use std::process::Command;\nfn main() { loop { let _ = Command::new("sleep").arg("9").spawn(); } }',
}
THREAD_BOMB = {
    "python": "import threading, time\nwhile True:\n    try:\n        threading.Thread(target=time.sleep, args=(9,)).start()\n"
    "    except RuntimeError:\n        pass\n",
    "c": "#include <pthread.h>\n#include <unistd.h>\nstatic void *nap(void *a) { sleep(9); return a; }\n"
    "int main(void) { pthread_t t; for (;;) pthread_create(&t, 0, nap, 0); }",
    "javascript": "const {Worker} = require('worker_threads');\n"
    "setInterval(() => new Worker('setTimeout(() => {}, 9000)', {eval: true}).on('error', () => {}), 1);",
    "rust": "use std::{thread, time::Duration};\n"
    "fn main() { loop { let _ = thread::Builder::new().spawn(|| thread::sleep(Duration::from_secs(9))); } }",
    "cpp": "#include <thread>\n#include <system_error>\n#include <unistd.h>\nint main() { for (;;) try { std::thread(sleep, 9).detach(); } "
    "catch (std::system_error&) {} }",
    "java": "public class Main { public static void main(String[] a) { while (true) try { new Thread(() -> { try { Thread.sleep(9000); } "
    "catch (Exception e) {} }).start(); } catch (Throwable e) {} } }",
}
MEMORY_BOMB = {
    "python": "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))\n",
    "c": "#include <stdlib.h>\n#include <string.h>\nint main(void) { for (;;) { char *p = malloc(1 << 20); if (!p) abort(); "
    "memset(p, 1, 1 << 20); } }",
    "cpp": "#include <vector>\nint main() { std::vector<std::vector<char>> v; for (;;) v.emplace_back(1 << 20, 'x'); }",
    "bash": "x=x; while :; do x=$x$x; done",
    "javascript": "const kept = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1));",
    "java": "import java.util.*; public class Main { public static void main(String[] a) { List<byte[]> l = new ArrayList<>(); "
    "while (true) l.add(new byte[1 << 20]); } }",
    "rust": "fn main() { let mut v = Vec::new(); loop { v.push(vec![1u8; 1 << 20]); } }",
}
BURN = {
    "python": "while True: pass",
    "c": "int main(void) { for (volatile int i = 0;; i++); }",
    "cpp": "int main() { for (volatile int i = 0;; i = i + 1); }",
    "bash": "while :; do :; done",
    "javascript": "for (;;);",
    "java": "public class Main { public static void main(String[] a) { while (true); } }",
    "rust": "fn main() { loop { std::hint::black_box(0); } }",
}
SLEEP = {
    "python": "import time; time.sleep(60)",
    "c": "#include <unistd.h>\nint main(void) { sleep(60); }",
    "cpp": "#include <unistd.h>\nint main() { sleep(60); }",
    "rust": "fn main() { std::thread::sleep(std::time::Duration::from_secs(60)); }",
    "bash": "sleep 60",
    "javascript": "setTimeout(() => {}, 60000)",
}
FLOOD = {
    "python": "import sys\nwhile True:\n    sys.stdout.write('x' * 65536)\n",
    "c": "#include <unistd.h>\nstatic char b[65536];\nint main(void) { for (;;) write(1, b, sizeof b); }",
    "cpp": "#include <unistd.h>\nstatic char b[65536];\nint main() { for (;;) write(1, b, sizeof b); }",
    "java": 'public class Main { public static void main(String[] a) { while (true) System.out.println("x".repeat(65536)); } }',
    "rust": 'fn main() { let s = "x".repeat(65536); loop { println!("{s}"); } }',
    "bash": "yes",
    "javascript": "const fs = require('fs'); const s = 'x'.repeat(65536); for (;;) fs.writeSync(1, s);",
}
FULL = ("runtime_error", "disk_limit", "memory_limit")
_C_BIG_FILE = """
#include <stdio.h>
static char b[1 << 20];
int main(void) { FILE *f = fopen("big", "w"); while (fwrite(b, 1, sizeof b, f) == sizeof b); return 1; }"""
BIG_FILE = {
    "python": "with open('big', 'wb') as file:\n    while True: file.write(b'x' * (1 << 20))\n",
    "c": _C_BIG_FILE,
    "cpp": _C_BIG_FILE,
    "bash": "cat /dev/zero > big",
    "javascript": "const fs = require('fs'); const f = fs.openSync('big', 'w'); for (;;) fs.writeSync(f, Buffer.alloc(1 << 20));",
}
_C_NAMES = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    char name[256];
    int n = 0, f;
    do {
        snprintf(name, sizeof name, "%0250d", ++n);
        f = open(name, O_CREAT | O_WRONLY, 0600);
        close(f);
    } while (f >= 0);
    printf("%d\\n", n);
}"""
NAMES = {
    "python": """
n = 0
try:
    while True:
        n += 1
        open(f"{n:0250}", "w").close()
except OSError:
    print(n)
""",
    "c": _C_NAMES,
    "cpp": _C_NAMES,
    "bash": "n=0; printf -v zeros %0240d 0; while : > $zeros$((++n)); do :; done 2> /dev/null; echo $n",
    "javascript": """
const fs = require('fs');
let n = 0;
try { for (;;) fs.closeSync(fs.openSync(String(++n).padStart(250, '0'), 'w')); } catch (e) { console.log(n); }""",
}
_C_LINKS = """
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char target[4001] = {0}, hard[32], soft[32];
    int n = 0;
    memset(target, 'x', 4000);
    close(open("a", O_CREAT | O_WRONLY, 0600));
    do {
        snprintf(hard, sizeof hard, "l%d", ++n);
        snprintf(soft, sizeof soft, "s%d", n);
    } while (!link("a", hard) && !symlink(target, soft));
    printf("%d\\n", n);
}"""
LINKS = {
    "python": """
import os
open("a", "w").close()
n = 0
try:
    while n < 10**6:
        n += 1
        os.link("a", f"l{n}")
        os.symlink("x" * 4000, f"s{n}")
except OSError:
    print(n)
""",
    "c": _C_LINKS,
    "cpp": _C_LINKS,
    "javascript": """
const fs = require('fs');
fs.writeFileSync('a', '');
let n = 0;
try { for (;;) { fs.linkSync('a', 'l' + ++n); fs.symlinkSync('x'.repeat(4000), 's' + n); } } catch (e) { console.log(n); }""",
}
_C_FOLDERS = """
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    char name[201];
    snprintf(name, sizeof name, "%0200d", 0);
    for (int i = 0; i < 20000 && !mkdir(name, 0700) && !chdir(name); i++);
    puts("done");
}"""
FOLDERS = {
    "python": """
import os
try:
    for _ in range(20000):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
except OSError:
    pass
print("done")
""",
    "c": _C_FOLDERS,
    "cpp": _C_FOLDERS,
    "bash": "printf -v name %0200d 0; for i in {1..40}; do mkdir $name && cd -P $name; done 2> /dev/null; echo done",
    "javascript": """
const fs = require('fs'), name = 'd'.repeat(200);
try { for (let i = 0; i < 20000; i++) { fs.mkdirSync(name); process.chdir(name); } } catch (e) {}
console.log('done');""",
}
_C_SPARSE = """
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    signal(SIGXFSZ, SIG_IGN);
    int f = open("sparse", O_RDWR | O_CREAT, 0600);
    if (!ftruncate(f, 1L << 40) || !ftruncate(f, 1L << 30) || !posix_fallocate(f, 0, 32 << 20)) puts("ESCAPED");
    puts("refused");
}"""
SPARSE = {
    "python": """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
handle = os.open("sparse", os.O_RDWR | os.O_CREAT)
for size in (1 << 40, 1 << 30):
    try:
        os.ftruncate(handle, size)
        print("ESCAPED")
    except OSError:
        pass
try:
    os.posix_fallocate(handle, 0, 32 << 20)
    print("ESCAPED")
except OSError:
    print("refused")
""",
    "c": _C_SPARSE,
    "cpp": _C_SPARSE,
    "bash": "trap '' XFSZ; truncate -s 1T sparse 2> /dev/null && echo ESCAPED; echo refused",
    "javascript": """
const fs = require('fs');
process.on('SIGXFSZ', () => {});
try { fs.ftruncateSync(fs.openSync('sparse', 'w'), 2 ** 40); console.log('ESCAPED'); } catch (e) { console.log('refused'); }
""",
}
_C_ZOMBIES = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    int n = 0;
    pid_t child;
    do if (!(child = fork())) _exit(0); while (++n < 10000 && child > 0);
    printf("%d\\n", n);
}"""
ZOMBIES = {
    "python": """
import os
n = 0
try:
    while n < 10000:
        n += 1
        if os.fork() == 0: os._exit(0)
except OSError:
    print(n)
""",
    "c": _C_ZOMBIES,
    "cpp": _C_ZOMBIES,
    "javascript": """
let n = 0, child;
do { child = require('child_process').spawn('true', {stdio: 'ignore'}).on('error', () => {}); } while (++n < 10000 && child.pid);
console.log(n);""",
}
_C_BRIEF = """
#include <sys/wait.h>
#include <unistd.h>
int main(void) { for (;;) { if (!fork()) { for (volatile int i = 0; i < 1000000; i = i + 1); _exit(0); } wait(0); } }"""
BRIEF_CHILDREN = {
    "python": "import os\nwhile True:\n    if os.fork() == 0:\n        for _ in range(10**5): pass\n        os._exit(0)\n    os.wait()",
    "c": _C_BRIEF,
    "cpp": _C_BRIEF,
    "bash": "while :; do (for ((i = 0; i < 3000; i++)); do :; done); done",
    "javascript": "for (;;) require('child_process').spawnSync('bash', ['-c', 'for ((i = 0; i < 9000; i++)); do :; done']);",
}
_C_ORPHANS = """
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    for (int i = 0; i < 100; i++) {
        if (!fork()) { fork(); _exit(0); }
        wait(0);
    }
    puts("done");
}"""
ORPHANS = {
    "python": """
import os
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
print("done")
""",
    "c": _C_ORPHANS,
    "cpp": _C_ORPHANS,
    "bash": "for i in {1..100}; do (: &); done; echo done",
}


@pytest.mark.parametrize("language", only(*FORK_BOMB))
def test_a_fork_bomb_takes_no_more_than_its_processes(sandbox: Sandbox, language: str) -> None:
    processes = 48 if language == "java" else 24  # with threads of its own
    output = sandbox.output(language, FORK_BOMB[language], processes=processes, cpu_seconds=0.4, wall_seconds=1)
    assert output.status in ("time_limit", "wall_limit", "process_limit")


def test_a_fork_bomb_never_has_more_processes_on_the_machine_than_it_may(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor() as threads:
        bomb = threads.submit(sandbox.run, "c", FORK_BOMB["c"], processes=24, cpu_seconds=0.5, wall_seconds=3)
        most = 0
        while not bomb.done():
            most = max(most, *(descendants(slot._process.pid) for slot in sandbox.pool._all.values()))  # type: ignore[attr-defined]
    assert most <= 24 + 4, "the slot's two, the first of the run, and one that is about to be refused"


@pytest.mark.parametrize("language", only(*THREAD_BOMB))
def test_a_thread_bomb_takes_no_more_than_its_processes(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, THREAD_BOMB[language], processes=32, cpu_seconds=0.5, wall_seconds=1)
    assert output.status in ("time_limit", "wall_limit", "process_limit", "memory_limit", "runtime_error")


@pytest.mark.parametrize("language", only(*MEMORY_BOMB))
def test_a_memory_bomb_ends_at_its_limit(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, MEMORY_BOMB[language], memory_mb=96, cpu_seconds=4, wall_seconds=15)
    assert output.status in ("memory_limit", "runtime_error")
    assert output.memory_mb < 96 + 64  # pages of the language's own program count in it


def test_memory_of_many_processes_is_added_up(sandbox: Sandbox) -> None:
    code = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(b"x" * (32 << 20))
        time.sleep(5)
        print("ESCAPED", flush=True)
        os._exit(0)
for _ in range(8):
    if os.wait()[1]:
        os._exit(9)
"""
    output = sandbox.output("python", code, memory_mb=128, wall_seconds=9)
    assert output.status in ("memory_limit", "runtime_error")


def test_an_impossible_amount_of_memory_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.output("python", "bytearray(1 << 46)").status in ("memory_limit", "runtime_error")


def test_endless_recursion_ends_the_program_alone(sandbox: Sandbox) -> None:
    output = sandbox.output(
        "c", "int f(int n) { volatile char b[4096]; b[0] = n; return f(n + 1) + b[0]; }\nint main(void) { return f(0); }"
    )
    assert output.status in ("runtime_error", "memory_limit")


@pytest.mark.parametrize("language", only(*BURN))
def test_processor_time_is_limited(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, BURN[language], cpu_seconds=0.3, wall_seconds=10)
    assert output.status == "time_limit"
    assert output.cpu_seconds < 1.5


def test_processor_time_of_children_counts(sandbox: Sandbox) -> None:
    code = "import os\nfor _ in range(6):\n    if os.fork() == 0:\n        while True: pass\nos.wait()"
    assert sandbox.output("python", code, cpu_seconds=0.4, wall_seconds=10).status == "time_limit"


@pytest.mark.parametrize("language", only(*BRIEF_CHILDREN))
def test_processor_time_of_short_lived_children_counts(sandbox: Sandbox, language: str) -> None:
    assert sandbox.output(language, BRIEF_CHILDREN[language], cpu_seconds=0.4, wall_seconds=10).status == "time_limit"


@pytest.mark.parametrize("language", only(*SLEEP))
def test_doing_nothing_is_limited(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, SLEEP[language], wall_seconds=0.4)
    assert output.status == "wall_limit"
    assert output.wall_seconds < 5


def test_signals_that_are_caught_do_not_extend_the_time(sandbox: Sandbox) -> None:
    code = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True: pass
"""
    assert sandbox.output("python", code, cpu_seconds=0.3, wall_seconds=10).status == "time_limit"


def test_a_stopped_program_does_not_hang_the_slot(sandbox: Sandbox) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    assert sandbox.output("python", code, wall_seconds=0.5).status == "wall_limit"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_endless_line_of_output_is_cut(sandbox: Sandbox, stream: str) -> None:
    output = sandbox.output("python", f"import sys\nwhile True: sys.{stream}.write('x' * 65536)", output_kb=64)
    assert output.status == "output_limit"
    assert output.truncated
    assert len(getattr(output, stream)) == 64 * 1024


@pytest.mark.parametrize("language", only(*FLOOD))
def test_an_output_flood_is_ended(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, FLOOD[language], output_kb=16, wall_seconds=10)
    assert output.status == "output_limit"
    assert len(output.stdout.encode()) <= 16 * 1024


def test_a_flood_from_many_processes_is_ended(sandbox: Sandbox) -> None:
    code = "import os\nfor _ in range(4): os.fork()\nwhile True: os.write(1, b'x' * 4096); os.write(2, b'y' * 4096)"
    assert sandbox.output("python", code, output_kb=16).status == "output_limit"


def test_output_beyond_what_is_kept_is_no_error(sandbox: Sandbox) -> None:
    output = sandbox.output("python", "print('x' * 100000)", output_kb=16)
    assert (output.status, output.truncated, len(output.stdout)) == ("ok", True, 16384)


@pytest.mark.parametrize("language", only(*BIG_FILE))
def test_the_disk_cannot_be_filled(sandbox: Sandbox, language: str) -> None:
    assert sandbox.output(language, BIG_FILE[language], disk_mb=16).status in FULL


def test_many_small_files_cannot_fill_the_disk(sandbox: Sandbox) -> None:
    code = """
n = 0
try:
    while True:
        n += 1
        with open(f"f{n}", "wb") as file:
            file.write(b"x" * (1 << 20))
except OSError:
    print(n)
"""
    assert int(sandbox.prints("python", code, disk_mb=16)) <= 17


@pytest.mark.parametrize("language", only(*NAMES))
def test_names_of_files_cannot_use_up_memory(sandbox: Sandbox, language: str) -> None:
    assert int(sandbox.prints(language, NAMES[language], cpu_seconds=8, wall_seconds=20)) <= 16384


@pytest.mark.parametrize("language", only(*LINKS))
def test_links_cannot_use_up_memory(sandbox: Sandbox, language: str) -> None:
    assert int(sandbox.prints(language, LINKS[language], cpu_seconds=8, wall_seconds=20)) <= 16384


@pytest.mark.parametrize("language", only(*FOLDERS))
def test_a_tree_of_folders_of_any_depth_goes_away_with_the_run(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, FOLDERS[language], cpu_seconds=8, wall_seconds=20) == "done"


@pytest.mark.parametrize("language", only(*SPARSE))
def test_a_sparse_file_is_no_way_to_a_big_one(sandbox: Sandbox, language: str) -> None:
    assert sandbox.output(language, SPARSE[language], disk_mb=16).stdout == "refused\n"


def test_no_memory_is_dumped_to_disk(sandbox: Sandbox) -> None:
    output = sandbox.output("c", "#include <stdlib.h>\nint main(void) { abort(); }", fetch=("core",))
    assert (output.status, output.signal) == ("runtime_error", 6)
    assert sandbox.run("c", "#include <stdlib.h>\nint main(void) { abort(); }", fetch=("core",)).files == {}


def test_descriptors_run_out_for_the_program_alone(sandbox: Sandbox) -> None:
    code = "import os\ntry:\n    while True: os.pipe()\nexcept OSError as error: print(error.errno)"
    assert sandbox.prints("python", code) == "24"


def test_pipes_full_of_data_stay_within_the_descriptors(sandbox: Sandbox) -> None:
    code = """
import fcntl, os
total = 0
try:
    while True:
        _, end = os.pipe()
        os.set_blocking(end, False)
        try:
            fcntl.fcntl(end, 1031, 1 << 20)
        except OSError:
            pass
        try:
            while True: total += os.write(end, b"x" * 65536)
        except BlockingIOError:
            pass
except OSError:
    print(total >> 20)
"""
    output = sandbox.output("python", code, memory_mb=128)
    assert output.status in ("ok", "memory_limit")
    assert output.status == "memory_limit" or int(output.stdout) <= 128


@pytest.mark.parametrize("language", only(*ZOMBIES))
def test_a_swarm_of_zombies_is_limited_and_goes_away(sandbox: Sandbox, language: str) -> None:
    assert int(sandbox.prints(language, ZOMBIES[language], processes=16)) <= 17


@pytest.mark.parametrize("language", only(*ORPHANS))
def test_orphans_that_have_ended_do_not_use_up_processes(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, ORPHANS[language], processes=16) == "done"


def test_pending_signals_and_timers_are_limited(sandbox: Sandbox) -> None:
    code = r"""
    #include <signal.h>
    #include <stdio.h>
    #include <time.h>
    int main(void) { timer_t t; int n = 0; struct sigevent e = {.sigev_notify = SIGEV_NONE};
        while (n < 100000 && timer_create(CLOCK_MONOTONIC, &e, &t) == 0) n++; printf("%d\n", n); }
    """
    assert int(sandbox.prints("c", code)) <= 1000


def test_memory_cannot_be_locked(sandbox: Sandbox) -> None:
    code = "import ctypes\nprint(ctypes.CDLL(None).mlockall(3), ctypes.CDLL(None).mlock(ctypes.create_string_buffer(1 << 20), 1 << 20))"
    assert sandbox.prints("python", code) == "-1 -1"


def test_an_expression_that_takes_for_ever_to_compile_is_limited(sandbox: Sandbox) -> None:
    assert sandbox.run("python", "x = " + "-" * 60000 + "1").status in ("runtime_error", "memory_limit", "time_limit")
    assert sandbox.output("python", "print(9**9**9)", cpu_seconds=0.4).status in ("time_limit", "memory_limit")


@pytest.mark.parametrize(
    "code",
    [
        "#include </dev/zero>\nint main(void) {}",
        '#include "main.c"\nint main(void) {}',
        "#define A(x) x x x x x x x x x x\n#define B(x) A(A(A(A(x))))\nint main(void) { B(B(;)) }",
        "char a[1 << 30] = {1};\nint main(void) {}",
    ],
    ids=["an endless include", "a file that includes itself", "a macro that explodes", "a huge array"],
)
def test_a_compiler_bomb_ends_at_the_compilers_limits(sandbox: Sandbox, code: str) -> None:
    limits = {"cpu_seconds": 1, "wall_seconds": 5, "memory_mb": 256, "processes": 16, "disk_mb": 32}
    result = sandbox.run("c", code, compile_limits=limits)
    assert result.compile is not None
    assert result.compile.status in ("compile_error", "time_limit", "wall_limit", "memory_limit", "disk_limit", "output_limit")
    assert result.run is None


def test_a_flood_of_compiler_messages_is_cut(sandbox: Sandbox) -> None:
    code = "#include <vector>\n" + "".join(f"int a{n} = std::vector<int>{{}};\n" for n in range(300)) + "int main() {}"
    result = sandbox.run(
        "cpp", code, compile_limits={"cpu_seconds": 20, "wall_seconds": 30, "memory_mb": 512, "output_kb": 16, "disk_mb": 64}
    )
    assert result.compile is not None
    assert result.compile.status in ("compile_error", "output_limit")
    assert len(result.compile.stderr) <= 16384


def test_a_bomb_in_one_slot_leaves_the_other_working(sandbox: Sandbox) -> None:
    bomb = request("python", FORK_BOMB["python"], processes=16, cpu_seconds=0.5, wall_seconds=3)
    plain = request("python", "print(6 * 7)", wall_seconds=20)
    results = sandbox.together(bomb, *[plain] * 8)
    assert [result.run and result.run.stdout for result in results[1:]] == ["42\n"] * 8
