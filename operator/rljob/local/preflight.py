"""What must hold before anything is spent. The facts are gathered in one place, the judgement of them is pure."""

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rljob.api import RLJob
from rljob.local.places import visible_devices
from rljob.plan import Estimate, misfits, prompt_sets
from rljob.plan.shape import find_package, locate

MiB = 1 << 20

_SLACK_ON_DISK, _SLACK_IN_MEMORY = 100 * MiB, 16 * MiB
"""Beside what the estimate knows: logs, metrics, prepared prompts; sockets and what others have in /dev/shm."""

LIBRARIES = {"libnuma.so.1": "libnuma1", "libgomp.so.1": "libgomp1"}
"""Shared libraries that vLLM's CPU build links and no Python package brings, and the Debian package of each."""


REMEDIES = {
    "spec.rollout.weights.transport": "set it to http, or install it: pip install '.[mooncake]' in a checkout of RLJob, and the system's "
    "libibverbs1"
}
"""Of packages that are missing, by field."""


MissingFile = tuple[str, str, str, str]
"""Field, value as written, path that does not exist, where the value starts or what is near it."""


@dataclass(frozen=True)
class Facts:
    """What was found on this machine."""

    disk_free: int
    """Bytes free where the job folder is."""
    memory_free: int
    """Bytes free in /dev/shm."""
    memory_total: int
    """Bytes of memory."""
    cache_free: int | None = None
    """Bytes free where downloads are kept; None: that is the disk of the job folder."""
    libraries_missing: tuple[str, ...] = ()
    commands_missing: tuple[str, ...] = ()
    files_missing: tuple[MissingFile, ...] = ()
    packages_missing: tuple[tuple[str, str], ...] = ()
    """(field, package)."""
    devices: int = 0
    """Accelerators of the wanted type that the run may use."""


