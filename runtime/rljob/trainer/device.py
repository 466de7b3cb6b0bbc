"""The one place that chooses device and communication back-end: `spec.accelerator.type` cpu or nvidia.

The nvidia side follows what was measured on one H100: no `device_id` for the process group (every one of Megatron's 24 groups would get
its communicator at once: 9.1 GB that no offload brings back, against 1-2.5 GB), host memory that is mapped and registered once
(55 GB/s both ways), the cuBLAS workspace cleared before the cache is emptied (it pins a segment of 1 GB).
"""

import ctypes
import ctypes.util
import datetime
import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rljob.api import ConfigurationError, InfrastructureError
from rljob.trainer import peak

FOREVER = datetime.timedelta(days=365)
"""Ranks wait for the next command as long as a rollout takes; a dead peer is noticed by its closed connection."""

Precision = Literal["fp32", "bf16"]


class Device(Protocol):
    """What differs between kinds of accelerators."""

    device: torch.device
    backend: str
    unified: bool
    """Host memory is the device's own."""

    def prepare(self) -> None:
        """Make this process ready for it. Before Megatron is imported."""

    def megatron(self) -> AbstractContextManager[Any]:
        """Goes around calls into Megatron's optimizer and schedule."""

    def undisturbed(self) -> AbstractContextManager[Any]:
        """Goes around a small computation that runs while an engine starts beside it."""

    def has_bf16(self) -> bool:
        """The hardware multiplies bf16 matrices."""

    def host_buffer(self, nbytes: int, folder: Path) -> Tensor:
        """Memory outside the accelerator for an offloaded state, uint8 [nbytes]; `folder` may serve as its place."""

    def register(self, memory: Tensor) -> None:
        """Let the device copy to and from mapped host memory at full speed."""

    def unregister(self, memory: Tensor) -> None:
        """Undo `register`, before the memory is unmapped."""

    def synchronize(self) -> None:
        """Return when everything started on the device is done."""

    def release(self) -> None:
        """Give memory that is free back to the machine."""

    def freed(self) -> int:
        """Bytes that are free in this process and that `release` would give back; 0 where nobody can tell, or where they must be."""

    def watch(self) -> Callable[[], peak.Extra]:
        """Begin to measure memory; the call that this gives ends it and tells the most that was taken meanwhile. One at a time."""


class Cpu:
    """The machine's own cores and memory."""

    device = torch.device("cpu")
    backend = "gloo"
    unified = True

    def prepare(self) -> None:
        from rljob.trainer import cpu

        _keep_freed_memory()
        cpu.install()

    def megatron(self) -> AbstractContextManager[Any]:
        from rljob.trainer import cpu

        return cpu.CudaMeansCpu()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """One thread: several that wait for each other at every step take many times as long when one of them has to share its core."""
        with _threads(1), FewRows():
            yield

    def has_bf16(self) -> bool:
        flags = Path("/proc/cpuinfo")
        return flags.exists() and any(word in flags.read_text().split() for word in ("avx512_bf16", "amx_bf16"))

    def host_buffer(self, nbytes: int, folder: Path) -> Tensor:
        """Pages of an unnamed file on disk: memory that the kernel can take away, and that is gone with the process however it ends."""
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, nbytes)
            except OSError as error:
                said = f"no {nbytes / (1 << 20):,.0f} MiB for the offloaded trainer in {folder}: {error.strerror}"
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise InfrastructureError(said) from error
                raise ConfigurationError(
                    f"{said}; free space there, or set XDG_CACHE_HOME to a folder on another disk (in a cluster: give the volume `cache` "
                    "another source in spec.templates.worker)"
                ) from error
            return torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=torch.uint8)

    def register(self, memory: Tensor) -> None:
        """Nothing to do."""

    def unregister(self, memory: Tensor) -> None:
        """Nothing to do."""

    def synchronize(self) -> None:
        """Nothing is asynchronous."""

    def release(self) -> None:
        libc = _libc()
        if libc is not None:
            libc.malloc_trim(0)

    def freed(self) -> int:
        """What malloc holds free. More than `release` gives back after memory was given back before: not all of it was got again."""
        libc = _libc()
        if libc is None or not hasattr(libc, "mallinfo2"):
            return 0
        libc.mallinfo2.restype = _Mallinfo2
        return int(libc.mallinfo2().fordblks)

    def watch(self) -> Callable[[], peak.Extra]:
        main = peak.watch()
        return lambda: peak.Extra(main())


class Nvidia:
    """One CUDA device, by LOCAL_RANK."""

    backend = "nccl"
    unified = False

    def __init__(self, local_rank: int) -> None:
        self.device = torch.device("cuda", local_rank)

    def prepare(self) -> None:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron's order of kernels
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need
        torch.cuda.set_device(self.device)
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - nothing here reads what it has not written
        from rljob.trainer import cpu

        cpu.stub_triton()

    def megatron(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def undisturbed(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def has_bf16(self) -> bool:
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def host_buffer(self, nbytes: int, folder: Path) -> Tensor:
        """Anonymous memory, registered with CUDA once; unlike pinned allocations it is not rounded up to a power of two."""
        buffer = torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
        self.register(buffer)
        return buffer

    def register(self, memory: Tensor) -> None:
        size = memory.numel()
        failed = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 0))
        if failed:
            raise InfrastructureError(f"cudaHostRegister of {size} bytes failed with error {failed}: is the pod's memory limit too low?")

    def unregister(self, memory: Tensor) -> None:
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()

    def freed(self) -> int:
        return 0

    def watch(self) -> Callable[[], peak.Extra]:
        """Of the accelerator what tensors take, as torch's allocator counts it; what it holds free and reuses is no more of it."""
        main, before = peak.watch(), torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return lambda: peak.Extra(main(), torch.cuda.max_memory_allocated(self.device) - before)


def choose(kind: str, local_rank: int) -> Device:
    """The device of this rank."""
    return Nvidia(local_rank) if kind == "nvidia" else Cpu()


def precision(wanted: str, device: Device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it, else fp32."""
    if wanted == "auto":
        return "bf16" if device.has_bf16() else "fp32"
    return "fp32" if wanted == "fp32" else "bf16"


def join(device: Device) -> dist.ProcessGroup:
    """Join the job's ranks (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and return the group over which commands travel."""
    if os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the host's name, which need not resolve
    dist.init_process_group(device.backend, timeout=FOREVER)
    return dist.new_group(backend="gloo", timeout=FOREVER)


class FewRows(TorchFunctionMode):
    """Inside, fp32 products of a few rows with a transposed weight go to oneDNN, which nearly keeps up with memory (8 rows: 14 GB/s of
    weights on one core of an EPYC); torch takes MKL for them, which does not (8 GB/s there). Without gradients only."""

    PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.PRODUCTS and len(args) == 2 and not kwargs and _is_linear(*args):
            rows, columns = args
            return torch.ops.mkldnn._linear_pointwise(rows, columns.t(), None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _is_linear(rows: Tensor, columns: Tensor) -> bool:
    """`rows @ weight.t()` of fp32 tensors on CPU."""
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (rows, columns))
    return plain and columns.dim() == 2 and columns.t().is_contiguous() and torch.backends.mkldnn.is_available()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Let glibc reuse what tensors free. Its default is one mmap per large tensor, whose pages are faulted in anew every time; training
    allocates gigabytes of activations per step. `Cpu.release` gives the memory back."""
    libc = _libc()
    if libc is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def _libc() -> ctypes.CDLL | None:
    """glibc, or None on systems with another C library."""
    name = ctypes.util.find_library("c")
    library = ctypes.CDLL(name) if name else None
    return library if library is not None and hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
