"""Brings a version into this node: asks the master what to fetch next and where, fetches it in several streams, checks it.

A piece counts once the checksums of its tensors are right. A source whose bytes are wrong although it says that it has the version is a
liar: nothing that came from it stays. One that went away, stalled or no longer has the version is not asked again. Both hold until this
try ends: the next one begins with what is here, checked anew, and trusts everybody once more.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.draft import Draft, draft_path, take_back
from rljob.checkpoint_engine.outcome import DeadlineExceeded, MasterAway
from rljob.checkpoint_engine.transport import SourceFailed, SourceLied, Stream, Transport
from rljob.checkpoint_engine.weight_server import IDLE, Shelf
from rljob.wire.node import Progress
from rljob.wire.pieces import HEARTBEAT, PullLease, PullPlan, PullReport, mask_of, runs, text_of
from rljob.wire.weights import Manifest

log = logging.getLogger(__name__)

FRESH = IDLE / 3
"""Seconds for which a stream that nobody uses is as good as a new one: the source closes it after IDLE."""
HOPELESS = 5.0
"""Seconds for which a source may still turn up after others have failed."""


class PullFailed(InfrastructureError):
    """A version did not come, and nobody is left who could give it."""


class Tracker(Protocol):
    """What a pull needs of the master."""

    async def manifest(self, version: int) -> Manifest | None:
        """None: it knows no such version yet."""

    async def pull(self, version: int, report: PullReport) -> PullPlan: ...


@dataclass
class _Pull:
    """One try. Threads only touch it under `lock`."""

    draft: Draft
    lock: threading.Lock = field(default_factory=threading.Lock)
    origin: dict[int, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Source to reason."""
    streams: dict[Stream, str] = field(default_factory=dict)
    """Stream to source."""
    idle: dict[str, list[tuple[float, Stream]]] = field(default_factory=dict)
    """Source to streams that no lease uses, and since when; a new connection would begin slowly."""
    ended: bool = False

    def stream(self, source: str, transport: Transport) -> Stream | None:
        """A stream for a lease; None if there is nothing more to do."""
        with self.lock:
            if self.ended or source in self.refused:
                return None
            kept = self.idle.get(source, [])
            while kept:
                since, stream = kept.pop()
                if time.monotonic() - since < FRESH:
                    return stream
                stream.close()
                self.streams.pop(stream, None)
            manifest = self.draft.manifest
            stream = transport.connect(source, manifest.version, manifest.checksum)
            self.streams[stream] = source
            return stream

    def put_back(self, stream: Stream) -> None:
        """A lease is done and its stream is as it was."""
        with self.lock:
            if stream in self.streams and not self.ended:
                self.idle.setdefault(self.streams[stream], []).append((time.monotonic(), stream))

    def accept(self, piece: int, source: str) -> bool:
        """A piece is here and checked; False if its source is not to be used any more."""
        with self.lock:
            if self.ended or source in self.refused:
                return False
            self.draft.have |= 1 << piece
            self.origin[piece] = source
            return True

    def refuse(self, source: str, error: SourceFailed) -> None:
        """Not use a source any more, and keep nothing of a liar."""
        with self.lock:
            if source in self.refused and not isinstance(error, SourceLied):
                return
            self.refused[source] = str(error)
            if isinstance(error, SourceLied):
                for piece in [p for p, s in self.origin.items() if s == source]:
                    self.draft.have &= ~(1 << piece)
                    del self.origin[piece]
            for stream in [stream for stream, s in self.streams.items() if s == source]:
                stream.close()
                del self.streams[stream]
        log.warning("%s; it is not used any more for version %d", error, self.draft.manifest.version)

    def end(self) -> None:
        """No thread does anything any more."""
        with self.lock:
            self.ended = True
            for stream in self.streams:
                stream.close()