def existing(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def held(folder: Path) -> int:
    """Bytes on the disk that a job folder has already, from a run before."""
    found = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it may go meanwhile
                found += os.lstat(os.path.join(at, name)).st_blocks * 512
    return found


def missing_files(job: RLJob, source: Path) -> tuple[MissingFile, ...]:
    """Files that a job names and that are not here; `source` is the job file's folder."""
    start = "it starts at the job file's folder"
    files = [(f"{field}.path", data.path, source / data.path, start) for field, data in prompt_sets(job) if data.path is not None]
    model = job.spec.model.source
    installed = model.package is not None and find_package(model.package.name) is not None
    if model.package is not None and installed and (found := locate(model, source)) is not None:
        beside = [path.name for path in found.parent.glob("*")]
        near = get_close_matches(found.name, beside, n=1)
        hint = f"did you mean {near[0]}?" if near else "it starts at the package's folder"
        files.append(("spec.model.source.package.file", model.package.file, found, hint))
    if model.path is not None:
        files.append(("spec.model.source.path", model.path, source / model.path, start))
    return tuple((field, said, str(path), hint) for field, said, path, hint in files if not path.exists())


def not_there(file: MissingFile) -> str:
    """What to say of a missing file."""
    field, said, path, hint = file
    return f"{field} is {said!r}, but {path} does not exist; correct the path ({hint})"


def gather(job: RLJob, folder: Path, source: Path, cache: Path) -> Facts:
    """Look at the machine."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    model, packages = job.spec.model.source, []
    if model.package is not None and find_package(model.package.name) is None:
        packages.append(("spec.model.source.package.name", model.package.name))
    if job.spec.rollout.weights.transport == "mooncake" and importlib.util.find_spec("mooncake") is None:
        packages.append(("spec.rollout.weights.transport", "mooncake"))
    return Facts(
        disk_free=shutil.disk_usage(existing(folder)).free + held(folder),
        memory_free=shared_memory_free(),
        memory_total=pages * page,
        cache_free=None if existing(cache).stat().st_dev == existing(folder).stat().st_dev else shutil.disk_usage(existing(cache)).free,
        libraries_missing=tuple(name for name in LIBRARIES if not _loads(name)),
        commands_missing=() if shutil.which("lscpu") else ("lscpu",),
        files_missing=missing_files(job, source),
        packages_missing=tuple(packages),
        devices=len(devices_here(os.environ)),
    )


def devices_here(environ: Mapping[str, str]) -> tuple[str, ...]:
    """NVIDIA's devices of this machine that a process with this environment may use, as `CUDA_VISIBLE_DEVICES` names them."""
    return visible_devices(sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*")), environ)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def problems(job: RLJob, sizes: Estimate, facts: Facts) -> list[str]:
    """Everything that keeps the job from running here; each one line with the remedy."""
    found = list(misfits(job, sizes.shape))
    if facts.libraries_missing:
        packages = " ".join(LIBRARIES[name] for name in facts.libraries_missing)
        found.append(f"vLLM needs {', '.join(facts.libraries_missing)}; install with: apt-get install {packages}")
    if facts.commands_missing:
        found.append("vLLM needs the command lscpu; install with: apt-get install util-linux")
    for field, package in facts.packages_missing:
        found.append(f"{field} is {package!r}, which is not installed; {REMEDIES.get(field, 'install the package that provides it')}")
    found += map(not_there, facts.files_missing)
    disk = sizes.disk + _SLACK_ON_DISK + (sizes.offloaded if facts.cache_free is None else 0)
    if facts.disk_free < disk:
        fewer = "lower spec.checkpoint.keep" + (", raise spec.checkpoint.keepEvery" if job.spec.checkpoint.keep_every else "")
        found.append(
            f"the job needs about {_mib(disk)} on the disk of the job folder, {_mib(facts.disk_free)} are free for it; "
            f"free space, {fewer}, or give a folder on another disk with --workdir"
        )
    if facts.cache_free is not None and sizes.offloaded and facts.cache_free < sizes.offloaded + _SLACK_ON_DISK:
        found.append(
            f"the trainer needs {_mib(sizes.offloaded + _SLACK_ON_DISK)} on the disk where downloads are kept, for its weights while the "
            f"engine runs, {_mib(facts.cache_free)} are free; free space, or set XDG_CACHE_HOME to a folder on another disk"
        )
    arena = sizes.arena * (job.spec.trainer.nodes + job.spec.rollout.replicas) + _SLACK_IN_MEMORY
    if facts.memory_free < arena:
        found.append(
            f"the weights need {_mib(arena)} in /dev/shm, {_mib(facts.memory_free)} are free; "
            "enlarge it (mount -o remount,size=..., or --shm-size for a container)"
        )
    if refusal := too_few_devices(job, facts.devices):
        found.append(refusal)
    return found


def too_few_devices(job: RLJob, devices: int) -> str:
    """Why so many accelerators are not enough; empty if they are. Pods share none: each has a trainer or an engine that fills it."""
    each, nodes = job.spec.accelerator.per_node, job.spec.trainer.nodes
    replicas, ranks = (job.spec.rollout.replicas if job.spec.generates else 0), job.spec.rollout.tensor_parallel
    needed = each * nodes + ranks * replicas
    if job.spec.accelerator.type == "cpu" or needed <= devices:
        return ""
    engines = f" and spec.rollout.tensorParallel ({ranks}) × spec.rollout.replicas ({replicas})" if replicas else ""
    return (
        f"spec.accelerator.perNode ({each}) × spec.trainer.nodes ({nodes}){engines} need {needed} nvidia devices, "
        f"{devices} are visible here; lower one of them, or set spec.accelerator.type: cpu"
    )


def shared_memory_free() -> int:
    """Bytes free in /dev/shm."""
    return shutil.disk_usage("/dev/shm").free


def no_room_for(replicas: int, more: int, free: int) -> str:
    """Why rollout replicas that need so many bytes more of shared memory cannot be added; empty if they can."""
    needed = more + _SLACK_IN_MEMORY
    if free >= needed or not more:
        return ""
    return f"spec.rollout.replicas: {replicas} need {_mib(needed)} more in /dev/shm for their weights, {_mib(free)} are free; give fewer"


def warnings(sizes: Estimate, facts: Facts) -> list[str]:
    """What may go wrong but need not."""
    peak = sum(memory.total for name, memory in sizes.memory.items() if name != "prepare") + sizes.arena
    if peak > facts.memory_total:
        return [
            f"the job may need {_mib(peak)} of memory, this machine has {_mib(facts.memory_total)}; "
            "lower spec.trainer.microBatchTokens or spec.rollout.engine.kvCacheMemory if it runs out"
        ]
    return []


def without_effect(job: RLJob) -> list[str]:
    """Fields that are set but mean nothing on one machine; each one line with why and what to do instead."""
    spec = job.spec
    found = []
    if spec.reward.replicas > 1:
        found.append(
            f"spec.reward.replicas is {spec.reward.replicas}, but `rljob run` starts one: copies would only share its cores; "
            "raise spec.reward.workers for more verifiers at once"
        )
    if spec.needs_sandbox and spec.sandbox.replicas > 1:
        found.append(
            f"spec.sandbox.replicas is {spec.sandbox.replicas}, but `rljob run` starts one: copies would only share its cores; "
            "raise spec.sandbox.slots for more programs at once"
        )
    if spec.trainer.nodes > 1:
        found.append(
            f"spec.trainer.nodes is {spec.trainer.nodes}: all worker pods share this machine, each with weights and an engine of its own; "
            "for less memory set it to 1 and spec.accelerator.perNode to the number of trainer processes"
        )
    roles = [name for name, override in spec.templates if override]
    if roles:
        found.append(
            f"spec.templates ({', '.join(roles)}) has no effect with `rljob run`: there are no pods on one machine; "
            "set environment variables in the shell, and sizes in the spec"
        )
    return found


def _mib(size: int) -> str:
    return f"{size / MiB:,.0f} MiB"
