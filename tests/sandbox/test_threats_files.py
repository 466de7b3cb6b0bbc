"""Threats: the file system, and results that are not what they seem."""

import os
from pathlib import Path

import pytest
from tests.sandbox.sandbox import Sandbox, only, request

_C_READ = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
int main(void) { char p[4096]; while (fgets(p, sizeof p, stdin)) { p[strcspn(p, "\n")] = 0;
    if (open(p, O_RDONLY) >= 0) printf("ESCAPED %s\n", p); } }
"""
READ_ANYTHING = {
    "python": """
import os, sys
for path in sys.stdin.read().split():
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(20)
        print("ESCAPED", path, found)
    except OSError:
        pass
""",
    "bash": 'while read -r path; do { ls "$path/" || cat "$path"; } > /dev/null 2>&1 && echo "ESCAPED $path"; done; true',
    "c": _C_READ,
    "cpp": _C_READ,
    "javascript": """
const fs = require('fs');
for (const path of fs.readFileSync(0, 'utf8').trim().split('\\n'))
    for (const read of [fs.readdirSync, fs.readlinkSync, path => fs.readSync(fs.openSync(path), Buffer.alloc(20))])
        try { console.log('ESCAPED', path, read(path)); } catch (e) {}""",
}
_C_SWAP = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    FILE *f = fopen("a", "w");
    fputs("mine", f);
    fclose(f);
    if (symlink("/etc/passwd", "b") || fork()) return 0;
    setsid();
    for (;;) { SWAP }
}"""
_BY_NAME = 'rename("a", "result"); rename("result", "a"); rename("b", "result"); rename("result", "b");'
_BY_HARD_LINK = 'link("a", "result"); unlink("result"); link("b", "result"); unlink("result");'
_PYTHON_SWAP = """
import os
open("a", "w").write("mine")
os.symlink("/etc/passwd", "b")
if os.fork() == 0:
    os.setsid()
    while True:
"""
SWAP = {
    ("python", "by renaming"): _PYTHON_SWAP
    + """
        os.rename("a", "result"); os.rename("result", "a")
        os.rename("b", "result"); os.rename("result", "b")
""",
    ("python", "by a hard link"): _PYTHON_SWAP
    + """
        os.link("a", "result"); os.unlink("result")
        os.link("b", "result", follow_symlinks=False); os.unlink("result")
""",
    ("c", "by renaming"): _C_SWAP.replace("SWAP", _BY_NAME),
    ("c", "by a hard link"): _C_SWAP.replace("SWAP", _BY_HARD_LINK),
    (
        "bash",
        "by a hard link",
    ): "echo -n mine > a; ln -s /etc/passwd b; (while :; do ln -f a result; ln -fP b result; done) > /dev/null 2>&1 &",
    ("javascript", "by a hard link"): """
const fs = require('fs');
fs.writeFileSync('a', 'mine');
fs.symlinkSync('/etc/passwd', 'b');
const swap = "for (;;) for (const name of 'ab') { fs.linkSync(name, 'result'); fs.unlinkSync('result'); }";
require('child_process').spawn(process.execPath, ['-e', swap], {detached: true, stdio: 'ignore'}).unref();
while (!fs.existsSync('result'));""",
}


@pytest.mark.parametrize("language", only(*READ_ANYTHING))
def test_files_of_the_machine_are_not_there(sandbox: Sandbox, language: str, tmp_path: Path) -> None:
    secret = tmp_path / "expected.json"
    secret.write_text("[42]")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    paths = [
        str(secret), str(Path(__file__)), "/etc/shadow", "/etc/hostname", "/etc/resolv.conf", "/etc/machine-id", "/root/.ssh",
        "/root/.bash_history", "/home", "/run", "/var/run/secrets", "/var/run/secrets/kubernetes.io/serviceaccount/token", "/var/log",
        "/var/lib", "/boot", "/sys", "/sys/fs/cgroup", "/sys/kernel", "/mnt", "/opt", "/srv", "/dev/mem", "/dev/kmem", "/dev/sda",
        "/dev/vda", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/tty", "/dev/ptmx", "/dev/pts", "/dev/console", "/dev/kmsg",
        "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/key-users", "/proc/kallsyms", "/proc/sysrq-trigger", "/proc/sys",
        "/proc/sys/kernel/core_pattern", "/proc/config.gz", "/proc/cmdline", "/proc/net", "/proc/bus", "/proc/fs", "/proc/meminfo",
        "/proc/version", "/proc/uptime", "/proc/modules", "/proc/mounts/../sched_debug", "/proc/1/root/etc/shadow",
    ]  # fmt: skip
    assert sandbox.prints(language, READ_ANYTHING[language], stdin="\n".join(paths) + "\n") == ""


