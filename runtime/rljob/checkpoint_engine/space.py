"""Space for files in shared memory and on disk. Imports nothing large: the node agent uses it too."""

import errno
import os
from pathlib import Path

from rljob.api import ConfigurationError, InfrastructureError


def human_size(count: int) -> str:
    """`1.5 GiB`, for messages."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def require_room(path: Path, need: int, held: int) -> None:
    """Refuse a file that its folder has no room for, before it is begun. `held`: bytes of the folder that are for it already.

    Raises:
        ConfigurationError: fewer bytes are free.
    """
    status = os.statvfs(path.parent)
    if need > held + (free := status.f_bavail * status.f_frsize):
        raise _no_room(path, need, free)


def reserve(path: Path, descriptor: int, need: int) -> None:
    """Allocate every page now: a write to a full shared-memory folder later would be a bus error, which nobody can catch."""
    try:
        status = os.fstatvfs(descriptor)
        if need > status.f_bavail * status.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, need)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InfrastructureError(f"cannot allocate {human_size(need)} for {path}: {error.strerror}") from error
        status = os.fstatvfs(descriptor)
        raise _no_room(path, need, status.f_bavail * status.f_frsize) from error


def _no_room(path: Path, need: int, free: int) -> ConfigurationError:
    remedy = (
        "raise the size of the shared-memory volume (`mount -o remount,size=...` on /dev/shm, `sizeLimit` of the emptyDir)"
        if str(path).startswith("/dev/shm")
        else "free space there or choose another folder"
    )
    return ConfigurationError(f"{path} needs {human_size(need)}, {path.parent} has {human_size(free)} free: {remedy}")
