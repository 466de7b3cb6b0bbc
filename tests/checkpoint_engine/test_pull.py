"""Pulling a version over real connections: every byte arrives, and whatever a source does, nothing wrong or partial is taken for it."""

import asyncio
import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tests.checkpoint_engine.tracker import Master

from rljob.checkpoint_engine import weight_server
from rljob.checkpoint_engine.arena import TensorFile, TensorSpec, manifest_checksum, tensor_entries, verify_manifest
from rljob.checkpoint_engine.clients import LocalArena
from rljob.checkpoint_engine.draft import Draft, aside_path, draft_path, read_metadata, version_of
from rljob.checkpoint_engine.pull import Puller, PullFailed
from rljob.checkpoint_engine.transport import HttpStream, HttpTransport, SourceFailed
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.wire.pieces import PullReport, mask_of, pieces
from rljob.wire.weights import Canary, Manifest

MiB = 1 << 20
STALL = 3.0
"""Seconds: long enough for a source that works, however busy the machine."""
CANARY = Canary(tokens=(1, 2), logprobs=(-1.0,), tolerance=1e-3)


def made(path: Path, version: int, tensors: int = 8, mib: int = 1) -> Manifest:
    """An arena of some MiB, as a trainer writes it, and its manifest; `mib`: of each tensor, but for two small ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    specs = [TensorSpec(f"layer.{i}.weight", torch.float32, (mib * MiB // 4 // 64, 64)) for i in range(tensors)]
    specs += [TensorSpec("norm.weight", torch.bfloat16, (7,)), TensorSpec("scale", torch.float32, ())]
    generator = torch.Generator().manual_seed(version)
    with TensorFile.create(path, specs, {}) as file:
        checksums = file.write_all({s.name: torch.randn(s.shape, generator=generator).to(s.dtype) for s in specs})
        entries = tensor_entries(file, checksums, "worker-0")
        checksum = manifest_checksum(entries)
        file.set_metadata({"version": str(version), "checksum": checksum})
    return Manifest(version=version, dtype="F32", tensors=entries, checksum=checksum, canary=CANARY)


def flip(path: Path, manifest: Manifest, tensor: str) -> None:
    """Change one byte of a tensor."""
    (entry,) = [t for t in manifest.tensors if t.name == tensor]
    with path.open("r+b") as file:
        file.seek(entry.shards[0].offset + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@contextlib.contextmanager
def serving(arena: Path) -> Iterator[str]:
    """The weight server of a node with this arena; its address."""
    server = WeightServer(Shelf(arena), "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.close()


@contextlib.contextmanager
def broken(master: Master, arena: Path, good: int, silent: bool) -> Iterator[str]:
    """A source that gives `good` pieces and, once they are known to have come, half of each one after: it goes away or is silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    content, over, numbers = arena.read_bytes(), threading.Event(), itertools.count()

    def answer(connection: socket.socket) -> bool:
        request = connection.recv(4096).decode()
        if not request.startswith("GET"):
            return False
        first, last = map(int, request.partition("bytes=")[2].split("\r\n")[0].split("-"))
        whole = content[first : last + 1]
        connection.sendall(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(whole)}\r\n\r\n".encode())
        if next(numbers) < good:
            connection.sendall(whole)
            return True
        while not over.wait(0.01) and (not master.told or mask_of(master.told[-1].have).bit_count() < good):
            pass
        connection.sendall(whole[: len(whole) // 2])
        if silent:
            over.wait(20)
        return False

    def attend(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            while answer(connection):
                pass

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=attend, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


def puller(
    master: Master, arena: Path, stall: float = 60, shelf: Shelf | None = None, node: str = "rollout-0", url: str = "http://127.0.0.1:1"
) -> Puller:
    arena.parent.mkdir(parents=True, exist_ok=True)
    return Puller(master, HttpTransport(stall), shelf or Shelf(arena), arena, node, url, patience=240, hopeless=0.0)


def pulled(master: Master, arena: Path, manifest: Manifest, stall: float = 60) -> Manifest | None:
    return asyncio.run(puller(master, arena, stall).pull(manifest.version, manifest.checksum, lambda progress: None))


def whole(arena: Path, manifest: Manifest) -> bool:
    with TensorFile.open(arena) as file:
        verify_manifest(manifest, file)
    return True


def test_a_pulled_version_is_the_source_byte_for_byte_and_where_the_manifest_says(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3)
    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        assert pulled(master, arena, manifest) == manifest
    assert whole(arena, manifest)
    start = pieces(manifest)[0].offset
    assert arena.read_bytes()[start:] == source.read_bytes()[start:]
    assert len(pieces(manifest)) > 4
    assert sum(piece.bytes for piece in pieces(manifest)) == sum(t.shards[0].bytes for t in manifest.tensors)


def test_the_version_before_stays_until_the_new_one_is_whole_and_its_memory_is_used_for_the_next(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    inodes = []
    seen: set[int | None] = set()
    master.on_report = lambda report: seen.add(LocalArena(arena).version())
    for version in (1, 2, 3):
        manifest = made(source, version)
        seen.clear()
        with serving(source) as url:
            asyncio.run(master.want(manifest, url))
            assert pulled(master, arena, manifest) == manifest
        assert seen == {version - 1 or None}
        assert LocalArena(arena).version() == version
        inodes.append(arena.stat().st_ino)
    assert inodes[0] == inodes[2] != inodes[1]
    assert sorted(path.name for path in arena.parent.iterdir()) == ["w", "w.next"]
    LocalArena(arena).remove()
    assert list(arena.parent.iterdir()) == []


def test_nothing_stays_of_an_agent_that_was_killed_while_the_two_files_changed_names(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 2)
    made(arena, 1)
    arena.rename(aside_path(arena))
    assert LocalArena(arena).version() is None, "what serves was started from the arena, and there is none"
    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        assert pulled(master, arena, manifest) == manifest
    assert whole(arena, manifest)
    LocalArena(arena).remove()
    assert list(arena.parent.iterdir()) == []


def test_the_version_before_is_found_again_by_an_agent_that_was_killed_before_it_got_its_new_name(tmp_path: Path) -> None:
    """There is no memory for a third version."""
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    made(arena, 1)
    before = arena.stat().st_ino
    arena.rename(aside_path(arena))
    made(arena, 2)
    manifest = made(source, 3)
    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        assert pulled(master, arena, manifest) == manifest
    assert whole(arena, manifest)
    assert arena.stat().st_ino == before
    assert sorted(path.name for path in arena.parent.iterdir()) == ["w", "w.next"]


def test_a_source_with_one_wrong_byte_is_found_out_and_nothing_of_it_stays(tmp_path: Path) -> None:
    honest, liar, arena, master = tmp_path / "a" / "w", tmp_path / "b" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(honest, 3, tensors=24)
    assert made(liar, 3, tensors=24).checksum == manifest.checksum
    for number in range(24):
        flip(liar, manifest, f"layer.{number}.weight")
    with serving(honest) as good, serving(liar) as bad:
        asyncio.run(master.want(manifest, bad, good))
        assert pulled(master, arena, manifest) == manifest
        assert bad in master.told[-1].refused
    assert whole(arena, manifest)


def test_what_a_liar_sent_before_it_was_found_out_is_fetched_again(tmp_path: Path) -> None:
    honest, liar, arena, master = tmp_path / "a" / "w", tmp_path / "b" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(honest, 3)
    made(liar, 3)
    flip(liar, manifest, "layer.7.weight")
    with serving(liar) as bad:
        asyncio.run(master.want(manifest, bad))
        with pytest.raises(PullFailed, match=r"sent a piece \(\d\) with a wrong checksum"):
            pulled(master, arena, manifest)
    assert mask_of(master.told[-1].have) == 0
    assert LocalArena(arena).version() is None


def test_another_source_takes_over_from_one_that_dies(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3)
    with serving(source) as good, broken(master, source, good=2, silent=False) as bad:
        asyncio.run(master.want(manifest, bad, good))
        assert pulled(master, arena, manifest) == manifest
        assert whole(arena, manifest)


@pytest.mark.parametrize("silent", [False, True])
def test_a_pull_that_was_cut_off_goes_on_with_what_is_there(tmp_path: Path, silent: bool) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    before, manifest = made(arena, 2), made(source, 3)
    with broken(master, source, good=3, silent=silent) as bad:
        asyncio.run(master.want(manifest, bad))
        with pytest.raises(PullFailed, match=r"version 3 did not come: \d+ pieces are missing and nobody is left who has them"):
            pulled(master, arena, manifest, STALL if silent else 60)
    assert whole(arena, before)
    had = mask_of(master.told[-1].have)
    assert had
    master.told.clear()
    with serving(source) as good:
        asyncio.run(master.want(manifest, good))
        assert pulled(master, arena, manifest) == manifest
    assert mask_of(master.told[0].have) == had
    assert whole(arena, manifest)


def test_a_long_tensor_comes_in_parts_and_those_that_are_right_stay_when_the_agent_is_killed(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3, tensors=2, mib=3)
    cut = pieces(manifest)
    assert [piece.bytes for piece in cut] == [*[MiB] * 6, cut[-1].bytes]
    arena.parent.mkdir(parents=True)
    content = source.read_bytes()
    killed = Draft.of(draft_path(arena), manifest)
    for number in (0, 1, 4):
        killed.room(number)[:] = content[cut[number].offset : cut[number].offset + MiB]
    killed.room(1)[17] ^= 1
    killed.close()
    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        assert pulled(master, arena, manifest) == manifest
    assert mask_of(master.told[0].have) == 0b10001
    assert whole(arena, manifest)


def test_a_manifest_without_parts_is_pulled_in_whole_tensors(tmp_path: Path) -> None:
    """As a trainer of a version before wrote it; it is the same version, by its checksum."""
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3, tensors=2, mib=3)
    manifest = manifest.model_copy(update={"tensors": tuple(t.model_copy(update={"parts": ()}) for t in manifest.tensors)})
    assert [piece.bytes for piece in pieces(manifest)][:-1] == [3 * MiB] * 2
    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        assert pulled(master, arena, manifest) == manifest
    assert whole(arena, manifest)


@pytest.mark.parametrize("more", [True, False])
def test_a_version_that_is_registered_anew_in_other_pieces_is_pulled_in_those(more: bool, tmp_path: Path) -> None:
    """As a trainer does that comes up with another release while a pod asks for what the one before has registered, or whose ranks are
    spread over other nodes. What a pod has of fewer pieces looks as if it had nothing more to get."""
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3, tensors=2, mib=3)
    few = manifest.model_copy(update={"tensors": tuple(t.model_copy(update={"parts": ()}) for t in manifest.tensors)})
    assert len(pieces(few)) < len(pieces(manifest))
    before, after = (few, manifest) if more else (manifest, few)
    with serving(source) as url:
        asyncio.run(master.want(before, url))
        master.on_report = lambda report: master.manifests.update({3: after})
        assert pulled(master, arena, manifest) is None
        assert pulled(master, arena, manifest) == after
    assert whole(arena, manifest)


def test_a_byte_that_changed_between_two_tries_is_fetched_again(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3)
    with broken(master, source, good=3, silent=False) as bad:
        asyncio.run(master.want(manifest, bad))
        with pytest.raises(PullFailed):
            pulled(master, arena, manifest)
    had = mask_of(master.told[-1].have)
    names = [part.name for piece in range(9) if had >> piece & 1 for part in pieces(manifest)[piece].parts]
    flip(draft_path(arena), manifest, names[0])
    master.told.clear()
    with serving(source) as good:
        asyncio.run(master.want(manifest, good))
        assert pulled(master, arena, manifest) == manifest
    assert mask_of(master.told[0].have).bit_count() == had.bit_count() - 1
    assert whole(arena, manifest)


def test_a_source_that_begins_the_next_version_meanwhile_is_no_liar(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3)

    def rewrite(report: PullReport) -> None:
        made(source, 4)

    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        master.on_report = rewrite
        with pytest.raises(PullFailed, match=r"nobody is left who has them \(.* (does not have|no longer has)"):
            pulled(master, arena, manifest)
    assert LocalArena(arena).version() is None


def test_a_pull_ends_when_another_version_is_wanted(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    before, manifest = made(arena, 2), made(source, 3)
    with serving(source) as url:
        asyncio.run(master.want(manifest, url))
        master.nodes.want("train", 4, None)
        assert pulled(master, arena, manifest) is None
    assert whole(arena, before)


def test_a_node_gives_what_it_has_checked_before_it_is_complete_itself(tmp_path: Path) -> None:
    source, arena = tmp_path / "worker" / "w", tmp_path / "rollout" / "w"
    manifest = made(source, 3)
    arena.parent.mkdir()
    shelf, draft = Shelf(arena), Draft.of(draft_path(arena), manifest)
    shelf.offer(draft)
    first, second = draft.pieces[:2]
    draft.room(0)[:] = source.read_bytes()[first.offset : first.offset + first.bytes]
    draft.have = 1
    label = (manifest.version, manifest.checksum)
    given = shelf.open(*label, first.offset, first.offset + first.bytes - 1)
    assert given is not None
    given.close()
    assert shelf.open(*label, second.offset, second.offset) is None
    assert shelf.open(*label, first.offset, second.offset) is None
    assert shelf.open(4, manifest.checksum, first.offset, first.offset) is None


def test_a_node_that_becomes_whole_while_it_is_asked_gives_the_version_and_not_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, arena = tmp_path / "worker" / "w", tmp_path / "rollout" / "w"
    made(arena, 2)
    manifest = made(source, 3)
    shelf, draft = Shelf(arena), Draft.of(draft_path(arena), manifest)
    for number, piece in enumerate(draft.pieces):
        draft.room(number)[:] = source.read_bytes()[piece.offset : piece.offset + piece.bytes]
        draft.have |= 1 << number
    shelf.offer(draft)
    looks = itertools.count()

    def look(descriptor: int) -> dict[str, str]:
        found = read_metadata(descriptor)
        if next(looks) == 0:  # at the arena, which is the version before
            draft.become(arena)
        return found

    monkeypatch.setattr(weight_server, "read_metadata", look)
    first = draft.pieces[0]
    given = shelf.open(manifest.version, manifest.checksum, first.offset, first.offset + first.bytes - 1)
    assert given is not None
    with given:
        assert read_metadata(given.fileno()) == version_of(manifest)
    assert shelf.open(2, "c2") is None


class Mumbling:
    """A source that answers something odd."""

    def __init__(self, answer: bytes) -> None:
        self._answer, self._listener = answer, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_source_that_speaks_of_more_bytes_than_anybody_can_count_has_failed(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3)
    odd = Mumbling(b"HTTP/1.1 206 Partial Content\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
    with contextlib.closing(odd):
        asyncio.run(master.want(manifest, odd.url))
        with pytest.raises(PullFailed, match="does not speak HTTP"):
            pulled(master, arena, manifest)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_to_which_no_way_leads_costs_a_moment_and_another_source_takes_over(tmp_path: Path, host: str) -> None:
    source, arena, lost = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", f"http://{host}:9"
    manifest, master = made(source, 3), Master()
    asyncio.run(master.want(manifest, lost))
    with pytest.raises(PullFailed, match=f"nobody is left who has them .*{re.escape(lost)} does not"):
        pulled(master, arena, manifest, stall=STALL)
    with serving(source) as good:
        asyncio.run(master.want(manifest, lost, good))
        pulled(master, arena, manifest, stall=STALL)
    assert whole(arena, manifest)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://fd00::17:8080", "http://[fd00", f"http://{'a' * 64}:80"])
def test_an_address_that_is_none_is_a_source_that_failed(tmp_path: Path, url: str) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest = made(source, 3)
    asyncio.run(master.want(manifest, url))
    with pytest.raises(PullFailed, match=f"{re.escape(url)} is no address of a weight server: "):
        pulled(master, arena, manifest)


class Late(asyncio.SelectorEventLoop):
    """Its time can be moved on."""

    moved = 0.0

    def time(self) -> float:
        return super().time() + self.moved


class Silent(HttpTransport):
    """Whoever is asked says nothing for an hour."""

    def __init__(self, loop: Late) -> None:
        super().__init__(60)
        self.loop, self.silent = loop, True

    def connect(self, source: str, version: int, checksum: str) -> HttpStream:
        transport = self

        class Stream(HttpStream):
            def read(self, offset: int, rooms: Sequence[memoryview]) -> Iterator[None]:
                if not transport.silent:
                    return super().read(offset, rooms)
                transport.loop.moved += 3600
                raise SourceFailed(f"{source} is silent")

        return Stream(source, version, checksum, 60)


def test_a_source_that_was_silent_for_long_leaves_the_time_for_another_to_turn_up(tmp_path: Path) -> None:
    source, arena, master = tmp_path / "worker" / "w", tmp_path / "rollout" / "w", Master()
    manifest, loop = made(source, 3), Late()
    transport = Silent(loop)
    arena.parent.mkdir()
    one = Puller(master, transport, Shelf(arena), arena, "rollout-0", "http://127.0.0.1:1", patience=1e9, hopeless=1800.0)
    with serving(source) as url, asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(master.want(manifest, "http://127.0.0.1:2"))

        coming = list[asyncio.Future[None]]()

        def turn_up(report: PullReport) -> None:
            if sum(bool(told.refused) for told in master.told) == 2:
                transport.silent = False
                coming.append(asyncio.ensure_future(master.want(manifest, "http://127.0.0.1:2", url)))

        master.on_report = turn_up
        assert runner.run(one.pull(3, manifest.checksum, lambda progress: None)) == manifest
    assert whole(arena, manifest)


def test_three_nodes_share_what_one_source_sends(tmp_path: Path) -> None:
    source, master = tmp_path / "worker" / "w", Master()
    manifest = made(source, 3, tensors=24)
    arenas = [tmp_path / f"rollout-{i}" / "w" for i in range(3)]

    async def together() -> list[Manifest | None]:
        with contextlib.ExitStack() as stack:
            await master.want(manifest, stack.enter_context(serving(source)))
            pulls = []
            for number, arena in enumerate(arenas):
                shelf = Shelf(arena)
                server = WeightServer(shelf, "127.0.0.1")
                stack.callback(server.close)
                one = puller(master, arena, 60, shelf, f"rollout-{number}", f"http://127.0.0.1:{server.port}")
                pulls.append(one.pull(3, manifest.checksum, lambda progress: None))
            return list(await asyncio.gather(*pulls))

    assert asyncio.run(together()) == [manifest] * 3
    assert all(whole(arena, manifest) for arena in arenas)
