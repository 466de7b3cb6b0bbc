"""Runs commands in an image as a strict cluster would: user 65532, read-only root, an empty /tmp, no network, no capability."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images import build

ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null urandom; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir -m 1777 "$root/dev/shm"
exec /usr/sbin/chroot --userspec=65532:65532 "$root" "$@"
"""


@dataclass(frozen=True)
class Result:
    """How a command in an image ended."""

    status: int
    out: str
    error: str


@dataclass(frozen=True)
class Inside:
    """An image whose files lie at `root`."""

    name: str
    root: Path
    config: dict[str, Any]

    def run(self, *command: str, timeout: float = 120) -> Result:
        """Runs a command with the image's environment and nothing of this machine's."""
        words = [
            "unshare",
            "--mount",
            "--net",
            "--ipc",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ENTER,
            "sh",
            str(self.root),
        ]
        environment = dict(entry.split("=", 1) for entry in self.config["config"]["Env"])
        done = subprocess.run(
            [*words, "/usr/bin/env", "-i", *(f"{k}={v}" for k, v in environment.items()), *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def python(self, code: str, timeout: float = 120) -> str:
        """What a piece of Python prints in the image."""
        result = self.run("python", "-c", code, timeout=timeout)
        assert result.status == 0, result.error
        return result.out


@contextmanager
def mounted(reference: str) -> Iterator[Inside]:
    """Mounts an image of buildah's store."""
    container = build.run("buildah", "from", "--pull-never", reference).strip()
    try:
        root = Path(build.run("buildah", "mount", container).strip())
        yield Inside(reference, root, json.loads(json.dumps(build.inspect(reference)["OCIv1"])))
    finally:
        build.run("buildah", "umount", container)
        build.run("buildah", "rm", container)
