"""Calls of the Linux kernel that Python has no function for (man 2 of each name). Every one raises OSError."""

import ctypes
import os
import struct
from typing import Final

NEWNS: Final = 0x00020000
NEWTIME: Final = 0x00000080
NEWCGROUP: Final = 0x02000000
NEWUTS: Final = 0x04000000
NEWIPC: Final = 0x08000000
NEWUSER: Final = 0x10000000
NEWPID: Final = 0x20000000
NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 1 << 14
MS_PRIVATE: Final = 1 << 18

_CLONE_VM = 0x100
_SIGCHLD = 17
_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_SYS_CAPSET = 126  # numbers of x86-64, as in `seccomp`
_SYS_PIVOT_ROOT = 155
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_CAPABILITY_VERSION = 0x20080522
_STACK = 64 << 10


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
_python = ctypes.PyDLL(None, use_errno=True)
"""Keeps the interpreter's lock during a call, as the child of a fork must."""
_no_capabilities = (ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0)), ctypes.create_string_buffer(24))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None, flags, options.encode() or None)
    _checked(_libc.mount(*arguments), f"mount {kind or source} at {target}")


def take_tree(source: str, attributes: int) -> int:
    """A descriptor of a copy of all mounts at and below `source`, with `attributes` (MS_RDONLY and so on) added to what they have.

    `put_tree` gives it a place. Linux 5.12; MOUNT_ATTR_* have the numbers of MS_* for read-only, nosuid, nodev and noexec.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = _checked(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, source.encode(), flags), f"open_tree of {source}")
    _set_attributes(tree, "", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes)
    return tree


def put_tree(tree: int, target: str) -> None:
    """Mount what `take_tree` has taken and close its descriptor."""
    try:
        result = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
        _checked(result, f"move_mount to {target}")
    finally:
        os.close(tree)


def restrict(target: str, attributes: int) -> None:
    """Add attributes to one mount."""
    _set_attributes(_AT_FDCWD, target, 0, attributes)


def _set_attributes(folder: int, path: str, flags: int, attributes: int) -> None:
    buffer = ctypes.create_string_buffer(struct.pack("QQQQ", attributes, 0, 0, 0), 32)
    _checked(_libc.syscall(_SYS_MOUNT_SETATTR, folder, path.encode(), flags, buffer, 32), f"mount_setattr of {path or 'a tree'}")


def pivot(root: str) -> None:
    """Make `root` (a mount) the root of this mount namespace and detach the old one."""
    os.chdir(root)
    _checked(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), f"pivot_root to {root}")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


class Stack:
    """Where processes of `pausing` stand; shared by all of them, as none ever returns from there."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(_STACK)
        self.top = (ctypes.addressof(self._memory) + _STACK) & ~0xFF
        self.function = ctypes.cast(_libc.pause, ctypes.c_void_p)


def pausing(stack: Stack) -> int:
    """A child that does nothing but exist, without a copy of our memory (some 0.05 ms), until it is killed.

    It shares our memory and stands in libc's pause(2): no Python runs in it, and as the first process of a namespace no signal reaches it
    but SIGKILL from outside, and those for which we have a handler at this moment: be without.
    """
    return _checked(_libc.clone(stack.function, stack.top, _CLONE_VM | _SIGCHLD, None), "clone")


def fork() -> int:
    """fork(2) without what Python does around it, which doubles its cost.

    `os.fork` repairs locks that other threads held and tells modules. Here is no other thread, and the caller reseeds `random` itself.
    """
    return _checked(_python.fork(), "fork")


def drop_capabilities() -> None:
    """No capability is left to this process."""
    header, data = _no_capabilities
    _checked(_libc.syscall(_SYS_CAPSET, header, data), "capset")


def drop_bounding_set() -> None:
    """No program that is executed from now on can have a capability."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            return


def no_new_privileges() -> None:
    """Executing a program never gives rights, for us and all descendants."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def die_with_parent() -> None:
    """Be killed when the parent ends. A change of user undoes it."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def dumpable(value: bool) -> None:
    """Whether processes of the same user may look into this one (ptrace, most of /proc/PID)."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def wipe(start: int, end: int) -> None:
    """Zeros in our own memory from `start` up to `end`."""
    ctypes.memset(start, 0, end - start)


class Seccomp:
    """A filter made once and installed in each run."""

    def __init__(self, program: bytes) -> None:
        self._memory = ctypes.create_string_buffer(program, len(program))
        self._filter = _Filter(len(program) // 8, ctypes.addressof(self._memory))

    def install(self) -> None:
        """For this process and all its descendants, for ever."""
        address = ctypes.addressof(self._filter)
        _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, 0, 0), "prctl(PR_SET_SECCOMP)")
