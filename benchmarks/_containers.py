"""Containers to compare the sandbox with: `crun run` for every execution, and a start through containerd."""

import asyncio
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.cluster.build import BuildError, binary, build_all  # noqa: E402

Run = Callable[[], Awaitable[None]]
"""One execution of the program that prints the number after the one it reads, with the proof that it ran."""


def _own_mounts() -> None:
    """What is mounted from now on, nobody else sees."""
    os.unshare(os.CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@contextmanager
def crun_recipe(folder: Path, command: Sequence[str]) -> Iterator[Run | None]:
    """`crun run` of a command on an overlay that is made for the run and thrown away after it; None if it is not to be had."""
    crun = shutil.which("crun")
    if crun is None or os.geteuid() != 0:
        yield None
        return
    numbers = itertools.count()
    script = folder / "one.sh"
    script.write_text(ONE_CONTAINER)

    async def run() -> None:
        bundle = folder / f"b{next(numbers)}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(container(command)))
        process = await asyncio.create_subprocess_exec(
            "sh", str(script), str(bundle), crun, str(folder / "state"), bundle.name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate(b"41\n")
        assert output == b"42\n", errors

    # crun refuses a machine with both versions of cgroups; it does not see the second one here.
    if Path("/sys/fs/cgroup/unified/cgroup.controllers").exists():
        _own_mounts()
        subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=True)
    yield run


@contextmanager
def containerd_start(folder: Path, command: Sequence[str], say: Callable[[str], None]) -> Iterator[Run | None]:
    """`ctr run --rm` of a command through a containerd of our own, with runc; None, and why, where that cannot be had.

    The image is a layer of empty folders in which the machine's programs are mounted read-only; each container has a snapshot of its own.
    The network that `docker run` makes would come on top.
    """
    try:
        if os.geteuid() != 0 or shutil.which("runc") is None:
            raise BuildError("it needs root and runc")
        build_all(say, ["containerd"])
        programs = binary("ctr").parent
    except BuildError as error:
        say(f"no comparison with containerd: {error}")
        yield None
        return
    with ExitStack() as stack:
        service = _started(folder, programs, stack)
        numbers = itertools.count()
        mounts = [f"--mount=type=bind,src={path},dst={path},options=rbind:ro" for path in _folders()]

        async def run() -> None:
            name = f"bench-{next(numbers)}"
            process = await asyncio.create_subprocess_exec(
                programs / "ctr", "-a", folder / "containerd.sock", "run", "--rm", *mounts, _IMAGE, name, *command,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            output, errors = await process.communicate(b"41\n")
            assert output == b"42\n", (errors, service.poll())

        yield run


def _started(folder: Path, programs: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    """containerd, ready; with the stack it ends, and what was mounted for it is gone."""
    _own_mounts()
    # containerd's shims have their sockets below /run, wherever its own folders are.
    for name, options in {
        "/run": ["-t", "tmpfs", "-o", "mode=755", "run"],
        str(folder): ["-t", "tmpfs", "-o", "size=256m", "bench"],
    }.items():
        subprocess.run(["mount", *options, name], check=True)
        stack.callback(subprocess.run, ["umount", "-l", name], check=False)
    (folder / "containerd.toml").write_text(_CONTAINERD.format(folder=folder))
    path = f"{programs}:{os.environ['PATH']}"
    with (folder / "containerd.log").open("wb") as log:
        command = [str(programs / "containerd"), "-c", str(folder / "containerd.toml")]
        service = subprocess.Popen(command, env=dict(os.environ) | {"PATH": path}, stdout=log, stderr=log)
    stack.callback(service.wait)
    stack.callback(service.terminate)
    deadline = time.monotonic() + 30
    while subprocess.run([programs / "ctr", "-a", folder / "containerd.sock", "version"], capture_output=True, check=False).returncode:
        if service.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"containerd did not start: {(folder / 'containerd.log').read_text()[-2000:]}")
        time.sleep(0.1)
    write_image(folder / "image.tar")
    subprocess.run(
        [programs / "ctr", "-a", folder / "containerd.sock", "images", "import", folder / "image.tar"], check=True, capture_output=True
    )
    return service


def _folders() -> list[str]:
    """What the interpreter needs, none within another."""
    return ["/usr"] + [path for path in [os.path.realpath(sys.base_prefix)] if not path.startswith("/usr/")]


def write_image(file: Path) -> None:
    """An OCI image (image layout 1.0.0) of empty folders and the links to programs and libraries that this machine has at its top."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in ("usr", "proc", "sys", "dev", "etc", "run", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("bin", "sbin", "lib", "lib64"):
            if os.path.islink(f"/{name}"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(f"/{name}")
                archive.addfile(entry)
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layers = [blob("layer.v1.tar", layer.getvalue())]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]}, "config": {}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": layers,
    }
    named = blob("manifest.v1+json", json.dumps(manifest).encode()) | {"annotations": {"io.containerd.image.name": _IMAGE}}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(file, "w") as archive:
        for name, content in blobs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


_IMAGE = "localhost/bench:1"
_CONTAINERD = """\
version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
"""

ONE_CONTAINER = """
set -e
mkdir "$1"_
mount -t tmpfs -o size=64m run "$1"_
mkdir "$1"_/upper "$1"_/work "$1"_/rootfs
mount -t overlay -o "lowerdir=/,upperdir=$1_/upper,workdir=$1_/work" overlay "$1"_/rootfs
cp "$1"/config.json "$1"_/config.json
"$2" --root "$3" run -b "$1"_ "$4"
umount "$1"_/rootfs "$1"_
rmdir "$1"_
rm -r "$1"
"""


def container(command: Sequence[str]) -> dict[str, Any]:
    """An OCI configuration: namespaces of its own, cgroup limits, no capabilities, no new privileges."""
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": command, "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"], "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {name: [] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")},
        },
        "root": {"path": "rootfs", "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ],
        "linux": {
            "namespaces": [{"type": name} for name in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "resources": {"memory": {"limit": 256 << 20}, "pids": {"limit": 32}},
        },
    }  # fmt: skip
