"""The memory gate: the next owner of the accelerator starts only when what is free covers what it will claim.

Two things are judged: free memory against the claim, and what the previous owner keeps although it left. The latter is never zero (a
sleeping trainer on an H100 keeps 1.0 to 2.5 GiB of context and NCCL buffers, a sleeping vLLM 0.8 to 1.3), so what each process keeps at
its first hand-over is its baseline, and more than `leakTolerance` over that is a leak. A device does not tell whose memory is whose: there,
what is left when both are away has a baseline, and a rise is put down to the one that has just left. A trainer on CPU that has shown its
baseline may keep what it has freed while there is plenty of memory (`Claim.freed`): that is not counted, and is asked back when needed.

Does not see: memory that other programs on the machine take between the gate and the owner's own allocation.
"""

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.outcome import GateFailed
from rljob.checkpoint_engine.state import Owner

MiB = 1 << 20
_POLL = 0.05
_CGROUP = Path("/sys/fs/cgroup")
IDLE_CARD = 480 * MiB
"""What NVML calls used on a card that nobody uses (driver 580, H100); the least that was ever seen counts."""

_REMEDY = "use more memory, a smaller model, or lower rollout.engine.kvCacheMemory or trainer.microBatchTokens"
_REMEDIES: Mapping[Owner, str] = {
    "engine": "lower rollout.engine.extraArgs.gpu-memory-utilization (0.85 if it is not set), or use devices with more memory",
    "trainer": "use a smaller model, devices with more memory, or more of them (trainer.tensorParallel, trainer.pipelineParallel)",
}
"""The same on a device, by who comes next."""


@dataclass(frozen=True)
class Reading:
    """Memory at one moment, in bytes."""

    free: int
    rest: int
    """What the previous owner still holds; of a device all that is in use, whoever holds it."""


@dataclass(frozen=True)
class Claim:
    """What the gate checks for."""

    owner: Owner
    """Who comes next."""
    bytes: int
    baseline: int | None
    """The rest at the previous owner's first hand-over; None: this is the first, or it has ended."""
    tolerance: int
    freed: int = 0
    """What the previous owner has freed and only keeps: no leak."""
    on_device: bool = False
    """Of a device's memory, not of main memory."""


class DeviceMemory(Protocol):
    """Memory that trainer and engine share."""

    async def read(self, leaving: Owner) -> Reading:
        """Free memory, and what `leaving` still holds; of a device all that is in use."""

    def total(self) -> int:
        """Size in bytes."""


class CpuMemory:
    """Main memory: what the kernel calls available, within the container's limit; a process tree's own memory is told by its shim."""

    def __init__(self, held: Callable[[Owner], Awaitable[int]]) -> None:
        """`held` answers the private memory in bytes of an owner's processes."""
        self._held = held

    async def read(self, leaving: Owner) -> Reading:
        available, room = int(psutil.virtual_memory().available), _cgroup_free()
        return Reading(available if room is None else min(available, room), await self._held(leaving))

    def total(self) -> int:
        return int(psutil.virtual_memory().total)


