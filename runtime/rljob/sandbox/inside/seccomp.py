"""Which system calls a run may make: an allow-list as a classic BPF program, made once (man 2 seccomp; linux/seccomp.h, linux/filter.h).

Refused calls fail with EPERM; those newer than what C libraries take for granted fail with ENOSYS, so that libraries fall back. Sockets
are refused whole, except pairs of unix sockets. What is not here on purpose: everything that reaches beyond the run (namespaces, mounts,
tracing, other processes' memory, limits and processors, priorities, keyrings, the clock), and memory that neither a process nor the file
system is charged for (memfd, System V, message queues, inotify, asynchronous I/O, and the bigger buffers for sockets that setsockopt
gives). The kernel's own bugs behind allowed calls are not covered.
"""

import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ARCHITECTURE: Final = "x86_64"
_AUDIT_ARCH: Final = 0xC000003E
_X32: Final = 0x40000000
_NEW: Final = 424
"""The first number that all architectures share: calls that old C libraries do not know."""

_KILL, _EPERM, _ENOSYS, _ENOTTY, _ALLOW = 0x80000000, 0x00050001, 0x00050026, 0x00050019, 0x7FFF0000
_LOAD, _AND, _EQUAL, _GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NOT_IN_CLONE = 0x7E020000 | 0x8000
"""Flags: new namespaces, and CLONE_PARENT, by which a program gives its children to the runner, which would wait for them for ever."""

ALLOWED: Final = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28,
    "dup": 32, "dup2": 33, "pause": 34, "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "sendfile": 40,
    "shutdown": 48, "getsockname": 51, "getpeername": 52, "getsockopt": 55, "fork": 57, "vfork": 58, "execve": 59,
    "exit": 60, "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75, "truncate": 76,
    "ftruncate": 77, "getdents": 78, "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85,
    "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94,
    "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "setpgid": 109, "getppid": 110, "getpgrp": 111, "setsid": 112, "getgroups": 115, "getresuid": 118,
    "getresgid": 120, "getpgid": 121, "getsid": 124, "capget": 125, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigqueueinfo": 129,
    "rt_sigsuspend": 130, "sigaltstack": 131, "utime": 132, "statfs": 137, "fstatfs": 138, "getpriority": 140,
    "sched_getparam": 143, "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147,
    "sched_rr_get_interval": 148, "mlock": 149, "munlock": 150, "mlockall": 151, "munlockall": 152, "arch_prctl": 158, "setrlimit": 160,
    "gettid": 186, "readahead": 187, "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194, "llistxattr": 195,
    "flistxattr": 196, "tkill": 200, "time": 201, "futex": 202, "sched_getaffinity": 204, "epoll_create": 213,
    "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219, "fadvise64": 221, "timer_create": 222, "timer_settime": 223,
    "timer_gettime": 224, "timer_getoverrun": 225, "timer_delete": 226, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "utimes": 235, "waitid": 247, "openat": 257, "mkdirat": 258,
    "fchownat": 260, "futimesat": 261, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
    "readlinkat": 267, "fchmodat": 268, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "get_robust_list": 274,
    "utimensat": 280, "epoll_pwait": 281, "signalfd": 282, "timerfd_create": 283, "eventfd": 284, "fallocate": 285,
    "timerfd_settime": 286, "timerfd_gettime": 287, "signalfd4": 289, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "preadv": 295, "pwritev": 296, "rt_tgsigqueueinfo": 297, "getcpu": 309, "sched_getattr": 315, "renameat2": 316,
    "getrandom": 318, "execveat": 322, "membarrier": 324, "mlock2": 325, "copy_file_range": 326, "preadv2": 327, "pwritev2": 328,
    "pkey_mprotect": 329, "pkey_alloc": 330, "pkey_free": 331, "statx": 332, "rseq": 334, "pidfd_send_signal": 424, "pidfd_open": 434,
    "close_range": 436, "faccessat2": 439, "epoll_pwait2": 441, "futex_waitv": 449,
}  # fmt: skip
"""Calls of x86-64 that are allowed whatever their arguments."""


@dataclass(frozen=True)
class Condition:
    """A call that is allowed if argument `index`, of which only the bits of `mask` count, is one of `values`."""

    number: int
    index: int
    values: Sequence[int]
    mask: int = 0xFFFFFFFF
    otherwise: int = _EPERM


