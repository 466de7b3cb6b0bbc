"""What a cluster has made on this machine, written down before it is made, so that a later start can remove it if its maker cannot."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.cluster.box import ClusterError, Identity
from tests.cluster.build import cache_folder
from tests.cluster.network import disconnect_host

CGROUPS = Path("/sys/fs/cgroup")
Condition = Callable[[], bool]


@dataclass(frozen=True)
class Record:
    """One cluster: who made it, the first process of each box, and its folder. Its control groups are named after it."""

    name: str
    folder: str
    checkout: str
    boot: str
    # None: nobody in particular; it stays until someone removes it.
    owner: Identity | None
    # The second number of its addresses; None while it has none.
    network: int | None = None
    # By box; "control", "node-0", ...
    boxes: dict[str, Identity] = field(default_factory=dict)

    def with_box(self, name: str, first: Identity) -> "Record":
        return replace(self, boxes={**self.boxes, name: first})


def boot_id() -> str:
    """Changes at every start of the machine; process ids and start times mean nothing beyond it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def records_folder() -> Path:
    """Where the records are: the same folder for all checkouts of one user."""
    return cache_folder() / "clusters"


def write(record: Record) -> None:
    """Writes or replaces a record."""
    folder = records_folder()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{record.name}.new"
    temporary.write_text(json.dumps(asdict(record)))
    temporary.rename(folder / f"{record.name}.json")


def parse(text: str) -> Record:
    """A record from what `write` wrote."""
    value = json.loads(text)
    owner = value.pop("owner")
    boxes = {name: Identity(**identity) for name, identity in value.pop("boxes").items()}
    return Record(**value, owner=Identity(**owner) if owner else None, boxes=boxes)


def all_records() -> list[Record]:
    """Every cluster that somebody made and that was not removed yet."""
    found: list[Record] = []
    for path in sorted(records_folder().glob("[!.]*.json")):
        try:
            found.append(parse(path.read_text()))
        except FileNotFoundError:
            continue  # removed by its owner meanwhile
    return found


def abandoned(record: Record, boot: str, alive: Callable[[Identity], bool]) -> bool:
    """Whether nobody will remove this cluster.

    The machine was restarted, or its owner is gone, or it had no owner and all of its boxes are gone.
    """
    if record.boot != boot:
        return True
    if record.owner is not None:
        return not alive(record.owner)
    return bool(record.boxes) and not any(alive(box) for box in record.boxes.values())


def _gone(first: Identity) -> bool:
    return not first.alive()


def until(done: Condition, what: str, timeout: float = 30) -> None:
    """Asks again and again. Raises `ClusterError` with `what` when the time is up."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} after {timeout:.0f} s")
        time.sleep(0.02)


def _cgroup_roots() -> Iterator[Path]:
    """The top of each hierarchy: of the one of version 2, or of each controller of version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        yield CGROUPS
    else:
        yield from (path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists())


def make_cgroup(name: str) -> None:
    """Makes a control group, in every hierarchy there is."""
    for root in _cgroup_roots():
        (root / name).mkdir(parents=True, exist_ok=True)
        if root.name == "cpuset":
            _inherit_cpuset(root, root / name)
        _weigh(root / Path(name).parts[0])


def _weigh(path: Path) -> None:
    """All processes of a cluster's pods together count as much as four others of the machine: beside other tests they would get next to
    nothing, and operators lose their Leases."""
    for file, standard in (("cpu.shares", 1024), ("cpu.weight", 100)):
        if (path / file).exists():
            (path / file).write_text(str(4 * standard))


def _inherit_cpuset(root: Path, path: Path) -> None:
    """A new group of version 1 has no processors, and no process may enter it."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        text = (root / file).read_text()
        for each in (*reversed(path.relative_to(root).parents[:-1]), path.relative_to(root)):
            (root / each / file).write_text(text)


def _remove_group(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # the kernel has not buried the last process yet
    return True


def remove_cgroup(name: str) -> None:
    """Removes a control group and those below it, whose processes are gone. Raises `ClusterError` if they are not."""
    for root in _cgroup_roots():
        if not (root / name).exists():
            continue
        for folder, _, _ in os.walk(root / name, topdown=False):
            path = Path(folder)
            until(partial(_remove_group, path), f"control group {path} cannot be removed")


def remove(record: Record) -> None:
    """Removes everything a cluster made: processes with their namespaces, control groups, folder and record. Raises `ClusterError`."""
    if record.boot == boot_id():
        for first in record.boxes.values():
            first.kill()
        for name, first in record.boxes.items():
            until(partial(_gone, first), f"box {name} of cluster {record.name} (process {first.pid}) still runs")
        if record.network is not None:
            disconnect_host(record.network, record.name)
        remove_cgroup(record.name)
    shutil.rmtree(record.folder, ignore_errors=False, onexc=_ignore_missing)
    (records_folder() / f"{record.name}.json").unlink(missing_ok=True)


def _ignore_missing(_function: object, _path: object, error: BaseException) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def reap() -> list[str]:
    """Removes clusters that nobody will remove; returns their names. Two that do this at once do not disturb each other."""
    here = boot_id()
    gone = [record for record in all_records() if abandoned(record, here, Identity.alive)]
    for record in gone:
        remove(record)
    return [record.name for record in gone]
