"""Mooncake: what it refuses, with a stand-in that can be made to refuse. Pulls with its real engine: test_pull_processes.py."""

import asyncio
import ctypes
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.checkpoint_engine.test_fill import NODES, Nodes, known
from tests.checkpoint_engine.test_pull import made, whole
from tests.checkpoint_engine.tracker import Master

from rljob.api import ConfigurationError
from rljob.checkpoint_engine import mooncake
from rljob.checkpoint_engine.fill import Filler
from rljob.checkpoint_engine.mooncake import Memory, MooncakeStream, MooncakeTransport, TransferEngine, open_engine
from rljob.checkpoint_engine.outcome import FillFailed
from rljob.checkpoint_engine.pull import Puller, PullFailed
from rljob.checkpoint_engine.transport import HttpStream, SourceFailed
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.wire.weights import Manifest


class Engine:
    """As strict as the real one: reads only what is registered."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.reads = 0
        self.broken = False

    def get_rpc_port(self) -> int:
        return 15000

    def register_memory(self, buffer_addr: int, capacity: int) -> int:
        if any(a < buffer_addr + capacity and buffer_addr < a + n for a, n in self.registered.items()):
            return -7
        self.registered[buffer_addr] = capacity
        return 0

    def unregister_memory(self, buffer_addr: int) -> int:
        del self.registered[buffer_addr]
        return 0

    def batch_transfer_sync_read(
        self, target_hostname: str, buffers: Sequence[int], peer_buffer_addresses: Sequence[int], lengths: Sequence[int]
    ) -> int:
        assert target_hostname == "127.0.0.1:15000"
        self.reads += len(lengths)
        for here, there, length in zip(buffers, peer_buffer_addresses, lengths, strict=True):
            if self.broken or not all(any(a <= x and x + length <= a + n for a, n in self.registered.items()) for x in (here, there)):
                return -1
            ctypes.memmove(here, there, length)
        return 0


def pull(engine: Engine, master: Master, source: Path, arena: Path, manifest: Manifest, serves: bool = True) -> Manifest | None:
    """One pull from a node that has the source's arena."""
    arena.parent.mkdir(parents=True, exist_ok=True)
    server = WeightServer(Shelf(source), "127.0.0.1", Memory(engine, "127.0.0.1") if serves else None)
    try:
        asyncio.run(master.want(manifest, f"http://127.0.0.1:{server.port}"))
        transport = MooncakeTransport(engine, stall=60)
        puller = Puller(master, transport, Shelf(arena), arena, "rollout-0", "http://127.0.0.1:1", patience=240, hopeless=0.0)
        return asyncio.run(puller.pull(manifest.version, manifest.checksum, lambda progress: None))
    finally:
        server.close()


def test_versions_come_and_memory_is_registered_once_for_each_file(tmp_path: Path) -> None:
    engine, source, arena = Engine(), tmp_path / "worker" / "w", tmp_path / "rollout" / "w"
    for version in (1, 2, 3):
        manifest = made(source, version)
        assert pull(engine, Master(), source, arena, manifest) == manifest
        assert whole(arena, manifest)
    assert engine.reads >= 3 * 8
    # What is pulled into is let go of; the source's arena stays registered (here by three servers, one after the other).
    assert len(engine.registered) == 3


def test_a_read_that_fails_and_a_node_without_mooncake_are_sources_that_failed(tmp_path: Path) -> None:
    engine, source, arena = Engine(), tmp_path / "worker" / "w", tmp_path / "rollout" / "w"
    manifest = made(source, 1)
    with pytest.raises(PullFailed, match="does not serve the version with Mooncake: status 404"):
        pull(engine, Master(), source, arena, manifest, serves=False)
    engine.broken = True
    with pytest.raises(PullFailed, match=r"Mooncake could not read \d+ bytes from http://127.0.0.1:\d+: it went away or stalled"):
        pull(engine, Master(), source, arena, manifest)
    assert not arena.exists()


