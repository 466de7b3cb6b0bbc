"""Writing files so that a reader sees all of one or nothing, and saying clearly why one cannot be written."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rljob.api import ConfigurationError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}

JOB_FOLDER = "put the job folder on another disk"
CACHE = "set XDG_CACHE_HOME to a folder on another disk (in a cluster: give the volume `cache` another source in spec.templates.master)"
"""What else helps where space is missing: downloads do not lie in the job folder."""


class NoSpace(ConfigurationError):
    """The disk is too small; nothing is wrong with what was to be written."""


@contextmanager
def explained(doing: str, folder: Path | None = None, remedy: str = JOB_FOLDER) -> Iterator[None]:
    """Turns the operating system's refusals into a message with a remedy; everything else passes unchanged.

    Args:
        folder: where it is done; a refusal to write into an open file names none.
        remedy: for a full disk, besides space that is freed.

    Raises:
        NoSpace: disk full, quota used up.
        ConfigurationError: no permission, read-only file system, a file in the way.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if error.filename is not None else folder or "the file system"
        if error.errno in _NO_SPACE:
            raise NoSpace(f"{doing}: disk full at {where}; free some space or {remedy}") from error
        if error.errno in _NO_PERMISSION:
            raise ConfigurationError(f"{doing}: no permission for {where} ({error.strerror}); change its owner or mode") from error
        if error.errno in _IN_THE_WAY:
            raise ConfigurationError(f"{doing}: a file is in the way at {where}, where a folder is needed; move it") from error
        raise


def write_atomically(path: Path, content: str) -> None:
    """Put a text file in place with one rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content)
    os.replace(partial, path)


def require_space(
    folder: Path,
    needed: int,
    what: str,
    remedy: str = JOB_FOLDER,
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> None:
    """Refuse before the work starts if `needed` bytes will not fit.

    Args:
        remedy: what helps besides space that is freed.

    Raises:
        NoSpace: fewer bytes are free.
    """
    available = free(folder)
    if available < needed:
        raise NoSpace(f"{what} needs {-(-needed >> 20)} MiB in {folder}, {available >> 20} MiB are free; free some space or {remedy}")


@contextmanager
def filled_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` at the end. `folder` itself may be a mount point, so it is never renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.iterdir()):
            file.chmod(0o644)  # safetensors writes files that only their owner may read; containers run as different users
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def clear_folder(folder: Path) -> None:
    """Remove the files of an earlier model."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
