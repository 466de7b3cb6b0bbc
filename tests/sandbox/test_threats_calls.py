"""Threats: system calls that reach beyond a run. Each is made from Python and from C, and refused."""

import errno
from collections.abc import Mapping
from typing import Final

import pytest
from tests.sandbox.sandbox import Sandbox

from rljob.sandbox.pool import Program

_NEW = 0x7E020080
CALLS: Final = {
    "mounting a file system": (165, 0, 0, 0, 0, 0),
    "unmounting the process file system": (166, 0, 2),
    "making a mount with the new interface": (430, 0, 0),
    "cloning a tree of mounts": (428, -100, 0, 1),
    "moving a mount": (429, 0, 0, 0, 0, 0),
    "changing the attributes of a mount": (442, -100, 0, 0, 0, 32),
    "changing the root": (155, 0, 0),
    "leaving the root by chroot": (161, 0),
    "entering new namespaces by unshare": (272, 0x10000000),
    "entering a new user namespace by clone": (56, 0x10000011, 0, 0, 0, 0),
    "entering a new process namespace by clone": (56, 0x20000011, 0, 0, 0, 0),
    "giving one's child to the parent by clone": (56, 0x8011, 0, 0, 0, 0),
    "entering new namespaces by clone3": (435, 0, 88),
    "joining another namespace": (308, 0, 0),
    "tracing the parent": (101, 16, 1, 0, 0),
    "being traced": (101, 0, 0, 0, 0),
    "reading the memory of another process": (310, 1, 0, 0, 0, 0, 0),
    "writing the memory of another process": (311, 1, 0, 0, 0, 0, 0),
    "taking a descriptor of another process": (438, 0, 0, 0),
    "comparing kernel objects of processes": (312, 1, 1, 0, 0, 0),
    "adding a key": (248, 0, 0, 0, 0, -3),
    "requesting a key": (249, 0, 0, 0, 0),
    "reading a keyring": (250, 11, -3, 0, 0, 0),
    "setting up io_uring": (425, 8, 0),
    "entering io_uring": (426, 0, 1, 0, 0, 0),
    "setting up asynchronous I/O": (206, 8, 0),
    "handling page faults in user space": (323, 1),
    "loading a BPF program": (321, 5, 0, 0),
    "opening a performance counter": (298, 0, 0, -1, -1, 0),
    "installing another filter": (317, 1, 0, 0),
    "loading a kernel module": (175, 0, 0, 0),
    "loading a kernel module from a file": (313, 0, 0, 0),
    "unloading a kernel module": (176, 0, 0),
    "loading another kernel": (246, 0, 0, 0, 0),
    "rebooting": (169, 0xFEE1DEAD, 672274793, 0, 0),
    "swapping": (167, 0, 0),
    "setting the clock": (227, 0, 0),
    "setting the time of day": (164, 0, 0),
    "adjusting the clock": (159, 0),
    "setting the host name": (170, 0, 4),
    "reading the kernel's log": (103, 3, 0, 100),
    "process accounting": (163, 0),
    "disk quotas": (179, 0, 0, 0, 0),
    "port input and output": (173, 0, 1, 1),
    "raising the I/O privilege level": (172, 3),
    "changing the local descriptor table": (154, 0, 0, 0),
    "opening a file by handle": (304, 0, 0, 0),
    "watching the whole file system": (300, 0, 0),
    "watching files": (294, 0),
    "becoming root": (105, 0),
    "becoming another user": (117, 12345, 12345, 12345),
    "becoming another group": (119, 0, 0, 0),
    "joining groups": (116, 0, 0),
    "taking capabilities": (126, 0, 0),
    "changing the personality": (135, 0x0040000),
    "real-time scheduling": (144, 0, 1, 0),
    "deadline scheduling": (314, 0, 0, 0),
    "keeping another process to one processor": (203, 1, 8, 0),
    "memory in an unnamed file": (319, 0, 0),
    "secret memory": (447, 0),
    "shared memory of System V": (29, 0, 4096, 0o1600),
    "semaphores of System V": (64, 0, 1, 0o1600),
    "messages of System V": (68, 0, 0o1600),
    "message queues": (240, 0, 0o100, 0o600, 0),
    "extended attributes": (188, 0, 0, 0, 0, 0),
    "splicing pages into a pipe": (275, 0, 0, 1, 0, 1, 0),
    "mapping pages into a pipe": (278, 1, 0, 0, 0),
    "flushing the machine's disks": (162,),
    "a device file": (133, 0, 0o020666, 0x101),
    "a block device file": (259, -100, 0, 0o060666, 0x800),
    "an internet socket": (41, 2, 1, 0),
    "an internet socket of version 6": (41, 10, 2, 0),
    "a raw socket": (41, 2, 3, 1),
    "a packet socket": (41, 17, 3, 0),
    "a netlink socket": (41, 16, 3, 0),
    "a virtual machine socket": (41, 40, 1, 0),
    "a kernel crypto socket": (41, 38, 5, 0),
    "a unix socket": (41, 1, 1, 0),
    "a pair of internet sockets": (53, 2, 1, 0, 0),
    "urgent data": (44, 1, 0, 1, 1, 0, 0),
    "typing into a terminal": (16, 0, 0x5412, 0),
    "a privileged kernel option of the process": (157, 35, 1, 0, 0, 0),
    "restricting with landlock": (444, 0, 0, 1),
}
"""What is tried: number (x86-64) and arguments."""
_REFUSED = {errno.EPERM, errno.ENOSYS, errno.ENOTTY}