CONDITIONAL: Final = {
    "clone": Condition(56, 0, (0,), _NOT_IN_CLONE),
    "socketpair": Condition(53, 0, (1,)),  # AF_UNIX
    # Urgent data of unix sockets had bugs (CVE-2025-38236) and no use.
    "sendto": Condition(44, 3, (0,), 1),
    "recvfrom": Condition(45, 3, (0,), 1),
    "sendmsg": Condition(46, 2, (0,), 1),
    "recvmsg": Condition(47, 2, (0,), 1),
    # Its own: the runner may be the same user.
    "prlimit64": Condition(302, 0, (0,)),
    "sched_setaffinity": Condition(203, 0, (0,)),
    "mknod": Condition(133, 1, (0o010000,), 0o170000),  # FIFOs
    "mknodat": Condition(259, 2, (0o010000,), 0o170000),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX
    "ioctl": Condition(16, 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5451, 0x5450), otherwise=_ENOTTY),
    # PDEATHSIG, DUMPABLE (only get: a process that is not cannot be watched), NAME (set and get), TIMERSLACK, NO_NEW_PRIVS (set and get),
    # THP_DISABLE, SET_VMA, capabilities
    "prctl": Condition(157, 0, (1, 2, 3, 15, 16, 23, 29, 30, 38, 39, 41, 42, 0x53564D41)),
}
"""Calls that are allowed with some arguments."""

_Label = tuple[str, int]
_Step = tuple[int, int, _Label, _Label]
"""Operation, value, where to go on if it holds and if not (only of comparisons)."""
_NEXT: Final[_Label] = ("next", 0)


def supported() -> bool:
    """Whether the table fits this machine."""
    return platform.machine() == ARCHITECTURE


def program() -> bytes:
    """The filter. Short, as the kernel translates it at each installation, and binary in its search, as it also runs it over all numbers.

    The search comes first, then the conditions, then what all of them return: every jump is forward and reaches 255 instructions.
    """
    conditions = {condition.number: condition for condition in CONDITIONAL.values()}
    search, start = _tree(_ranges(set(ALLOWED.values()), conditions))
    labelled: list[tuple[_Label | None, _Step]] = [
        (None, (_LOAD, 4, _NEXT, _NEXT)), (None, (_EQUAL, _AUDIT_ARCH, _NEXT, ("return", _KILL))),
        (None, (_LOAD, 0, _NEXT, _NEXT)), (None, (_GREATER_EQUAL, _X32, ("return", _KILL), start)),
        *search,
        *(step for condition in conditions.values() for step in _check(condition)),
        *((("return", value), (_RETURN, value, _NEXT, _NEXT)) for value in (_ALLOW, _EPERM, _ENOSYS, _ENOTTY, _KILL)),
    ]  # fmt: skip
    places = {label: place for place, (label, _) in enumerate(labelled) if label}

    def packed(place: int, operation: int, value: int, *targets: _Label) -> bytes:
        return struct.pack("HBBI", operation, *(0 if target == _NEXT else places[target] - place - 1 for target in targets), value)

    return b"".join(packed(place, *step) for place, (_, step) in enumerate(labelled))


def _ranges(allowed: set[int], conditions: dict[int, Condition]) -> list[tuple[int, int | Condition]]:
    """All numbers as (first of a range, what becomes of it), ascending from 0."""
    ranges: list[tuple[int, int | Condition]] = []
    for number in range(max(*allowed, *conditions, _NEW) + 2):
        refused = _EPERM if number < _NEW else _ENOSYS
        outcome = conditions.get(number, _ALLOW if number in allowed else refused)
        if not ranges or ranges[-1][1] != outcome:
            ranges.append((number, outcome))
    return ranges


def _tree(ranges: list[tuple[int, int | Condition]]) -> tuple[list[tuple[_Label | None, _Step]], _Label]:
    """Comparisons that lead from a number to what becomes of it, and where they begin."""
    if len(ranges) == 1:
        outcome = ranges[0][1]
        return [], ("check", outcome.number) if isinstance(outcome, Condition) else ("return", outcome)
    middle = len(ranges) // 2
    (below, if_below), (above, if_above) = _tree(ranges[:middle]), _tree(ranges[middle:])
    here = ("from", ranges[middle][0])
    return [(here, (_GREATER_EQUAL, ranges[middle][0], if_above, if_below)), *below, *above], here


def _check(condition: Condition) -> list[tuple[_Label | None, _Step]]:
    argument = 16 + 8 * condition.index  # the lower half; the kernel takes these arguments as 32 bits
    steps: list[_Step] = [(_LOAD, argument, _NEXT, _NEXT), (_AND, condition.mask, _NEXT, _NEXT)]
    steps += [(_EQUAL, value, ("return", _ALLOW), _NEXT) for value in condition.values[:-1]]
    steps.append((_EQUAL, condition.values[-1], ("return", _ALLOW), ("return", condition.otherwise)))
    return [(("check", condition.number), steps[0]), *((None, step) for step in steps[1:])]
