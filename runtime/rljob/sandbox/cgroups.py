"""Cgroups of the slots: made once and used for all runs of a slot, on version 1 and 2 of the interface, or none where the host keeps them.

A slot's runner is put into its cgroup before it does anything, and what it forks is born there: moving a process can stall for
milliseconds, being born costs nothing. Limits are written only when they change.
"""

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

_log = logging.getLogger(__name__)

Version = Literal["v1", "v2", "none"]
ROOT: Final = Path("/sys/fs/cgroup")
_PREFIX = "rljob-sandbox-"
_PERIOD = 100_000
"""Microseconds of the CPU quota."""
_CONTROLLERS = ("memory", "pids", "cpu")
_V1 = (*_CONTROLLERS, "cpuacct")


@dataclass
class Cgroup:
    """One slot's."""

    version: Version
    folders: dict[str, Path]
    """By controller; on version 2 all the same."""
    written: dict[Path, str] = field(default_factory=dict)
    limits: tuple[int, int] = (0, 0)

    def attach(self, pid: int) -> None:
        """Move a process here."""
        for folder in sorted(set(self.folders.values())):
            (folder / "cgroup.procs").write_text(str(pid))

    def limit(self, memory: int, processes: int) -> None:
        """Bytes, and processes (threads), of the slot and its run together."""
        if self.limits == (memory, processes):
            return
        if self.folders.get("memory"):
            name, swap = (
                ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self.version == "v1" else ("memory.max", "memory.swap.max")
            )
            self._write("memory", name, str(memory))
            if self.version == "v2":
                self._write("memory", swap, "0")
        self._write("pids", "pids.max", str(processes))
        self.limits = (memory, processes)

    def cores(self, cores: float) -> None:
        """CPUs that all of the slot may use."""
        quota = str(round(cores * _PERIOD))
        if self.version == "v1":
            self._write("cpu", "cpu.cfs_period_us", str(_PERIOD))
            self._write("cpu", "cpu.cfs_quota_us", quota)
        else:
            self._write("cpu", "cpu.max", f"{quota} {_PERIOD}")

    def memory_now(self) -> int:
        """Bytes charged to the slot; 0 if nobody counts."""
        folder = self.folders.get("memory")
        name = "memory.usage_in_bytes" if self.version == "v1" else "memory.current"
        return int((folder / name).read_text()) if folder else 0

    def killed(self) -> int:
        """Processes that the kernel has killed for memory so far."""
        return self._count("memory", "memory.oom_control" if self.version == "v1" else "memory.events", "oom_kill")

    def refused(self) -> int:
        """Forks that were refused so far."""
        return self._count("pids", "pids.events", "max")

    def processes(self) -> int | None:
        """Processes and threads in it; None if nobody counts."""
        folder = self.folders.get("pids")
        return int((folder / "pids.current").read_text()) if folder else None

    def members(self) -> list[int]:
        """Processes in it; none if there is no cgroup."""
        try:
            return [int(pid) for folder in self.folders.values() for pid in (folder / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    def usage_file(self) -> int | None:
        """An open file from which CPU time can be read; None if there is none."""
        controller, name = ("cpuacct", "cpuacct.usage") if self.version == "v1" else ("cpu", "cpu.stat")
        folder = self.folders.get(controller)
        return os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) if folder else None

    def remove(self) -> None:
        """Take it away; what is still alive in it keeps it, and is said."""
        for folder in set(self.folders.values()):
            _remove(folder)

    def _write(self, controller: str, name: str, value: str) -> None:
        folder = self.folders.get(controller)
        if folder is None or self.written.get(folder / name) == value:
            return
        (folder / name).write_text(value)
        self.written[folder / name] = value

    def _count(self, controller: str, name: str, key: str) -> int:
        folder = self.folders.get(controller)
        if folder is None:
            return 0
        for line in (folder / name).read_text().splitlines():
            word, _, value = line.partition(" ")
            if word == key:
                return int(value)
        return 0


@dataclass(frozen=True)
class Cgroups:
    """Where slots' cgroups are made."""

    version: Version
    parents: dict[str, Path]

    def make(self, name: str) -> Cgroup:
        """A new one."""
        folders = {controller: parent / name for controller, parent in self.parents.items()}
        for folder in set(folders.values()):
            folder.mkdir(exist_ok=True)
        return Cgroup(self.version, folders)

    def remove(self) -> None:
        """Take the parents away."""
        for folder in set(self.parents.values()):
            _remove(folder)


NONE: Final = Cgroups("none", {})


def killed_beside_us(root: Path = ROOT, membership: str | None = None) -> int:
    """Processes of the cgroup that we are in, as runs are that have none of their own, which the kernel has killed for memory so far.

    It can be read where none can be made, as in a pod; 0 where it does not tell. Arguments as of `delegated`.
    """
    own = dict(_memberships(membership if membership is not None else Path("/proc/self/cgroup").read_text()))
    version: Version = "v1" if "memory" in own else "v2"
    base, name = (root / "memory", "memory.oom_control") if version == "v1" else (root, "memory.events")
    path = own.get("memory", own.get("", "/")).lstrip("/")
    return next((Cgroup(version, {"memory": f}).killed() for f in (base / path, base) if (f / name).exists()), 0)


def room_beside_us(root: Path = ROOT, membership: str | None = None, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that may still be taken: of the machine, and of the cgroup that we are in where it shows its limit.

    Arguments as of `delegated`.
    """
    room = int(_value(meminfo, "MemAvailable:").split()[0]) * 1024
    own = dict(_memberships(membership if membership is not None else Path("/proc/self/cgroup").read_text()))
    if "memory" in own:
        base, most, now, cached = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_{}_file"
    else:
        base, most, now, cached = root, "memory.max", "memory.current", "{}_file"
    path = own.get("memory", own.get("", "/")).lstrip("/")
    for folder in (base / path, base):
        if (folder / most).exists() and (limit := (folder / most).read_text().strip()) != "max":
            files = sum(int(_value(folder / "memory.stat", cached.format(kind))) for kind in ("active", "inactive"))
            return min(room, int(limit) - int((folder / now).read_text()) + files)
    return room


def _value(file: Path, key: str) -> str:
    """What stands behind a word at the beginning of a line."""
    return next(line.removeprefix(key).strip() for line in file.read_text().splitlines() if line.startswith(f"{key} "))


def delegated(name: str, root: Path = ROOT, membership: str | None = None) -> Cgroups:
    """Cgroups below our own for the slots of a pool; NONE if the host does not let us make any.

    `name` begins with our process id and a hyphen, and no other pool has it; `membership` is the text of /proc/self/cgroup. What a dead
    service left behind is removed first.
    """
    own = dict(_memberships(membership if membership is not None else Path("/proc/self/cgroup").read_text()))
    try:
        parents = _v1(root, own) if any(controller in own for controller in _CONTROLLERS) else _v2(root, own)
        made = {}
        for controller, parent in parents.items():
            _remove_stale(parent)
            made[controller] = parent / f"{_PREFIX}{name}"
            made[controller].mkdir(exist_ok=True)
    except OSError as error:
        _log.info("no cgroups: %s", error)
        return NONE
    if not made:
        return NONE
    if "" in own and not any(controller in own for controller in _CONTROLLERS):
        _enable(next(iter(made.values())))
        return Cgroups("v2", made)
    return Cgroups("v1", made)


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """Controller (empty: version 2) and path."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _v1(root: Path, own: dict[str, str]) -> dict[str, Path]:
    parents = {}
    for controller in _V1:
        # In a container the path is the host's while the mount shows our own as its root.
        for folder in (root / controller / own.get(controller, "/").lstrip("/"), root / controller):
            if controller in own and (folder / "cgroup.procs").exists() and os.access(folder, os.W_OK):
                parents[controller] = folder
                break
    return parents


def _v2(root: Path, own: dict[str, str]) -> dict[str, Path]:
    base = next((f for f in (root / own.get("", "/").lstrip("/"), root) if (f / "cgroup.controllers").exists()), None)
    if base is None or not os.access(base, os.W_OK):
        return {}
    offered = (base / "cgroup.controllers").read_text().split()
    _enable(base)
    return {controller: base for controller in _CONTROLLERS if controller in offered}


def _enable(folder: Path) -> None:
    """Let children have the controllers. A cgroup with children that have them may hold no processes: ours move down one level first."""
    offered = (folder / "cgroup.controllers").read_text().split()
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    missing = [f"+{controller}" for controller in _CONTROLLERS if controller in offered and controller not in enabled]
    if not missing:
        return
    try:
        (folder / "cgroup.subtree_control").write_text(" ".join(missing))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        down = folder / f"{_PREFIX}service"
        down.mkdir(exist_ok=True)
        for pid in (folder / "cgroup.procs").read_text().split():
            (down / "cgroup.procs").write_text(pid)
        (folder / "cgroup.subtree_control").write_text(" ".join(missing))


def _remove_stale(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            for slot in folder.iterdir():
                if slot.is_dir():
                    _remove(slot)
            _remove(folder)


def _remove(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("cgroup %s stays: %s", folder, error.strerror)
