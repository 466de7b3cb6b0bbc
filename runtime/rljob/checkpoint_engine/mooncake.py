"""Mooncake's TransferEngine as a way to read from other nodes: RDMA where there is RDMA, else its TCP.

Each node registers the memory of its arena and of its draft once, since they are files that are written in place, version after version.
Reads are one-sided: the source's CPU is not asked. Where a version lies in its memory is asked over HTTP (`/v1/memory` of the weight
server), and what comes is checked as ever.

What was learnt of it (0.3.13): it listens on two ports of every address without authentication, so whoever reaches them can read *and
write* registered memory: without NetworkPolicies it is not for a shared cluster. Errors are clean, a read returns -1 and the process
lives on; a stopped peer is noticed after MC_TRANSFER_TIMEOUT, which must be set before the engine is made. One thread of its TCP moves
some 2 GB/s where a plain socket moves 3.7.
"""

import ctypes
import json
import mmap
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, batched, repeat
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.transport import STALL, HttpStream, SourceFailed

LONGEST_BATCH = 64
"""Reads of one call; past some thousands it refuses all of them."""
RDMA = Path("/dev/infiniband")
"""Where the devices of RDMA networks are; a pod has those that it was given."""
FILES = 2
"""Registered files of a node: its arena and its draft."""


class TransferEngine(Protocol):
    """What is used of `mooncake.engine.TransferEngine`. 0 is success."""

    def get_rpc_port(self) -> int: ...

    def register_memory(self, buffer_addr: int, capacity: int) -> int: ...

    def unregister_memory(self, buffer_addr: int) -> int: ...

    def batch_transfer_sync_read(
        self, target_hostname: str, buffers: Sequence[int], peer_buffer_addresses: Sequence[int], lengths: Sequence[int]
    ) -> int: ...


def open_engine(host: str, protocol: str) -> TransferEngine:
    """An engine that others reach under `host`. Where something is missing it would start all the same, over TCP, or unreachable.

    Raises:
        ConfigurationError: the package or a library is not installed, or there is no such network or address.
    """
    if protocol == "rdma" and not any(RDMA.glob("uverbs*")):
        raise ConfigurationError(
            f"spec.rollout.weights.protocol is rdma, but there is no RDMA device here ({RDMA}/uverbs*): in spec.templates "
            "(worker, rollout) let the container checkpoint-engine ask for one by its name at the device plugin, or set it to tcp"
        )
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ConfigurationError(
            f"spec.rollout.weights.transport is mooncake, but {host} is no address of this machine ({error.strerror}): set "
            "RLJOB_ADVERTISE_HOST to one, or transport to http"
        ) from error
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    os.environ.setdefault("MC_TRANSFER_TIMEOUT", f"{STALL:.0f}")
    if protocol == "tcp":
        os.environ.setdefault("MC_FORCE_TCP", "1")  # it would take an RDMA device that it finds, whatever `initialize` is told
    try:
        engine: Any = import_module("mooncake.engine").TransferEngine()
    except ImportError as error:
        raise ConfigurationError(
            f"spec.rollout.weights.transport is mooncake, but it cannot be used here ({error}): install mooncake-transfer-engine and "
            "libibverbs1 in the image of the checkpoint-engine, or set it to http"
        ) from error
    if engine.initialize(host, "P2PHANDSHAKE", protocol, "") != 0:
        raise ConfigurationError(
            f"spec.rollout.weights.protocol is {protocol}, but Mooncake cannot use it on {host}: check the node's network devices, or set "
            "spec.rollout.weights.transport to http"
        )
    found: TransferEngine = engine
    return found


@dataclass(frozen=True)
class _Registered:
    memory: mmap.mmap
    address: int


class Memory:
    """This node's files as other nodes' engines see them."""

    def __init__(self, engine: TransferEngine, host: str) -> None:
        self.engine = engine
        self._segment = f"{host}:{engine.get_rpc_port()}"
        self._files: dict[tuple[int, int], _Registered] = {}
        self._lock = threading.Lock()

    def place(self, file: BinaryIO) -> bytes:
        """The answer of `/v1/memory`: where other nodes read this file from.

        Raises:
            InfrastructureError: it cannot be registered.
        """
        return json.dumps({"segment": self._segment, "address": self._registered(file).address}).encode()

    def _registered(self, file: BinaryIO) -> _Registered:
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino)
        with self._lock:
            if key not in self._files:
                while len(self._files) >= FILES:
                    self.engine.unregister_memory(self._files.pop(next(iter(self._files))).address)
                self._files[key] = self._register(file)
            return self._files[key]

    def _register(self, file: BinaryIO) -> _Registered:
        descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR)
        try:
            memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if (code := self.engine.register_memory(address, len(memory))) != 0:
            raise InfrastructureError(f"Mooncake does not take {len(memory)} bytes of memory (error {code})")
        return _Registered(memory, address)


class MooncakeTransport:
    """Reads with the transfer engine."""

    def __init__(self, engine: TransferEngine, stall: float = STALL) -> None:
        self._engine, self._stall = engine, stall
        self._room: tuple[int, ctypes.c_char] | None = None

    def begin(self, memory: memoryview) -> None:
        # RDMA writes to registered memory only; TCP does not mind.
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        if (code := self._engine.register_memory(address, len(memory))) != 0:
            raise InfrastructureError(f"Mooncake does not take {len(memory)} bytes of memory (error {code})")
        self._room = (address, first)

    def end(self) -> None:
        if self._room is not None:
            self._engine.unregister_memory(self._room[0])
            self._room = None

    def connect(self, source: str, version: int, checksum: str) -> "MooncakeStream":
        return MooncakeStream(self._engine, HttpStream(source, version, checksum, self._stall), source)


class MooncakeStream:
    """One source, where it says that the version lies in its memory."""

    def __init__(self, engine: TransferEngine, control: HttpStream, source: str) -> None:
        self._engine, self._control, self._source = engine, control, source
        self._place: tuple[str, int] | None = None

    def read(self, offset: int, rooms: Sequence[memoryview]) -> Iterator[None]:
        segment, base = self._place = self._place or self._ask()
        for some in batched(rooms, LONGEST_BATCH):
            # Each call costs as much as some hundred KiB.
            lengths = [len(room) for room in some]
            here = [ctypes.addressof(ctypes.c_char.from_buffer(room)) for room in some]
            there = list(accumulate(lengths[:-1], initial=base + offset))
            if self._engine.batch_transfer_sync_read(segment, here, there, lengths) != 0:
                raise SourceFailed(f"Mooncake could not read {sum(lengths)} bytes from {self._source}: it went away or stalled")
            offset += sum(lengths)
            yield from repeat(None, len(some))

    def _ask(self) -> tuple[str, int]:
        try:
            found = json.loads(self._control.memory())
            segment, address = str(found["segment"]), int(found["address"])
            if not 0 <= address < 1 << 63:
                raise ValueError(f"address {address}")
            return segment, address
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise SourceFailed(f"{self._source} does not serve Mooncake: {error!r}") from error

    def holds(self) -> bool:
        return self._control.holds()

    def close(self) -> None:
        """A read that is under way ends by itself, after MC_TRANSFER_TIMEOUT at the latest."""
        self._control.close()
