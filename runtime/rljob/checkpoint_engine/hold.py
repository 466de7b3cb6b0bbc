"""Who reads an arena file where it lies: a lock that an engine takes and that whoever writes the file asks about.

Open-file-description locks of the whole file (fcntl(2)): they end with the process that holds them, however it ends. Imports nothing large:
the node agent uses it too.
"""

import fcntl
import os
import struct

_FLOCK = "hhqqi4x"
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


def take(descriptor: int) -> None:
    """From now on `held` is true for every other open file of this one; repeated: nothing."""
    _lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_RDLCK)


def give_back(descriptor: int) -> None:
    """Undo `take`; repeated: nothing."""
    _lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)


def held(descriptor: int) -> bool:
    """Whether another open file has it; nothing is taken, so that several who ask do not get in each other's way."""
    return _lock(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK


def _lock(descriptor: int, command: int, kind: int) -> int:
    """The kind that stands in the way, if asked."""
    answer = fcntl.fcntl(descriptor, command, struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0))
    return int(struct.unpack(_FLOCK, answer)[0])
