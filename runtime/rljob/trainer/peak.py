"""The most memory that something takes at one time, beside what the process had before.

Main memory is what the kernel counts as the process's resident anonymous memory; an arena's pages are shared memory, a model folder's are
the file's, and neither counts. The kernel keeps a high-water mark of all of them together, which this process may set back (proc(5),
`/proc/pid/clear_refs`): two small files that are read and written, well below a millisecond. Nobody else's figures change but this
process's own `VmHWM` and `ru_maxrss`, which nothing here reads.

Not seen: what malloc held free before and hands out again, since the machine does not have to give it. Seen only as far as it is more than
that: memory that was given back before pages of a file were mapped for the first time, as those of a fresh arena are. A warm arena has
none. Whatever goes on in the process's other threads counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rljob.checkpoint_engine.arena import human_size

OWN = Path("/proc/self")
SET_BACK = "5"
"""To `clear_refs`: the high-water mark becomes what is resident now. No page is looked at."""


@dataclass(frozen=True)
class Extra:
    """Bytes."""

    main: int | None
    """None where the kernel does not tell."""
    accelerator: int | None = None
    """None where main memory is the device's own."""

    def __str__(self) -> str:
        main = "an unknown part of main memory" if self.main is None else f"{human_size(self.main)} of main memory"
        return main if self.accelerator is None else f"{main} and {human_size(self.accelerator)} of the accelerator's"


def watch(process: Path = OWN) -> Callable[[], int | None]:
    """Begin to measure main memory; the call that this gives ends it and tells the bytes, None where the kernel does not. One at a time."""
    try:
        (process / "clear_refs").write_text(SET_BACK)
        before = _resident(process)
    except (OSError, KeyError):  # another kernel, or a container that closes it
        return lambda: None

    def most() -> int:
        now = _resident(process)
        mapped = max(r["RssFile"] + r["RssShmem"] for r in (before, now))
        return max(0, now["VmHWM"] - mapped - before["RssAnon"], now["RssAnon"] - before["RssAnon"])

    return most


def _resident(process: Path) -> dict[str, int]:
    """Bytes resident now, and at most since the mark was set back."""
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {name: 1024 * int(lines[name].split()[0]) for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}
