"""Files between a run and the service: one after another, each with its name and size. No links, no modes but executable, no owners."""

import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

_HEADER = struct.Struct("<IIQ")
MOST_FILES: Final = 4096
"""Of one archive."""
LONGEST_PATH: Final = 1024


class ArchiveError(ValueError):
    """Not an archive, or one that is too big."""


def pack(names: Iterable[str], output: int, most_bytes: int) -> None:
    """Append those of `names` (relative paths) that are regular files; others are left out.

    ArchiveError if they are too many or too big, or have too long a path: what was packed can be unpacked.
    No link is followed in any component, and nothing here waits: a FIFO of that name is left out like a folder.
    """
    for count, name in enumerate(names):
        if count >= MOST_FILES:
            raise ArchiveError(f"more than {MOST_FILES} files")
        descriptor = open_regular(name)
        if descriptor is None:
            continue
        try:
            status = os.fstat(descriptor)
            most_bytes -= status.st_size
            if most_bytes < 0:
                raise ArchiveError("the files are too big to be sent back")
            encoded = os.fsencode(name)
            if len(encoded) > LONGEST_PATH:
                raise ArchiveError(f"a path has more than {LONGEST_PATH} bytes")
            write(output, _HEADER.pack(len(encoded), status.st_mode & 0o100, status.st_size) + encoded)
            _copy(descriptor, output, 0, status.st_size)
        finally:
            os.close(descriptor)


def open_regular(name: str) -> int | None:
    """A descriptor of the regular file `name` below the current folder, reached without a link; None if it is not that."""
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            deeper = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        if not stat.S_ISREG(os.stat(last, dir_fd=here, follow_symlinks=False).st_mode):
            return None
        descriptor = os.open(last, flags, dir_fd=here)
    except OSError:
        return None
    finally:
        os.close(here)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def walk(folder: str) -> Iterator[str]:
    """Every name below a folder that is no folder, links to folders not entered; in order."""
    for path, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield f"{path}/{name}"


def contents(read: Callable[[int, int], bytes], end: int) -> Iterator[tuple[str, bool, int, int]]:
    """Name, whether it may be executed, position and size of each file of an archive of `end` bytes. ArchiveError if it is none.

    `read` gives so many bytes from a position.
    """
    position = 0
    for _ in range(MOST_FILES):
        if position == end:
            return
        if position + _HEADER.size > end:
            raise ArchiveError("cut off in a header")
        length, executable, size = _HEADER.unpack(read(_HEADER.size, position))
        start = position + _HEADER.size + length
        if length > LONGEST_PATH or start + size > end:
            raise ArchiveError("cut off in a file")
        yield os.fsdecode(read(length, start - length)), bool(executable), start, size
        position = start + size
    if position != end:
        raise ArchiveError(f"more than {MOST_FILES} files")


def unpack(data: bytes) -> Iterator[tuple[str, bool, bytes]]:
    """Name, whether it may be executed, content of each. ArchiveError if it is not an archive."""
    for name, executable, start, size in contents(lambda size, position: data[position : position + size], len(data)):
        yield name, executable, data[start : start + size]


def extract(source: int) -> None:
    """Store all files of an archive (a memfd) below the current folder, with little memory however big they are."""
    for name, executable, start, size in contents(partial(os.pread, source), os.fstat(source).st_size):
        target = create(name, executable=executable)
        try:
            _copy(source, target, start, size)
        finally:
            os.close(target)


def store(name: str, content: bytes) -> None:
    """A new file below the current folder, with its folders."""
    descriptor = create(name)
    try:
        write(descriptor, content)
    finally:
        os.close(descriptor)


def create(name: str, *, executable: bool = False) -> int:
    """A descriptor of a new file below the current folder, with its folders."""
    if "/" in name:
        os.makedirs(os.path.dirname(name), exist_ok=True)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755 if executable else 0o644)


def read(descriptor: int) -> bytes:
    """All of a regular file (a memfd), wherever its position is."""
    size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(descriptor, size, sum(map(len, parts)))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write(descriptor: int, data: bytes) -> None:
    """All of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _copy(source: int, target: int, position: int, size: int) -> None:
    """From a position of its own: others may read the same open file at the same time."""
    while size > 0 and (part := os.pread(source, min(size, 1 << 20), position)):
        write(target, part)
        position += len(part)
        size -= len(part)
    if size:
        raise ArchiveError("a file shrank while it was read")
