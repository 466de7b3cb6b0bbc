"""Archives from elsewhere: unpacked whole or not at all, and never outside of their folder.

Guards against members with absolute names, names that climb out with `..`, links that lead out, devices, and damage. Does not guard against
an archive that unpacks to more than the disk holds; that ends like any full disk.
"""

import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, cast

from rljob.api import ConfigurationError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""The last one: a zip archive compressed in a way that Python does not know."""
_REFUSED = (tarfile.AbsolutePathError, tarfile.OutsideDestinationError, tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError)


def unpack(archive: Path, out: Path) -> None:
    """Unpack into the folder `out`, which then is complete. An archive that cannot be used is removed, so that it is fetched again.

    Raises:
        ConfigurationError: the archive is damaged, or has a member outside of its folder.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if archive.suffix == ".zip":
            _unzip(archive, partial)
        else:
            _untar(archive, partial)
        partial.rename(out)
    except _REFUSED as error:
        archive.unlink()
        raise ConfigurationError(
            f"the archive {archive.name} is refused: {error}; pack a Hugging Face model folder by relative names"
        ) from error
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, _DAMAGED) and error.errno is not None:
            raise  # the operating system's; bz2 says by one without a number that its data are damaged
        archive.unlink()
        raise ConfigurationError(f"{archive.name} is not a readable archive ({_reason(error)}); check the address") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reason(error: Exception) -> str:
    """tarfile names every kind of archive that it has tried, one a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")


class _Remembering:
    """A file that keeps what was last read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.last = file, b""
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        self.last = self.file.read(size)
        return self.last


def _untar(archive: Path, out: Path) -> None:
    """tarfile takes a damaged header for the end of the archive; the end is two blocks of zeros, and behind it stands gzip's checksum."""
    with archive.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(archive) if compressed else archive.open("rb") as content:
        file = _Remembering(cast(IO[bytes], content))
        with tarfile.TarFile(fileobj=cast(IO[bytes], file)) as opened:
            opened.extractall(out, filter="data")
            if len(file.last) < tarfile.BLOCKSIZE or file.last.strip(b"\0"):
                raise tarfile.ReadError(f"it breaks off after {len(opened.getnames())} files")
        while content.read(1 << 20):
            pass


def _unzip(archive: Path, out: Path) -> None:
    """zipfile would quietly put a member with a strange name somewhere inside; here it is refused, as in a tar archive."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise tarfile.OutsideDestinationError(tarfile.TarInfo(member.filename), member.filename)
            if member.flag_bits & 1:
                raise zipfile.BadZipFile("it is encrypted")
        opened.extractall(out)