def test_nothing_outside_the_working_space_can_be_written(sandbox: Sandbox) -> None:
    code = """
import os
for folder in ("/", "/usr", "/usr/bin", "/usr/lib", "/etc", "/dev", "/var", "/proc", "/proc/self", "/bin", "/lib", "/root"):
    for attempt in (lambda: open(f"{folder}/x", "w"), lambda: os.mkdir(f"{folder}/y"), lambda: os.chmod(folder, 0o777),
                    lambda: os.symlink("/", f"{folder}/z"),
                    lambda: os.utime(folder), lambda: os.chown(folder, 1000, 1000)):
        try:
            attempt()
            print("ESCAPED", folder)
        except OSError:
            pass
for path in ("/usr/bin/env", "/etc/passwd", "/etc/ld.so.cache", "/dev/null", os.__file__):
    for attempt in (lambda: os.unlink(path), lambda: os.rename(path, path + "x"), lambda: os.truncate(path, 0),
                    lambda: os.chmod(path, 0o777)):
        try:
            attempt()
            print("ESCAPED", path)
        except OSError:
            pass
"""
    assert sandbox.prints("python", code) == ""


def test_the_library_that_later_runs_import_cannot_be_changed(sandbox: Sandbox) -> None:
    code = """
import json, os, sys
for path in (json.__file__, os.path.dirname(json.__file__) + "/evil.py", os.path.dirname(os.__file__) + "/sitecustomize.py"):
    try:
        open(path, "a").write("raise SystemExit('ESCAPED')")
        print("ESCAPED")
    except OSError:
        pass
"""
    assert sandbox.prints("python", code) == ""


def test_the_kernels_settings_cannot_be_changed(sandbox: Sandbox) -> None:
    code = """
import os
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/proc/self/oom_score_adj",
             "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups", "/proc/self/timens_offsets", "/proc/1/oom_score_adj",
             "/sys/fs/cgroup/release_agent"):
    try:
        with open(path, "w") as file:
            file.write("0")
        print("ESCAPED", path)
    except OSError:
        pass
"""
    assert sandbox.prints("python", code) == ""


def test_fetched_are_regular_files_only(sandbox: Sandbox) -> None:
    code = """
import os
open("plain", "w").write("mine")
os.symlink("/etc/passwd", "link")
os.symlink("plain", "inner")
os.symlink("/etc", "folder")
os.symlink("missing", "dangling")
os.mkdir("real")
os.mkfifo("fifo")
os.symlink("/dev/zero", "endless")
os.symlink("/proc/self/environ", "environment")
"""
    names = ("plain", "link", "inner", "folder/passwd", "dangling", "real", "fifo", "endless", "environment", "absent", "real/absent")
    result = sandbox.run("python", code, fetch=names)
    assert (result.status, result.files) == ("ok", {"plain": "mine"})


def test_a_hard_link_out_of_the_working_space_cannot_be_made(sandbox: Sandbox) -> None:
    code = """
import os
for path in ("/etc/passwd", "/usr/bin/env", "/proc/self/environ", "/dev/null"):
    try:
        os.link(path, "hard")
        print("ESCAPED")
    except OSError:
        pass
"""
    result = sandbox.run("python", code, fetch=("hard",))
    assert result.run is not None
    assert (result.run.stdout, result.files) == ("", {})


@pytest.mark.parametrize(("language", "how"), SWAP)
def test_swapping_a_result_for_a_link_while_it_is_fetched_gains_nothing(sandbox: Sandbox, language: str, how: str) -> None:
    program = sandbox.build(language, SWAP[language, how])
    for _ in range(5):
        result = sandbox.do(program.run(fetch=("result",)))
        assert result.status == "ok", result
        assert result.files in ({}, {"result": "mine"})


def test_processes_that_fight_whoever_fetches_results_lose_and_are_no_failure_of_ours(sandbox: Sandbox) -> None:
    code = """
import os, signal
open("result", "w").write("mine")
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        while True:
            try:
                os.kill(-1, signal.SIGKILL)
            except OSError:
                pass
"""
    for _ in range(5):
        result = sandbox.run("python", code, fetch=("result",))
        assert (result.status, result.files) in (("ok", {"result": "mine"}), ("runtime_error", {"result": "mine"}))


def test_results_that_do_not_fit_into_memory_twice_take_nobody_with_them(sandbox: Sandbox) -> None:
    code = "with open('a', 'wb') as file:\n    for _ in range(40): file.write(b'x' * (1 << 20))"
    rebuilt = sandbox.pool.slots_rebuilt
    result = sandbox.run("python", code, fetch=("a",), memory_mb=64)
    assert (result.status, len(result.files.get("a", ""))) in (("memory_limit", 0), ("ok", 40 << 20))
    assert sandbox.pool.slots_rebuilt == rebuilt


