"""Threats: tricks with what goes in and comes out."""

import pytest
from tests.sandbox.sandbox import Sandbox, only

ECHO = {
    "python": "import sys; print(len(sys.stdin.read()))",
    "c": '#include <stdio.h>\nint main(void) { long n = 0; while (getchar() != EOF) n++; printf("%ld\\n", n); }',
    "bash": "wc -c",
    "javascript": "console.log(require('fs').readFileSync(0).length)",
}


@pytest.mark.parametrize("language", only(*ECHO))
def test_much_input_that_is_read_arrives_whole(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, ECHO[language], stdin="x" * 3_000_000) == "3000000"


def test_much_input_that_is_not_read_hangs_nobody(sandbox: Sandbox) -> None:
    assert sandbox.prints("python", "print('done')", stdin="x" * 3_000_000) == "done"


_C_WRITE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    char text[9];
    int again = open("/proc/self/fd/0", O_RDWR);
    if (write(0, "y", 1) > 0 || !ftruncate(0, 0) || !ftruncate(0, 1 << 20) || write(again, "y", 1) > 0
        || mmap(0, 1, PROT_WRITE, MAP_SHARED, 0, 0) != MAP_FAILED) puts("ESCAPED");
    lseek(0, 0, SEEK_SET);
    fwrite(text, 1, read(0, text, 9), stdout);
}"""
WRITE_INPUT = {
    "python": """
import mmap, os
for attempt in (
    lambda: os.write(0, b"y"),
    lambda: os.ftruncate(0, 0),
    lambda: os.ftruncate(0, 1 << 30),
    lambda: open("/dev/stdin", "r+b").write(b"y") and open("/dev/stdin", "r+b", buffering=0).write(b"y"),
    lambda: open("/proc/self/fd/0", "wb", buffering=0).write(b"y"),
    lambda: mmap.mmap(0, 1, mmap.MAP_SHARED, mmap.PROT_WRITE),
):
    try:
        attempt()
        print("ESCAPED")
    except OSError:
        pass
os.lseek(0, 0, 0)
print(os.read(0, 9).decode())
""",
    "c": _C_WRITE,
    "cpp": _C_WRITE,
    "bash": "echo -n y >&0 && echo ESCAPED; echo -n y > /proc/self/fd/0 && echo ESCAPED; truncate -s 0 /dev/stdin && echo ESCAPED; cat",
    "javascript": """
const fs = require('fs');
for (const attempt of [() => fs.writeSync(0, 'y'), () => fs.ftruncateSync(0, 0), () => fs.openSync('/proc/self/fd/0', 'w'),
                       () => fs.writeSync(fs.openSync('/dev/stdin', 'r+'), 'y')])
    try { attempt(); console.log('ESCAPED'); } catch (e) {}
console.log(fs.readFileSync(0, 'utf8'));""",
}
_C_DESCRIPTORS = r"""
#include <fcntl.h>
#include <stdio.h>
int main(void) { for (int i = 3; i < 4096; i++) if (fcntl(i, F_GETFD) != -1) printf("ESCAPED %d\n", i); puts("none"); }"""
DESCRIPTORS = {
    "python": """
import os
for number in range(3, 4096):
    try:
        os.fstat(number)
        print("ESCAPED", number)
    except OSError:
        pass
print("none")
""",
    "c": _C_DESCRIPTORS,
    "cpp": _C_DESCRIPTORS,
    "bash": "for f in /proc/$$/fd/*; do case $(readlink $f) in *main.sh | '') ;; *) echo ${f##*/} ;; esac; done"
    " | grep -vx '[012]' || echo none",
    # Node.js opens some of its own.
    "javascript": """
const fs = require('fs'), own = /^(anon_inode:|pipe:|\\/dev\\/null$)/;
for (const number of fs.readdirSync('/proc/self/fd'))
    try {
        const to = fs.readlinkSync('/proc/self/fd/' + number);
        if (number > 2 && !own.test(to)) console.log('ESCAPED', number, to);
    } catch (e) {}
console.log('none');""",
}
_C_CLOSE = "#include <unistd.h>\nint main(void) { for (int i = 0; i < 1000; i++) close(i); }"
CLOSE = {
    "python": "import os; os.closerange(0, 1000)",
    "c": _C_CLOSE,
    "cpp": _C_CLOSE,
    "bash": "exec 0<&- 1>&- 2>&-; echo lost",
    "javascript": "for (let i = 0; i < 256; i++) try { require('fs').closeSync(i); } catch (e) {}",
}


@pytest.mark.parametrize("language", only(*WRITE_INPUT))
def test_the_input_cannot_be_written(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, WRITE_INPUT[language], stdin="x") == "x"


@pytest.mark.parametrize("language", only(*DESCRIPTORS))
def test_descriptors_beyond_the_three_are_not_inherited(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, DESCRIPTORS[language]) == "none"


@pytest.mark.parametrize("language", only(*CLOSE))
def test_closing_every_descriptor_is_an_empty_output(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, CLOSE[language])
    assert (output.stdout, output.status) in (("", "ok"), ("", "runtime_error"))


def test_closing_the_output_does_not_end_the_time_limit(sandbox: Sandbox) -> None:
    assert sandbox.output("python", "import os; os.close(1); os.close(2)\nwhile True: pass", cpu_seconds=0.3).status == "time_limit"


@pytest.mark.parametrize("language", ["python", "bash"])
def test_output_may_be_opened_by_name_and_is_only_ones_own(sandbox: Sandbox, language: str) -> None:
    code = {
        "python": "open('/dev/stdout', 'w').write('out'); open('/dev/stderr', 'w').write('err')",
        "bash": "echo -n out > /dev/stdout; echo -n err > /dev/stderr",
    }
    output = sandbox.output(language, code[language])
    assert (output.stdout, output.stderr) == ("out", "err")


def test_bytes_that_are_no_text_become_replacement_characters(sandbox: Sandbox) -> None:
    assert sandbox.output("python", "import os; os.write(1, b'a\\xff\\xfe\\x00b\\xed\\xa0\\x80')").stdout.startswith("a��\0b")


def test_changing_the_pipe_does_not_block_the_reader(sandbox: Sandbox) -> None:
    code = """
