"""The file system a slot lives in: an empty one in which a few folders of the machine can be read, and nothing can be written.

Runs with all capabilities of the slot's own user namespace, once per slot. Visible are the folders it is told (programs, libraries,
toolchains), five device files, an /etc of a few lines. Not there: /home, /root, /run, /var, /sys, the service's own files and secrets.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rljob.sandbox.inside import kernel

SCRATCH: Final = "/tmp"
"""Where each run mounts its own file system."""
WORK: Final = f"{SCRATCH}/work"
"""The working folder of a run."""
_STAGES = ("/tmp", "/mnt", "/media", "/opt")
_READ_ONLY = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
_USUAL = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("alternatives", "ld.so.cache")
"""What compilers and the loader read; Java's /etc/java-* besides."""
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/false\nsandbox:x:{user}:{user}:sandbox:{work}:/bin/bash\n",
    "etc/group": "root:x:0:\nsandbox:x:{user}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}
DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_LINKS = {"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
          "/dev/shm": SCRATCH, "/var/tmp": SCRATCH}  # fmt: skip


@dataclass(frozen=True)
class Trees:
    """What of the machine will be visible, taken while all of it still is: by path in the new root, a tree and whether it is a folder."""

    mounts: dict[str, tuple[int, bool]]
    links: dict[str, str]


def visible(folders: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Which paths of this machine will be seen (none of them within another), and which links stand at the top."""
    links = {path: os.readlink(path) for path in _USUAL if os.path.islink(path)}
    wanted = {*folders, *(path for path in _USUAL if os.path.isdir(path) and path not in links)}
    paths = [path for path in sorted(wanted) if not any(path.startswith(f"{other}/") for other in wanted)]
    names = (*_ETC, *(entry for entry in os.listdir("/etc") if entry.startswith("java")))
    return paths + [f"/etc/{name}" for name in names if os.path.exists(f"/etc/{name}")], links


def furnish(folder: str, user: int, links: Mapping[str, str]) -> None:
    """Make what is the same in every slot below `folder`: mount points, a few lines of /etc, links."""
    for name in ("dev", "etc", "proc", "var", SCRATCH[1:]):
        os.mkdir(f"{folder}/{name}")
    for name, text in _FILES.items():
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(text.format(user=user, work=WORK))
    for path, target in {**links, **_LINKS}.items():
        os.symlink(target, f"{folder}{path}")


def place(path: str, *, is_folder: bool) -> None:
    """Make what something can be mounted on."""
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def take(folders: Sequence[str]) -> Trees:
    """Look for what is to be visible. OSError says which step the kernel refused."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    paths, links = visible(folders)
    mounts: dict[str, tuple[int, bool]] = {}
    for path in paths:
        closed = kernel.MS_NOEXEC if path.startswith("/etc/") else 0
        mounts[path] = (kernel.take_tree(path, _READ_ONLY | closed), os.path.isdir(path))
    for name in DEVICES:  # read-only is the file, with its times; what is written goes to the device all the same
        mounts[f"/dev/{name}"] = (kernel.take_tree(f"/dev/{name}", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NOEXEC), False)
    return Trees(mounts, links)


def build(trees: Trees, user: int) -> None:
    """Make the file system, with a process file system of our own, and move in."""
    stage = next(path for path in _STAGES if os.path.isdir(path))
    kernel.mount("root", stage, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=256k,mode=755")
    furnish(stage, user, trees.links)
    for path, (tree, is_folder) in trees.mounts.items():
        place(f"{stage}{path}", is_folder=is_folder)
        kernel.put_tree(tree, f"{stage}{path}")
    # Mounted while the machine's own is still there: the kernel gives a process file system only to who sees one.
    kernel.mount("proc", f"{stage}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.pivot(stage)
    kernel.restrict("/", _READ_ONLY | kernel.MS_NOEXEC)
