"""Nodes that each hold a part of a version fill from each other over real connections; nothing wrong or partial is ever a version."""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.checkpoint_engine.test_pull import MiB, flip, made

from rljob.checkpoint_engine.arena import TensorFile, WeightsRefused, manifest_checksum, verify_manifest
from rljob.checkpoint_engine.clients import LocalArena
from rljob.checkpoint_engine.draft import part_of, version_of
from rljob.checkpoint_engine.fill import Filler
from rljob.checkpoint_engine.outcome import FillFailed, MasterAway
from rljob.checkpoint_engine.transport import HttpStream, HttpTransport, SourceFailed
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.wire.node import Progress
from rljob.wire.pieces import pieces
from rljob.wire.weights import Manifest, TensorEntry

NODES = ("worker-0", "worker-1")


def known(sources: Mapping[str, str]) -> Callable[[], Awaitable[Mapping[str, str]]]:
    """A master that says where the nodes are."""

    async def addresses() -> Mapping[str, str]:
        return sources

    return addresses


class Nodes:
    """Two nodes whose trainers have exported: each arena holds its own tensors and, elsewhere, what was there before."""

    def __init__(self, folder: Path, version: int, before: int = 0, homes: str = "0011010111", **layout: int) -> None:
        """`homes`: the node of each tensor, in the order of the file; `layout` as for `made`."""
        self._layout = layout
        self.paths = {node: folder / node / "w" for node in NODES}
        self.truth = folder / "truth" / "w"
        whole = made(self.truth, version, **layout)
        order = [t.name for t in sorted(whole.tensors, key=lambda t: t.shards[0].offset)]
        self.home = {name: NODES[int(home)] for name, home in zip(order, homes, strict=True)}
        self.manifest = whole.model_copy(update={"tensors": tuple(self._at_home(t) for t in whole.tensors)})
        for node in NODES:
            self.export(node, before)
        self.shelves = {node: Shelf(path) for node, path in self.paths.items()}

    def _at_home(self, entry: TensorEntry) -> TensorEntry:
        return entry.model_copy(update={"shards": (entry.shards[0].model_copy(update={"node": self.home[entry.name]}),)})

    def export(self, node: str, before: int = 0) -> None:
        """What this node's ranks do."""
        made(self.paths[node], before, **self._layout)
        with TensorFile.open(self.paths[node], writable=True) as file, TensorFile.open(self.truth) as truth:
            file.set_metadata({})
            for name in (n for n, home in self.home.items() if home == node):
                file.write(name, truth.view(name))
            file.set_metadata(part_of(self.manifest))

    @contextlib.contextmanager
    def serving(self, nodes: Sequence[str] = NODES) -> Iterator[dict[str, str]]:
        """The nodes' weight servers; their addresses."""
        servers = {node: WeightServer(self.shelves[node], "127.0.0.1") for node in nodes}
        try:
            yield {node: f"http://127.0.0.1:{server.port}" for node, server in servers.items()}
        finally:
            with ThreadPoolExecutor() as pool:  # each takes half a second
                list(pool.map(WeightServer.close, servers.values()))

    def filler(self, node: str, patience: float = 240, transport: HttpTransport | None = None) -> Filler:
        return Filler(transport or HttpTransport(60), self.shelves[node], self.paths[node], node, patience, pause=0.01)

    async def fill(self, sources: dict[str, str], nodes: Sequence[str] = NODES) -> None:
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(self.filler(node).fill(self.manifest, known(sources), lambda progress: None))

    def whole(self, node: str) -> bool:
        with TensorFile.open(self.paths[node]) as file:
            verify_manifest(self.manifest, file)
        start = pieces(self.manifest)[0].offset
        return self.paths[node].read_bytes()[start:] == self.truth.read_bytes()[start:]

    def is_part(self, node: str) -> bool:
        """Not routable: no version stands there."""
        with TensorFile.open(self.paths[node]) as file:
            return file.metadata == part_of(self.manifest) and LocalArena(self.paths[node]).version() is None


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path, version=3, before=2)


def test_two_nodes_fill_from_each_other_at_the_same_time(nodes: Nodes) -> None:
    assert all(map(nodes.is_part, NODES))
    with nodes.serving() as sources:
        asyncio.run(nodes.fill(sources))
    assert all(map(nodes.whole, NODES))
    with TensorFile.open(nodes.paths["worker-1"]) as file:
        assert file.metadata == version_of(nodes.manifest)