C_CALLER: Final = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(int n, char **v) {
    long a[7] = {0};
    for (int i = 1; i < n && i < 8; i++) a[i - 1] = strtol(v[i], 0, 0);
    errno = 0;
    long r = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
    int e = errno;
    printf("%ld %d\n", r, r < 0 ? e : 0);
}
"""
PYTHON_CALLER: Final = r"""
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
number, *arguments = [ctypes.c_long(int(word, 0)) for word in sys.argv[1:]]
result = libc.syscall(number, *arguments)
print(result, ctypes.get_errno() if result < 0 else 0)
"""


def asked_for(calls: Mapping[str, tuple[int, ...]]) -> str:
    """What a program reads that makes many calls, one in a line: first one that is allowed (getpid)."""
    return "".join(f"{' '.join(map(str, call))}\n" for call in ((39,), *calls.values()))


def assert_refused(calls: Mapping[str, tuple[int, ...]], printed: str) -> None:
    """What that program has printed, result and errno for each, says that none was made but the first."""
    allowed, *lines = [tuple(map(int, line.split())) for line in printed.splitlines()]
    assert allowed[0] > 1
    made = [what for what, (value, number) in zip(calls, lines, strict=True) if value != -1 or number not in _REFUSED]
    assert made == []


@pytest.fixture(scope="module")
def callers(shared_sandbox: Sandbox) -> dict[str, Program]:
    return {"c": shared_sandbox.build("c", C_CALLER), "python": shared_sandbox.build("python", PYTHON_CALLER)}


def call(sandbox: Sandbox, caller: Program, arguments: tuple[int, ...]) -> tuple[int, int]:
    result = sandbox.do(caller.run(arguments=tuple(map(str, arguments))))
    assert result.run is not None, result
    assert result.status == "ok", result
    value, number = map(int, result.run.stdout.split())
    return value, number


@pytest.mark.parametrize("language", ["python", "c"])
@pytest.mark.parametrize("what", CALLS)
def test_is_refused(sandbox: Sandbox, callers: dict[str, Program], what: str, language: str) -> None:
    value, number = call(sandbox, callers[language], CALLS[what])
    assert value == -1
    assert number in _REFUSED


def test_the_caller_itself_can_call(sandbox: Sandbox, callers: dict[str, Program]) -> None:
    assert call(sandbox, callers["c"], (39,))[0] > 1  # getpid


def test_calls_of_the_32_bit_interface_end_the_program(sandbox: Sandbox) -> None:
    code = r"""
    #include <stdio.h>
    int main(void) {
        long r;
        __asm__ volatile("int $0x80" : "=a"(r) : "a"(20L) : "memory");  /* getpid */
        printf("ESCAPED %ld\n", r);
    }
    """
    output = sandbox.output("c", code)
    assert (output.status, output.signal, output.stdout) in (("runtime_error", 31, ""), ("runtime_error", 11, ""))


def test_calls_of_the_x32_interface_end_the_program(sandbox: Sandbox) -> None:
    code = '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("ESCAPED %ld\\n", syscall(0x40000000 + 39)); }'
    output = sandbox.output("c", code)
    assert (output.status, output.signal) == ("runtime_error", 31)


def test_limits_cannot_be_raised(sandbox: Sandbox) -> None:
    code = """
    import resource
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            soft, hard = resource.getrlimit(getattr(resource, name))
            if hard != -1:
                try:
                    resource.setrlimit(getattr(resource, name), (hard + 1, hard + 1))
                    print("ESCAPED", name)
                except (ValueError, OSError):
                    pass
    """
    assert sandbox.prints("python", "if True:\n" + code) == ""


def test_a_run_cannot_take_priority_over_others(sandbox: Sandbox) -> None:
    assert "PermissionError" in sandbox.output("python", "import os; os.nice(-5)").stderr


@pytest.mark.parametrize("language", ["python", "c"])
def test_there_are_no_capabilities_to_be_had(sandbox: Sandbox, language: str) -> None:
    c = (
        r"#include <stdio.h>"
        "\n"
        r'int main(void){char l[256];FILE*f=fopen("/proc/self/status","r");while(fgets(l,256,f))fputs(l,stdout);}'
    )
    code = {"python": "print(open('/proc/self/status').read())", "c": c}[language]
    lines = dict(line.split(":\t", 1) for line in sandbox.prints(language, code).splitlines() if ":\t" in line)
    assert {lines[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")


def test_a_set_user_id_program_gives_nothing(sandbox: Sandbox) -> None:
    code = """
    import os, shutil, subprocess
    shutil.copy("/usr/bin/id", "id")
    os.chmod("id", 0o6777)
    print(subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout.strip())
    for folder in ("/usr/bin", "/bin"):
        for name in ("su", "passwd", "mount", "newgrp", "chsh"):
            if os.path.exists(f"{folder}/{name}"):
                done = subprocess.run([f"{folder}/{name}", "-c", "id"], input="", capture_output=True, text=True)
                assert "uid=0" not in done.stdout
    """
    assert sandbox.prints("python", "if True:\n" + code) == "1000"
