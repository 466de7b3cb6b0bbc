"""Slots whose every run is a container of its own, made by crun as in Kimi k1.5 (section 2.6.4): for who wants OCI, and slower.

Namespaces, file systems and user come from an OCI configuration; limits, system call filter, files, streams and the report from the same
code as elsewhere (`inside.contained`). Cgroups are the slot's own, used again for each container (the paper's "cgroup reusing"): crun is
told to leave them alone. As root a run is a user of the machine of its own, without a user namespace; else it has one.
"""

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rljob.api.errors import ConfigurationError, RLJobError
from rljob.sandbox.cgroups import ROOT, Cgroup
from rljob.sandbox.inside import root
from rljob.sandbox.inside.runner import kill
from rljob.sandbox.slot import USER, Interior, Job, NamespaceSlot, Ran, SlotError

_ENTRY: Final = "import sys; sys.path.insert(0, '/'); from rljob.sandbox.inside.contained import main; del sys.path[0]; main()"
_INSIDE: Final = Path(root.__file__).parent
_OWN_MEMORY = 48 << 20
"""Of crun and the runner in the container."""
_END_SECONDS = 10.0
_START = f"""
set -e
while [ "$1" != -- ]; do echo $$ > "$1"; shift; done
shift
if grep -q . {ROOT}/unified/cgroup.controllers 2> /dev/null; then mount -t tmpfs none {ROOT}/unified; fi
exec "$@"
"""
"""crun refuses a machine where both versions of cgroups have controllers; it does not see the second one here."""