def test_long_tensors_are_filled_in_parts(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, version=3, before=2, homes="0110", tensors=2, mib=3)
    assert [piece.node for piece in pieces(nodes.manifest)] == [NODES[int(home)] for home in "00011110"]
    with nodes.serving() as sources:
        asyncio.run(nodes.fill(sources))
    assert all(map(nodes.whole, NODES))


def test_a_node_whose_agent_comes_later_is_waited_for(nodes: Nodes) -> None:
    async def both(sources: dict[str, str]) -> None:
        waited = asyncio.Event()
        early = asyncio.create_task(nodes.filler("worker-0").fill(nodes.manifest, known(sources), lambda progress: waited.set()))
        await waited.wait()
        assert nodes.is_part("worker-0")
        await nodes.fill(sources, ["worker-1"])  # worker-0 offers its part while it waits
        await early

    with nodes.serving() as sources:
        asyncio.run(both(sources))
    assert all(map(nodes.whole, NODES))


def test_a_node_whose_agent_was_started_again_is_found_at_its_new_address(nodes: Nodes) -> None:
    """The master may be away for a moment as well: what it said before holds on."""
    shutil.copy(nodes.truth, nodes.paths["worker-1"])
    with TensorFile.open(nodes.paths["worker-1"], writable=True) as file:
        file.set_metadata(version_of(nodes.manifest))
    with nodes.serving() as sources:
        answers: list[Exception | dict[str, str]] = [{**sources, "worker-1": "http://127.0.0.1:1"}, MasterAway("no answer"), sources]

        async def addresses() -> Mapping[str, str]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        asyncio.run(nodes.filler("worker-0", patience=30).fill(nodes.manifest, addresses, lambda progress: None))
    assert nodes.whole("worker-0")
    assert answers == []


def test_a_whole_arena_is_left_alone_and_gives_to_others(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, version=3)
    with nodes.serving() as sources:
        asyncio.run(nodes.fill(sources))
        nodes.export("worker-1", before=1)
        asyncio.run(nodes.fill({"worker-0": sources["worker-0"]}, ["worker-0", "worker-1"]))
    assert all(map(nodes.whole, NODES))


def test_a_wrong_byte_of_another_node_is_found_out_and_the_next_try_works(nodes: Nodes) -> None:
    stolen = next(name for name, home in nodes.home.items() if home == "worker-1")
    with nodes.serving() as sources:
        truth = nodes.paths["worker-1"].read_bytes()
        with TensorFile.open(nodes.paths["worker-1"], writable=True) as file:
            file.set_metadata(version_of(nodes.manifest))  # it says that it has all of it
        flip(nodes.paths["worker-1"], nodes.manifest, stolen)
        with pytest.raises(FillFailed, match="wrong checksum"):
            asyncio.run(nodes.filler("worker-0").fill(nodes.manifest, known(sources), lambda progress: None))
        assert nodes.is_part("worker-0")
        nodes.paths["worker-1"].write_bytes(truth)
        asyncio.run(nodes.fill(sources))
    assert all(map(nodes.whole, NODES))


def test_a_wrong_byte_in_its_own_part_is_found_before_anything_is_given(nodes: Nodes) -> None:
    own = next(name for name, home in nodes.home.items() if home == "worker-0")
    flip(nodes.paths["worker-0"], nodes.manifest, own)
    with nodes.serving() as sources:
        with pytest.raises(WeightsRefused, match=f"damaged, {own}.*export again"):
            asyncio.run(nodes.filler("worker-0").fill(nodes.manifest, known(sources), lambda progress: None))
        assert nodes.is_part("worker-0")
        nodes.export("worker-0")
        asyncio.run(nodes.fill(sources))
    assert all(map(nodes.whole, NODES))


def test_a_node_that_has_another_version_gives_nothing_of_it(nodes: Nodes, tmp_path: Path) -> None:
    stale = Nodes(tmp_path / "stale", version=2)
    with stale.serving() as old, nodes.serving() as sources:
        asyncio.run(stale.fill(old))
        mixed = {**sources, "worker-1": old["worker-1"]}
        with pytest.raises(FillFailed, match="status 404"):
            asyncio.run(nodes.filler("worker-0", patience=0.0).fill(nodes.manifest, known(mixed), lambda progress: None))
        assert nodes.is_part("worker-0")
        asyncio.run(nodes.fill(sources))
    assert all(map(nodes.whole, NODES))