def fill(nodes: Nodes, engines: Sequence[TransferEngine], patience: float = 240) -> None:
    """What the agents of both nodes do."""
    with ExitStack() as stack:
        sources = {}
        for node, engine in zip(NODES, engines, strict=True):
            server = WeightServer(nodes.shelves[node], "127.0.0.1", Memory(engine, "127.0.0.1"))
            stack.callback(server.close)
            sources[node] = f"http://127.0.0.1:{server.port}"

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                for node, engine in zip(NODES, engines, strict=True):
                    filler = Filler(MooncakeTransport(engine, 60), nodes.shelves[node], nodes.paths[node], node, patience, pause=0.01)
                    group.create_task(filler.fill(nodes.manifest, known(sources), lambda progress: None))

        asyncio.run(both())


@pytest.mark.parametrize("engine", ["stand-in", "real"])
def test_two_nodes_fill_from_each_other_at_the_same_time(tmp_path: Path, engine: str) -> None:
    nodes, one = Nodes(tmp_path, version=3, before=2), Engine()
    fill(nodes, [one if engine == "stand-in" else open_engine("127.0.0.1", "tcp") for _ in NODES])
    assert all(map(nodes.whole, NODES))


def test_what_a_filling_node_cannot_read_makes_no_version(tmp_path: Path) -> None:
    nodes, broken = Nodes(tmp_path, version=3, before=2), Engine()
    broken.broken = True
    with pytest.raises(ExceptionGroup) as failed:
        fill(nodes, [broken, broken], patience=1)
    assert all(isinstance(error, FillFailed) and "Mooncake could not read" in str(error) for error in failed.value.exceptions)
    assert all(map(nodes.is_part, NODES))
    fill(nodes, [Engine()] * 2)
    assert all(map(nodes.whole, NODES))


class Control(HttpStream):
    """A source that says where its memory is, in its own way."""

    said = b""

    def memory(self) -> bytes:
        return self.said


@pytest.mark.parametrize(
    "said", [b'{"segment": "a", "address": 1e999}', b'{"segment": "a", "address": %d}' % 10**30, b"[" * 20000, b"5"],
    ids=["infinite", "huge", "deep", "number"],
)  # fmt: skip
def test_a_place_that_no_memory_has_is_a_source_that_failed(said: bytes) -> None:
    control = Control("http://b", 1, "c1", 60)
    control.said = said
    with pytest.raises(SourceFailed, match="http://b does not serve Mooncake"):
        next(MooncakeStream(Engine(), control, "http://b").read(0, [memoryview(bytearray(8))]))


def test_a_node_without_the_package_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.engine", None)
    with pytest.raises(ConfigurationError, match=r"spec.rollout.weights.transport is mooncake, but .* install mooncake-transfer-engine"):
        open_engine("127.0.0.1", "tcp")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the library's engines were started with. As the real one, they start with whatever there is."""
    started: list[tuple[str, ...]] = []

    class Library(Engine):
        def initialize(self, *words: str) -> int:
            started.append(words)
            return 0

    for variable in ("MC_LOG_LEVEL", "MC_TRANSFER_TIMEOUT", "MC_FORCE_TCP"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setitem(sys.modules, "mooncake.engine", SimpleNamespace(TransferEngine=Library))
    return started


def test_rdma_without_a_device_is_refused_and_is_not_tcp_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(mooncake, "RDMA", tmp_path)
    (tmp_path / "rdma_cm").touch()
    with pytest.raises(ConfigurationError, match=r"spec.rollout.weights.protocol is rdma, but there is no RDMA device.*set it to tcp"):
        open_engine("127.0.0.1", "rdma")
    assert library == []
    (tmp_path / "uverbs0").touch()
    open_engine("127.0.0.1", "rdma")
    assert library == [("127.0.0.1", "P2PHANDSHAKE", "rdma", "")]


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str, library: list[tuple[str, ...]]) -> None:
    with pytest.raises(ConfigurationError, match=f"transport is mooncake, but {host} is no address of this machine"):
        open_engine(host, "tcp")
    assert library == []