def test_a_result_that_is_too_big_is_the_programs_fault(sandbox: Sandbox) -> None:
    code = "import os\nfor n in range(3):\n    os.truncate(os.open(f'f{n}', os.O_CREAT | os.O_WRONLY), 12 << 20)"
    result = sandbox.run("python", code, fetch=("f0", "f1", "f2"), disk_mb=16)
    assert result.status == "disk_limit"
    assert result.files == {}


def test_results_with_strange_names_and_contents_come_back_as_they_are(sandbox: Sandbox) -> None:
    names = ("ü" * 100, "a b\n\t", "-rf", "$(id)", "d/" * 20 + "deep", "x" * 255)
    code = f"""
import os
for name in {names!r}:
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    open(name, "w").write("c" + name[:3])
"""
    assert sandbox.run("python", code, fetch=names).files == {name: "c" + name[:3] for name in names}


def test_results_of_a_killed_program_are_not_sent(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "open('f', 'w').write('x')\nwhile True: pass", fetch=("f",), cpu_seconds=0.3)
    assert (result.status, result.files) == ("time_limit", {})


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a//b", ".", "", "a/./b", "x" * 300, "a\0b", "a/" * 40 + "b", "main.py"]
)
def test_a_request_with_a_bad_path_is_refused(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(ValueError, match=r"path|name of code"):
        sandbox.pool.check(request("python", "", files={name: ""}))
    if name != "main.py":
        with pytest.raises(ValueError, match="path"):
            sandbox.pool.check(request("python", "", fetch=(name,)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"memory_mb": 10**6}, "limits.memory_mb"),
        ({"wall_seconds": 10**6}, "limits.wall_seconds"),
        ({"processes": 10**6}, "limits.processes"),
        ({"disk_mb": 10**6}, "limits.disk_mb"),
        ({"cpu_seconds": float("inf")}, "limits.cpu_seconds"),
        ({"arguments": ("a\0b",)}, "NUL"),
        ({"arguments": ("x" * 200_000,)}, "arguments"),
        ({"files": {"a": "", "a/b": ""}}, "where its folder should be"),
        ({"files": {"main.py/b": ""}}, "where its folder should be"),
        ({"files": {str(n): "" for n in range(5000)}}, "files"),
    ],
)
def test_a_request_beyond_the_ceiling_is_refused(sandbox: Sandbox, fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sandbox.pool.check(request("python", "", **fields))


def test_a_request_for_an_unknown_language_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="cobol"):
        sandbox.pool.check(request("cobol", ""))


def test_files_that_do_not_fit_are_the_requests_fault(sandbox: Sandbox) -> None:
    assert sandbox.run("python", "", files={"big": "x" * (3 << 20)}, disk_mb=2).status == "disk_limit"


def test_files_of_a_request_are_where_the_program_looks(sandbox: Sandbox) -> None:
    files = {"helper.py": "answer = 42", "data/in.txt": "text", "deep/er/x.py": ""}
    assert sandbox.prints("python", "import helper; print(helper.answer, open('data/in.txt').read())", files=files) == "42 text"


def test_a_link_among_what_a_compiler_wrote_is_not_followed(sandbox: Sandbox) -> None:
    """Only what the compiler itself was told to write can be influenced: here by an include of a file that is not the program's."""
    code = '#include "/etc/passwd"\nint main(void) {}'
    result = sandbox.run("c", code)
    assert result.compile is not None
    assert result.status == "compile_error"
    assert "root:x:0:0:root:/root" not in result.compile.stderr
    assert os.environ.get("USER", "machine-user") not in result.compile.stdout


def test_a_compiler_sees_no_more_of_the_machine_than_a_program(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.h"
    secret.write_text('#define SECRET "ESCAPED"')
    code = f"""
#include <stdio.h>
#if __has_include("{secret}") || __has_include("/etc/shadow") || __has_include("/proc/kallsyms")
#error ESCAPED
#endif
int main(void) {{ puts("ok"); }}
"""
    assert sandbox.prints("c", code) == "ok"


@pytest.mark.parametrize("language", ["python", "c", "bash"])
def test_executing_another_program_gives_no_more_rights(sandbox: Sandbox, language: str) -> None:
    code = {
        "python": "import subprocess; print(subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout)",
        "c": '#include <unistd.h>\nint main(void) { execl("/bin/cat", "cat", "/proc/self/status", (char *)0); }',
        "bash": "cat /proc/self/status",
    }[language]
    lines = dict(line.split(":\t", 1) for line in sandbox.prints(language, code).splitlines() if ":\t" in line)
    assert (lines["CapEff"], lines["NoNewPrivs"], lines["Seccomp"]) == ("0" * 16, "1", "2")
    assert lines["Uid"].split() == ["1000"] * 4
    assert lines["Groups"].strip() == ""