def test_an_arena_of_another_version_or_half_written_is_not_filled(nodes: Nodes, tmp_path: Path) -> None:
    other = Nodes(tmp_path / "other", version=4)
    with nodes.serving() as sources:
        for state in ({}, part_of(other.manifest), version_of(other.manifest)):
            with TensorFile.open(nodes.paths["worker-0"], writable=True) as file:
                file.set_metadata(state)
            before = nodes.paths["worker-0"].read_bytes()
            with pytest.raises(WeightsRefused, match="export again"):
                asyncio.run(nodes.filler("worker-0").fill(nodes.manifest, known(sources), lambda progress: None))
            assert nodes.paths["worker-0"].read_bytes() == before


def altered(manifest: Manifest, kind: str) -> Manifest:
    """A manifest with one thing wrong."""
    first, second, *others = manifest.tensors
    match kind:
        case "incomplete":
            tensors = (first, *others)
        case "doubled":
            tensors = (first, first, *others)
        case "dtype":
            tensors = (first.model_copy(update={"dtype": "I32"}), second, *others)
        case _:
            tensors = (first.model_copy(update={"shape": first.shape[::-1]}), second, *others)
    return manifest.model_copy(update={"tensors": tensors, "checksum": manifest_checksum(tensors)})


@pytest.mark.parametrize("kind", ["incomplete", "doubled", "dtype", "shape"])
def test_a_set_that_is_not_the_arena_is_refused(nodes: Nodes, kind: str) -> None:
    wrong = altered(nodes.manifest, kind)
    with TensorFile.open(nodes.paths["worker-0"], writable=True) as file:
        file.set_metadata(part_of(wrong))
    with pytest.raises(WeightsRefused, match="export again"):
        asyncio.run(nodes.filler("worker-0").fill(wrong, known({}), lambda progress: None))


class Dying(HttpTransport):
    """After so many pieces every connection breaks, as when the node at the other end dies."""

    def __init__(self, pieces: int) -> None:
        super().__init__(60)
        self.good, self.numbers = pieces, itertools.count()  # several threads count

    def connect(self, source: str, version: int, checksum: str) -> HttpStream:
        transport = self

        class Stream(HttpStream):
            def read(self, offset: int, rooms: Sequence[memoryview]) -> Iterator[None]:
                arriving = super().read(offset, rooms)
                for _ in rooms:
                    if next(transport.numbers) >= transport.good:
                        raise SourceFailed(f"{source} went away")
                    yield next(arriving)

        return Stream(source, version, checksum, 60)


def test_a_source_that_dies_costs_what_was_under_way_and_no_more(nodes: Nodes) -> None:
    with nodes.serving() as sources:
        shutil.copy(nodes.truth, nodes.paths["worker-1"])
        with TensorFile.open(nodes.paths["worker-1"], writable=True) as file:
            file.set_metadata(version_of(nodes.manifest))
        dying = nodes.filler("worker-0", patience=0.0, transport=Dying(2))
        with pytest.raises(FillFailed, match="went away"):
            asyncio.run(dying.fill(nodes.manifest, known(sources), lambda progress: None))
        assert nodes.is_part("worker-0")
        rest: list[Progress | None] = []
        asyncio.run(nodes.filler("worker-0").fill(nodes.manifest, known(sources), rest.append))
    assert nodes.whole("worker-0")
    assert rest[-1] is not None
    assert rest[-1].done == rest[-1].total == len(pieces(nodes.manifest))


def test_the_next_export_begins_clean_after_a_fill_that_was_killed(nodes: Nodes, tmp_path: Path) -> None:
    with nodes.serving() as sources:

        async def killed() -> None:
            begun = asyncio.Event()
            only = {"worker-1": sources["worker-1"]}  # which offers nothing yet
            filling = asyncio.create_task(nodes.filler("worker-0").fill(nodes.manifest, known(only), lambda progress: begun.set()))
            await begun.wait()
            filling.cancel()
            await asyncio.wait([filling])
            assert filling.cancelled()

        asyncio.run(killed())
        assert nodes.is_part("worker-0")
        asyncio.run(nodes.fill(sources))
    assert all(map(nodes.whole, NODES))


def test_a_node_whose_address_nobody_knows_is_named(nodes: Nodes) -> None:
    with pytest.raises(FillFailed, match=r"worker-1.*nobody knows the address"):
        asyncio.run(nodes.filler("worker-0").fill(nodes.manifest, known({}), lambda progress: None))
    assert nodes.is_part("worker-0")


def test_pieces_end_where_another_node_begins(nodes: Nodes) -> None:
    for piece in pieces(nodes.manifest):
        assert {nodes.home[part.name] for part in piece.parts} == {piece.node}
    assert sum(piece.bytes for piece in pieces(nodes.manifest)) > 8 * MiB - 1
