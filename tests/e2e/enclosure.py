"""A place with small or read-only file systems of its own, made of Linux namespaces: the machine itself is not touched.

Needs root, or a kernel that gives namespaces to users; the commands are of util-linux.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_USER = ("--user", "--map-root-user") if os.geteuid() else ()


def unable_to_override() -> tuple[str, ...]:
    """What to put before a command so that permissions hold even if root runs it."""
    if os.geteuid():
        return ()
    without = "-dac_override,-dac_read_search"
    return ("setpriv", f"--bounding-set={without}", f"--inh-caps={without}")


@dataclass(frozen=True)
class Enclosure:
    """A mount (and perhaps a network) namespace, alive as long as `holder`."""

    holder: int

    def command(self, *words: str | Path) -> list[str]:
        """The words as a command within."""
        kinds = ["--user", "--preserve-credentials"] if _USER else []
        return ["nsenter", "--target", str(self.holder), *kinds, "--mount", "--net", "--", *map(str, words)]

    def without_ports(self, *words: str | Path) -> list[str]:
        """The same, but no port below 32000 can be listened on; needs a network of its own."""
        limit = "echo 32000 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
        subprocess.run(self.command("sh", "-c", limit), check=True, timeout=30)
        return self.command("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", "--", *words)

    def path(self, within: Path) -> Path:
        """Where a path of the inside is seen from outside."""
        return Path(f"/proc/{self.holder}/root{within}")

    def mount(self, at: Path, size: str, *options: str) -> None:
        """A file system in memory."""
        chosen = ",".join((f"size={size}", *options))
        subprocess.run(self.command("mount", "-t", "tmpfs", "-o", chosen, "tmpfs", at), check=True, timeout=30)


@contextmanager
def enclosure(own_network: bool = False) -> Iterator[Enclosure]:
    """A new enclosure. Its own network has nothing in it, not even loopback."""
    kinds = [*_USER, "--mount", *(["--net"] if own_network else [])]
    # Says when the namespaces are there, then lives until its input ends.
    with subprocess.Popen(["unshare", *kinds, "sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"\n"
        try:
            yield Enclosure(holder.pid)
        finally:
            holder.stdin.close()


def fill(folder: Path) -> Path:
    """Write a file until nothing more fits, also what others free meanwhile; its path."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        idle = 0
        while idle < 5:
            try:
                file.write(b"\0" * 4096)
                idle = 0
            except OSError:
                idle += 1
                time.sleep(0.1)
    return path