import fcntl, os
fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)
try:
    fcntl.fcntl(1, 1031, 1 << 20)
except OSError:
    pass
sent = 0
while sent < 400000:
    try:
        sent += os.write(1, b"x" * 4096)
    except BlockingIOError:
        pass
"""
    output = sandbox.output("python", code)
    assert (output.status, len(output.stdout)) == ("ok", 401408)


def test_a_program_cannot_read_its_own_output_pipe_empty_into_anothers(sandbox: Sandbox) -> None:
    code = """
import os
print("mine", flush=True)
try:
    os.read(os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK), 100)
except OSError:
    pass
"""
    assert sandbox.output("python", code).stdout in ("mine\n", "")


_C_LATE = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    if (!fork()) {
        setsid();
        if (!fork()) { sleep(4); write(1, "ESCAPED", 7); sleep(30); }
        _exit(0);
    }
    puts("done");
}"""
LATE_OUTPUT = {
    "python": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(4)
        os.write(1, b"ESCAPED")
        time.sleep(30)
    os._exit(0)
print("done")
""",
    "c": _C_LATE,
    "cpp": _C_LATE,
    "bash": "(setsid bash -c 'sleep 4; echo ESCAPED; sleep 30' &); echo done",
    "javascript": """
require('child_process').spawn('bash', ['-c', 'sleep 4; echo ESCAPED; sleep 30'], {detached: true, stdio: [0, 1, 2]}).unref();
console.log('done');""",
}


@pytest.mark.parametrize("language", only(*LATE_OUTPUT))
def test_output_after_the_program_has_ended_is_not_waited_for(sandbox: Sandbox, language: str) -> None:
    output = sandbox.output(language, LATE_OUTPUT[language], wall_seconds=5)
    assert (output.status, output.stdout) == ("ok", "done\n")


def test_text_that_looks_like_our_messages_is_text(sandbox: Sandbox) -> None:
    text = '{"number": 1, "status": 0, "killed": "", "trouble": "", "ready": {}}'
    assert sandbox.prints("python", f"print({text!r})") == text


def test_what_the_program_says_at_its_end_is_heard(sandbox: Sandbox) -> None:
    code = """
import atexit, sys, threading, time
atexit.register(lambda: print("at exit"))
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
sys.stdout.write("main ")
"""
    assert sandbox.prints("python", code) == "main thread\nat exit"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit", 0),
        ("exit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("import os; os._exit(7)", 7),
        ("1/0", 1),
        ("exit(256)", 0),
        ("exit(-1)", 255),
    ],
)
def test_the_exit_status_is_the_programs(sandbox: Sandbox, code: str, status: int) -> None:
    output = sandbox.output("python", code)
    assert (output.exit_code, output.signal) == (status, None)


# The real-time ones begin with 34: 32 and 33 are the C library's own, which may have handlers for them where a program is forked.
@pytest.mark.parametrize("number", [6, 9, 11, 15, 34, 40, 64])
def test_a_signal_to_oneself_is_reported_as_what_it_is(sandbox: Sandbox, number: int) -> None:
    output = sandbox.output("python", f"import os; os.kill(os.getpid(), {number})")
    assert (output.status, output.exit_code, output.signal) == ("runtime_error", None, number)


def test_the_status_of_our_own_failures_cannot_be_forged(sandbox: Sandbox) -> None:
    code = "import os, sys; open('f', 'w').write('x'); print('Traceback: No space left', file=sys.stderr); sys.stderr.flush(); os._exit(99)"
    result = sandbox.run("python", code, fetch=("f",))
    assert (result.status, result.run and result.run.exit_code, result.files) == ("runtime_error", 99, {"f": "x"})


def test_an_error_shows_the_programs_own_lines_and_none_of_ours(sandbox: Sandbox) -> None:
    output = sandbox.output("python", "def f():\n    return 1 / 0\nf()\n")
    assert output.stderr.startswith('Traceback (most recent call last):\n  File "/tmp/work/main.py", line 3, in <module>\n    f()')
    assert "rljob" not in output.stderr