class Puller:
    """Pulls versions into the arena of a node, one at a time."""

    def __init__(
        self, tracker: Tracker, transport: Transport, shelf: Shelf, arena: Path, node: str, url: str, patience: float,
        hopeless: float = HOPELESS,
    ) -> None:  # fmt: skip
        """
        Args:
            url: this node's own weight server.
            patience: seconds without a new piece after which a try ends.
            hopeless: as HOPELESS.
        """
        self._tracker, self._transport, self._shelf = tracker, transport, shelf
        self._arena, self._node, self._url = arena, node, url
        self._patience, self._hopeless = patience, hopeless

    async def pull(self, version: int, checksum: str | None, publish: Callable[[Progress | None], None]) -> Manifest | None:
        """Have this version in the arena, whole; its manifest, or None if it is not wanted (any more).

        Raises:
            PullFailed: nobody is left who could give it.
            DeadlineExceeded: no piece came for too long.
            ArenaHeld: an engine reads the memory that it would come into.
            MasterAway: the master has to be asked where the version is.
        """
        manifest = await self._tracker.manifest(version)
        if manifest is None or checksum not in (None, manifest.checksum):
            await asyncio.sleep(HEARTBEAT)  # it is being made
            return None
        take_back(self._arena)
        draft = await asyncio.to_thread(Draft.of, draft_path(self._arena), manifest)
        pull, threads = _Pull(draft), ThreadPoolExecutor(thread_name_prefix="pull")
        async with coming(draft, self._transport, self._shelf, threads, pull.end):
            whole = await self._fetch_all(pull, threads, publish)
            if whole:
                draft.become(self._arena)
        return manifest if whole else None

    async def _fetch_all(self, pull: _Pull, threads: ThreadPoolExecutor, publish: Callable[[Progress | None], None]) -> bool:
        """Until every piece is here; False if the version is not wanted any more."""
        loop = asyncio.get_running_loop()
        running: dict[asyncio.Future[None], PullLease] = {}
        have, since = pull.draft.have, loop.time()
        busy = since  # until when anybody was asked for anything
        shown = -math.inf
        while pull.draft.missing:
            plan = await self._ask(pull, tuple(running.values()))
            if not plan.wanted:
                await asyncio.sleep(HEARTBEAT)  # what is wanted instead is about to be heard
                return False
            for lease in plan.leases:
                running[loop.run_in_executor(threads, self._fetch, pull, lease)] = lease
            if running:
                done, _ = await asyncio.wait(running, timeout=plan.pause, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    running.pop(future)
                    future.result()
                busy = loop.time()
            else:
                self._despair(pull, (loop.time() - busy) * HEARTBEAT / plan.pause)
                await asyncio.sleep(plan.pause)
            if loop.time() - shown >= plan.pause:  # it is a report of its own
                publish(Progress(done=pull.draft.have.bit_count(), total=len(pull.draft.pieces)))
                shown = loop.time()
            if pull.draft.have != have:
                have, since = pull.draft.have, loop.time()
            if loop.time() - since > self._patience:
                raise DeadlineExceeded(
                    f"version {pull.draft.manifest.version} did not come: {pull.draft.missing.bit_count()} pieces are missing, and none "
                    f"came for {self._patience:.0f} s (switch.deadlineSeconds)"
                )
        return True

    async def _ask(self, pull: _Pull, running: tuple[PullLease, ...]) -> PullPlan:
        with pull.lock:
            report = PullReport(
                node=self._node,
                url=self._url,
                checksum=pull.draft.manifest.checksum,
                cut=pull.draft.cut,
                have=text_of(pull.draft.have),
                fetching=running,
                refused=tuple(pull.refused),
            )
        try:
            return await self._tracker.pull(pull.draft.manifest.version, report)
        except MasterAway:
            if not running:
                raise
            return PullPlan(wanted=True)  # what is under way goes on

    def _despair(self, pull: _Pull, idle: float) -> None:
        """Give up if sources have failed and no other has turned up."""
        if pull.refused and idle > self._hopeless:
            version, missing, reasons = pull.draft.manifest.version, pull.draft.missing.bit_count(), "; ".join(pull.refused.values())
            raise PullFailed(f"version {version} did not come: {missing} pieces are missing and nobody is left who has them ({reasons})")

    def _fetch(self, pull: _Pull, lease: PullLease) -> None:
        """Fetch the pieces of a lease, one after the other; in a thread."""
        source, manifest = lease.source, pull.draft.manifest
        stream = pull.stream(source, self._transport)
        if stream is None:
            return
        try:
            for run in runs(mask_of(lease.pieces)):
                arriving = stream.read(pull.draft.pieces[run[0]].offset, [pull.draft.room(piece) for piece in run])
                for piece, _ in zip(run, arriving, strict=True):
                    if not pull.draft.checks(piece):
                        raise wrong_bytes(self._transport.connect(source, manifest.version, manifest.checksum), source, piece)
                    if not pull.accept(piece, source):
                        return
            pull.put_back(stream)
        except SourceFailed as error:
            if not pull.ended:
                pull.refuse(source, error)


@asynccontextmanager
async def coming(
    draft: Draft, transport: Transport, shelf: Shelf, threads: ThreadPoolExecutor, end: Callable[[], None]
) -> AsyncIterator[None]:
    """While the pieces of a draft come, in `threads`, which `end` has end; others are given what is there. Afterwards it is closed."""
    try:
        transport.begin(draft.memory())
        shelf.offer(draft)
        yield
    finally:
        end()
        shelf.offer(None)
        await asyncio.to_thread(threads.shutdown)  # nobody writes into the draft any more
        transport.end()
        draft.close()


def wrong_bytes(stream: Stream, source: str, piece: int) -> SourceFailed:
    """What wrong bytes mean: the source has begun to write another version, or it lies. `stream` is a new one."""
    held = stream.holds()
    stream.close()
    if held:
        return SourceLied(f"{source} sent a piece ({piece}) with a wrong checksum")
    return SourceFailed(f"{source} no longer has the version")