class NvmlMemory:
    """Memory of this node's NVIDIA devices, the fullest one; read without a CUDA context of our own (that would take 620 MiB)."""

    def __init__(self, nvml: Any, names: str | None = None, count: int | None = None) -> None:
        """The first `count` (default: all) of the devices that `names` lists as `CUDA_VISIBLE_DEVICES` does (default: of the machine's).

        Args:
            nvml: the module `pynvml` or a twin of it.

        Raises:
            ConfigurationError: there is no device, none of that name, or it is a part of a GPU.
            InfrastructureError: NVML does not work.
        """
        self._nvml, self._idle = nvml, IDLE_CARD
        self._devices = self._ask(lambda: self._find(names, count))
        if not self._devices:
            raise ConfigurationError("accelerator.type is nvidia, but NVML shows no device: use a node with one or accelerator.type: cpu")

    @classmethod
    def open(cls, bindings: str = "pynvml", names: str | None = None, count: int | None = None) -> "NvmlMemory":
        """With the installed NVML bindings.

        Raises:
            ConfigurationError: there are none, or no such devices.
            InfrastructureError: NVML does not work.
        """
        try:
            return cls(importlib.import_module(bindings), names, count)
        except ImportError as error:
            raise ConfigurationError(
                f"accelerator.type is nvidia, but the Python module {bindings} is missing: install nvidia-ml-py in this image"
            ) from error

    async def read(self, leaving: Owner) -> Reading:
        # The calls block for up to 0.1 s while a process with much memory ends.
        infos = await asyncio.to_thread(self._infos)
        used = max(int(info.used) for info in infos)
        self._idle = min(self._idle, used)
        return Reading(min(int(info.total) - int(info.used) for info in infos), used - self._idle)

    def total(self) -> int:
        return min(int(info.total) for info in self._infos())

    def _infos(self) -> list[Any]:
        return self._ask(lambda: [self._nvml.nvmlDeviceGetMemoryInfo(device) for device in self._devices])

    def _ask[T](self, question: Callable[[], T]) -> T:
        try:
            return question()
        except self._nvml.NVMLError as error:
            raise InfrastructureError(f"NVML, which tells how full the devices are, says: {error}") from error

    def _find(self, names: str | None, count: int | None) -> list[Any]:
        self._nvml.nvmlInit()
        every = map(str, range(self._nvml.nvmlDeviceGetCount())) if names is None else map(str.strip, names.split(","))
        return [self._device(name) for name in [name for name in every if name][:count]]

    def _device(self, name: str) -> Any:
        nvml = self._nvml
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotFound) as error:
            raise ConfigurationError(
                f"CUDA_VISIBLE_DEVICES names {name!r}, which NVML does not know ({error}): use an index or a whole UUID of `nvidia-smi -L`"
            ) from error
        if name.startswith("MIG-") or self._is_cut(device):
            # Of the card NVML tells the sum or nothing; and torch, asked for a part by name, initialises CUDA before engines are forked.
            raise ConfigurationError(
                f"device {name} is a GPU that is cut into parts (MIG), which RLJob cannot use: let the job have a whole one (in a cluster "
                "settings.devices.nvidia.deviceClass of the operator, gpu.nvidia.com for example, says which devices it gets)"
            )
        return device

    def _is_cut(self, device: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(device)[0])
        except self._nvml.NVMLError_NotSupported:
            return False


def is_plenty(free: int, claim: int) -> bool:
    """Whether a trainer that leaves main memory may keep there what it has freed: the engine's claim is covered twice."""
    return free >= 2 * claim


def problem(reading: Reading, claim: Claim) -> str | None:
    """Why the gate stays shut, with numbers and remedy; None if it opens."""
    other = "engine" if claim.owner == "trainer" else "trainer"
    beside = " with all else on the device" if claim.on_device else ""
    if reading.free < claim.bytes:
        return (
            f"the {claim.owner} will claim {_size(claim.bytes)}, {_size(reading.free)} are free ({_size(reading.rest)} are held by the "
            f"{other} that left{beside}): {_REMEDIES[claim.owner] if claim.on_device else _REMEDY}"
        )
    rest = max(0, reading.rest - claim.freed)
    if claim.baseline is not None and rest > claim.baseline + claim.tolerance:
        return (
            f"the {other} that left holds {_size(rest)}{beside}, {_size(rest - claim.baseline)} more than at its first hand-over "
            f"(switch.memoryGate.leakTolerance is {_size(claim.tolerance)}): it leaks and is restarted"
        )
    return None


async def wait_open(memory: DeviceMemory, claim: Claim, deadline: float) -> Reading:
    """Until there is memory for the claim; what was read then.

    Raises:
        GateFailed: not within `deadline` seconds.
    """
    other: Owner = "engine" if claim.owner == "trainer" else "trainer"
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while (shut := problem(reading := await memory.read(other), claim)) is not None:
        if loop.time() >= end:
            raise GateFailed(f"after {deadline:.0f} s {shut}")
        await asyncio.sleep(_POLL)
    return reading


def _cgroup_free() -> int | None:
    """Room below this container's memory limit (cgroup v2), inactive file pages counted as free; None without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        current = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - current + int(stat.get("inactive_file", "0"))


def _size(count: int) -> str:
    return f"{count / MiB:.0f} MiB" if count < 1024 * MiB else f"{count / MiB / 1024:.1f} GiB"
