"""Makes a node's arena whole, if the trainer's ranks are spread over several: each node has written what it holds, others send the rest.

The arena itself is filled, piece by piece: every node's has the same layout. Until it is whole its metadata says what it is a part of, and
it is no version; meanwhile the node gives to others what it has, since all fill at the same time. A piece counts once the checksums of its
tensors are right, whether it was written here, came in an earlier try, or comes now. So an agent that was killed goes on where it was, and
a trainer that was killed leaves an arena that is neither version nor part: it exports again.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rljob.checkpoint_engine.draft import Draft, is_laid_out_as, part_of, read_metadata, version_of
from rljob.checkpoint_engine.outcome import FillFailed, MasterAway
from rljob.checkpoint_engine.pull import coming, wrong_bytes
from rljob.checkpoint_engine.transport import SourceFailed, SourceLied, Stream, Transport
from rljob.checkpoint_engine.weight_server import Shelf
from rljob.wire.node import Progress
from rljob.wire.pieces import HEARTBEAT, members, runs
from rljob.wire.weights import Manifest, WeightsRefused

log = logging.getLogger(__name__)

STREAMS = 4
"""Connections to each node."""
PAUSE = 0.05
"""Seconds until a node that did not have its part yet is asked again: all export at the same time, so it has it very soon, and every engine
waits for this."""


class Filler:
    """Fills the arena of a worker node."""

    def __init__(self, transport: Transport, shelf: Shelf, arena: Path, node: str, patience: float, pause: float = PAUSE) -> None:
        """
        Args:
            node: name of this one, as in `Shard.node`.
            patience: seconds without a new piece after which a try ends.
            pause: seconds until a node that did not have its part yet is asked again.
        """
        self._transport, self._shelf, self._arena, self._node = transport, shelf, arena, node
        self._patience, self._pause = patience, pause

    async def fill(
        self, manifest: Manifest, sources: Callable[[], Awaitable[Mapping[str, str]]], publish: Callable[[Progress | None], None]
    ) -> None:
        """Have the version in the arena, whole. For the time of it nobody else may write there.

        Args:
            sources: tells the address of the weight server of each node, as it is by then: an agent that was started again has another.

        Raises:
            WeightsRefused: the arena is not this node's part of the version.
            FillFailed: another node sent something else, or nothing for too long.
            MasterAway: the master has to be asked where the nodes are.
            InfrastructureError: an engine reads the arena.
        """
        if _metadata(self._arena) == version_of(manifest):
            return
        addresses = await sources()
        draft = await asyncio.to_thread(self._own_part, manifest)
        fill, threads = _Fill(draft, self._transport, addresses), ThreadPoolExecutor(STREAMS * max(1, len(addresses)), "fill")
        async with coming(draft, self._transport, self._shelf, threads, fill.end):
            await self._fetch_all(fill, threads, sources, publish)
            if _metadata(self._arena) != part_of(manifest):
                raise WeightsRefused(f"{self._arena} was written while version {manifest.version} was put together there")
            draft.complete()

    def _own_part(self, manifest: Manifest) -> Draft:
        """The arena with what is right of it."""
        if _metadata(self._arena) != part_of(manifest):
            raise WeightsRefused(f"{self._arena} is not this node's part of version {manifest.version}: export again")
        if not is_laid_out_as(self._arena, manifest):
            raise WeightsRefused(f"{self._arena} has other tensors than the manifest of version {manifest.version}: export again")
        draft = Draft.of(self._arena, manifest)
        wrong = [part.name for i in members(draft.missing) if draft.pieces[i].node == self._node for part in draft.pieces[i].parts]
        if wrong:
            draft.close()
            raise WeightsRefused(f"{self._arena} is damaged, {wrong[0]} is not what the trainer wrote: export again")
        return draft

    async def _fetch_all(
        self,
        fill: "_Fill",
        threads: ThreadPoolExecutor,
        sources: Callable[[], Awaitable[Mapping[str, str]]],
        publish: Callable[[Progress | None], None],
    ) -> None:
        """Until every piece is here."""
        loop, draft = asyncio.get_running_loop(), fill.draft
        have, since = draft.have, loop.time()
        asked = since
        while draft.missing:
            pending = {loop.run_in_executor(threads, fill.fetch, *share) for share in _shares(draft, fill.addresses)}
            while pending:
                done, pending = await asyncio.wait(pending, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
                publish(Progress(done=draft.have.bit_count(), total=len(draft.pieces)))
            if draft.have != have:
                have, since = draft.have, loop.time()
            if draft.missing:
                fill.despair(loop.time() - since > self._patience)
                await asyncio.sleep(self._pause)
                if loop.time() - asked > HEARTBEAT:
                    fill.addresses = await _now(sources, fill.addresses)
                    asked = loop.time()


@dataclass
class _Fill:
    """One try. Threads only touch it under `lock`."""

    draft: Draft
    transport: Transport
    addresses: Mapping[str, str]
    """Of the weight server of each node, as far as is known."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    streams: set[Stream] = field(default_factory=set)
    failures: dict[str, SourceFailed] = field(default_factory=dict)
    """The newest of each source."""
    ended: bool = False

    def fetch(self, source: str, mask: int) -> None:
        """Fetch these pieces from a node, one after the other; in a thread."""
        version, checksum = self.draft.manifest.version, self.draft.manifest.checksum
        stream = self.transport.connect(source, version, checksum)
        with self.lock:
            if self.ended:
                return
            self.streams.add(stream)
        try:
            for run in runs(mask):
                arriving = stream.read(self.draft.pieces[run[0]].offset, [self.draft.room(piece) for piece in run])
                for piece, _ in zip(run, arriving, strict=True):
                    if not self.draft.checks(piece):
                        raise wrong_bytes(self.transport.connect(source, version, checksum), source, piece)
                    with self.lock:
                        self.draft.have |= 1 << piece
        except SourceFailed as error:
            with self.lock:
                self.failures[source] = error
        finally:
            with self.lock:
                self.streams.discard(stream)
            stream.close()

    def despair(self, late: bool) -> None:
        """Give up if a node lied, since nobody else has what it has, or if nothing came for too long."""
        if late or any(isinstance(failure, SourceLied) for failure in self.failures.values()):
            reasons = "; ".join(map(str, self.failures.values())) or "no node answered"
            missing, version = self.draft.missing.bit_count(), self.draft.manifest.version
            raise FillFailed(f"{missing} pieces of version {version}, which other nodes hold, did not come: {reasons}")

    def end(self) -> None:
        """No thread does anything any more."""
        with self.lock:
            self.ended = True
            for stream in self.streams:
                stream.close()


async def _now(sources: Callable[[], Awaitable[Mapping[str, str]]], before: Mapping[str, str]) -> Mapping[str, str]:
    """Where the nodes are by now. If the master does not say so at once, where they were: whoever has not moved may have its part."""
    try:
        async with asyncio.timeout(HEARTBEAT):
            return await sources()
    except (TimeoutError, MasterAway):
        return before


def _shares(draft: Draft, addresses: Mapping[str, str]) -> list[tuple[str, int]]:
    """What is missing, for each stream: address of the node that holds it, and which pieces."""
    found = []
    for node in sorted({draft.pieces[i].node for i in members(draft.missing)}):
        if node not in addresses:
            raise FillFailed(f"version {draft.manifest.version} lies on {node} in part, and nobody knows the address of that node")
        theirs = [i for i in members(draft.missing) if draft.pieces[i].node == node]
        step = -(-len(theirs) // STREAMS)
        found += [(addresses[node], sum(1 << i for i in theirs[at : at + step])) for at in range(0, len(theirs), step)]
    return found


def _metadata(arena: Path) -> dict[str, str]:
    """What the arena says that it is; nothing if there is none."""
    try:
        with arena.open("rb") as file:
            return read_metadata(file.fileno())
    except OSError:
        return {}