class CrunSlot(NamespaceSlot):
    """A slot that makes a container for each run."""

    def __init__(self, interior: Interior, cgroup: Cgroup, host_ids: tuple[int, int] | None) -> None:
        super().__init__(interior, cgroup, host_ids)
        self._folder: Path | None = None
        self._crun = ""

    async def start(self) -> Mapping[str, bool]:
        """Make the bundle and try it."""
        self._folder = Path(tempfile.mkdtemp(prefix="rljob-sandbox-"))
        self._folder.chmod(0o755)
        (self._folder / "rootfs").mkdir()
        paths, links = root.visible(self._interior.folders)
        root.furnish(str(self._folder / "rootfs"), USER, links)
        for path in paths:
            root.place(f"{self._folder}/rootfs{path}", is_folder=os.path.isdir(path))
        for name in root.DEVICES:
            root.place(f"{self._folder}/rootfs/dev/{name}", is_folder=False)
        root.place(f"{self._folder}/rootfs/rljob/sandbox/inside", is_folder=True)
        self._base, self._resident = _OWN_MEMORY, 2
        try:
            self._crun = crun()
            ran = await self.run(_trial())
        except RLJobError:
            await self.stop()
            raise
        if ran.ended.trouble or ran.ended.status:
            await self.stop()
            raise SlotError(f"a container could not be made: {ran.ended.trouble or ran.stderr.decode(errors='replace')}")
        self.runs = 0
        self._killed, self._refused = self.cgroup.killed(), self.cgroup.refused()
        return dict.fromkeys(("pid", "mount", "net", "ipc", "uts", "cgroup"), True) | {"user": self._host_ids is None, "time": False}

    async def run(self, job: Job) -> Ran:
        """Run a program in a new container."""
        try:
            return await super().run(job)
        finally:
            await self._gone()

    def _check_left(self) -> None:
        """What is left goes with the container."""

    async def _ready(self, job: Job) -> None:
        """Start the container, whose runner then waits for the order."""
        assert self._folder is not None
        (self._folder / "config.json").write_text(json.dumps(self._configuration(job)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._control = ours
        # The container's own is read-only, so that a run cannot undo what lets the kernel take it first; the runner does that by this one.
        proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        socket.send_fds(ours, [b"proc"], [proc])
        os.close(proc)
        name = f"{self._folder.name}-{self.runs}"
        command = [
            self._crun, "--root", str(self._folder / "state"), "--cgroup-manager=disabled", "run", "--no-new-keyring", "--bundle",
            str(self._folder), "--pid-file", str(self._folder / "pid"), name,
        ]  # fmt: skip
        # Started by anybody but root, crun wants newuidmap and a user who has a name.
        unshare = ["unshare", "--mount", *(("--map-root-user",) if self._host_ids is None else ())]
        processes = [str(folder / "cgroup.procs") for folder in self.cgroup.folders.values()]
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *unshare, "sh", "-c", _START, "sh", *processes, "--", *command, env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"},
                stdin=theirs.fileno(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._diagnosis.clear()
        self._listener = asyncio.create_task(self._listen(self._process))

    async def _gone(self) -> None:
        """Wait until the container is no more; end it if it does not end."""
        process, control = self._process, self._control
        if control is not None:
            control.close()
        if process is None or self._folder is None:
            return
        try:
            async with asyncio.timeout(0 if self.broken else _END_SECONDS):
                await process.wait()
        except TimeoutError:
            pid = self._folder / "pid"
            if pid.exists():
                kill(int(pid.read_text()))
            kill(process.pid)
            await process.wait()
        await asyncio.wait({self._listener})
        self._process = self._control = None

    async def stop(self) -> None:
        """End what runs and remove the bundle."""
        self.broken = True
        await self._gone()
        await super().stop()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _configuration(self, job: Job) -> dict[str, Any]:
        """The OCI configuration of a container for one run."""
        user = USER if self._host_ids is None else self._host_ids[1]
        namespaces = [{"type": name} for name in ("pid", "network", "ipc", "uts", "mount", "cgroup")]
        linux: dict[str, Any] = {"namespaces": namespaces}
        if self._host_ids is None:
            namespaces.append({"type": "user"})
            linux |= {
                "uidMappings": [{"containerID": USER, "hostID": 0, "size": 1}],
                "gidMappings": [{"containerID": USER, "hostID": 0, "size": 1}],
            }
        python = self._interior.python
        return {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": user, "gid": user},
                "args": [python, "-s", "-P", "-X", "utf8", "-c", _ENTRY, json.dumps(dict(self._interior.environment))],
                "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8", "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1"],
                "cwd": "/",
                "noNewPrivileges": True,
                "capabilities": {name: [] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            },
            "root": {"path": "rootfs", "readonly": True},
            "hostname": "sandbox",
            "mounts": self._mounts(job, user),
            "linux": linux,
        }

    def _mounts(self, job: Job, user: int) -> list[dict[str, Any]]:
        paths, _ = root.visible(self._interior.folders)
        shown = {**{path: path for path in paths}, "/rljob/sandbox/inside": str(_INSIDE)}
        size = [f"size={job.bounds['disk']}", f"nr_inodes={job.bounds['inodes']}", "mode=700", f"uid={user}", f"gid={user}"]
        return [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["ro", "nosuid", "nodev", "noexec", "subset=pid"]},
            {"destination": root.SCRATCH, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", *size]},
            *(
                {"destination": to, "type": "bind", "source": path, "options": ["rbind", "ro", "nosuid", "nodev"]}
                for to, path in shown.items()
            ),
            *(
                {"destination": f"/dev/{name}", "type": "bind", "source": f"/dev/{name}", "options": ["bind", "ro", "nosuid", "noexec"]}
                for name in root.DEVICES
            ),
        ]


def crun() -> str:
    """Where crun is. ConfigurationError if it is not installed."""
    path = shutil.which("crun")
    if path is None:
        raise ConfigurationError(
            "backend crun needs crun on the PATH: install it (Debian: apt-get install crun), or use the backend namespaces"
        )
    return path


def _trial() -> Job:
    payload = {"files": {"main.py": ""}, "folders": [], "source": "main.py", "arguments": [], "command": [], "environment": {}, "fetch": []}
    bounds = {"cpu": 5.0, "processes": 4, "disk": 1 << 20, "inodes": 64, "stack": 8 << 20, "data": None}
    return Job(payload=payload, bounds=bounds, python=True, stdin=b"", wall=10.0, cpu=5.0, memory=256 << 20, output=1 << 16)
