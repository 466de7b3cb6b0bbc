"""How bytes of a version come from another node: the interface, and its implementation over HTTP.

A source has the version's segment in the same layout as the one who pulls, so a read is an offset and a length. Nothing that is read here
is trusted: the caller checks it (`rljob.checkpoint_engine.pull`).
"""

import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

from rljob.api import InfrastructureError

STALL = 5.0
"""Seconds without a byte after which a source counts as stalled."""
SLOWEST = 1 << 20
"""Bytes per second below which a source counts as stalled, however steadily it drips."""
LONGEST_HEAD = 1 << 16
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})\b.*?\r\ncontent-length: *(\d{1,15})\b", re.IGNORECASE | re.DOTALL)


class SourceFailed(InfrastructureError):
    """A source does not answer, stalls, or does not have the version (any more): another one is asked."""


class SourceLied(SourceFailed):
    """A source sent bytes that are not the version's although it says that it has it."""


class Stream(Protocol):
    """A connection to one source for one version. Its methods block; `close` may be called from another thread and ends a read."""

    def read(self, offset: int, rooms: Sequence[memoryview]) -> Iterator[None]:
        """Fill the rooms, one after the other, with what the source has from `offset` on; yields whenever one is full.

        Raises:
            SourceFailed: it did not come.
        """

    def holds(self) -> bool:
        """Whether the source still says that it has the version."""

    def close(self) -> None: ...


class Transport(Protocol):
    """A way to read from other nodes."""

    def begin(self, memory: memoryview) -> None:
        """All reads until `end` go into this memory."""

    def end(self) -> None:
        """Let go of it; repeated: nothing."""

    def connect(self, source: str, version: int, checksum: str) -> Stream:
        """A stream from the node whose weight server has the address `source`; connects when it is first used."""


class HttpTransport:
    """Range reads of HTTP, each into its place without another copy."""

    def __init__(self, stall: float = STALL) -> None:
        """`stall` as STALL."""
        self._stall = stall

    def begin(self, memory: memoryview) -> None:
        """Nothing to prepare."""

    def end(self) -> None:
        """Nothing to let go of."""

    def connect(self, source: str, version: int, checksum: str) -> "HttpStream":
        return HttpStream(source, version, checksum, self._stall)


class HttpStream:
    """One connection, kept from read to read. Without http.client, whose buffer hides whether a source works or drips."""

    def __init__(self, source: str, version: int, checksum: str, stall: float) -> None:
        self._source, self._stall = source, stall
        self._label, self._host = f"{version}/{checksum}", source.partition("//")[2]
        self._socket: socket.socket | None = None
        self._closed = False

    def read(self, offset: int, rooms: Sequence[memoryview]) -> Iterator[None]:
        size = sum(map(len, rooms))
        status, length, begun = self._ask("GET", "weights", f"Range: bytes={offset}-{offset + size - 1}\r\n")
        if status != HTTPStatus.PARTIAL_CONTENT or length != size:
            self.close()
            raise SourceFailed(f"{self._source} does not have {size} bytes at {offset}: status {status}")
        for room in rooms:
            self._take(begun[: len(room)], room)
            begun = begun[len(room) :]
            yield

    def memory(self) -> bytes:
        """Where the source has the version in its memory, for Mooncake (`/v1/memory` of the weight server).

        Raises:
            SourceFailed: it does not say.
        """
        status, length, begun = self._ask("GET", "memory")
        if status != HTTPStatus.OK or length > LONGEST_HEAD:
            self.close()
            raise SourceFailed(f"{self._source} does not serve the version with Mooncake: status {status}")
        found = bytearray(length)
        self._take(begun, memoryview(found))
        return bytes(found)

    def _take(self, begun: bytes, room: memoryview) -> None:
        room[: len(begun)] = begun
        try:
            self._fill(room[len(begun) :])
        except OSError as error:
            self.close()
            raise SourceFailed(f"{self._source} went away or stalled: {type(error).__name__} {error}") from error

    def _fill(self, room: memoryview) -> None:
        at, until = 0, time.monotonic() + self._stall + len(room) / SLOWEST
        while at < len(room):
            count = self._connected().recv_into(room[at:])
            if not count:
                raise ConnectionError(f"the answer ended after {at} of {len(room)} bytes")
            at += count
            if time.monotonic() > until:
                raise TimeoutError(f"only {at} of {len(room)} bytes came")

    def holds(self) -> bool:
        try:
            return self._ask("HEAD", "weights")[0] == HTTPStatus.OK
        except SourceFailed:
            return False

    def _ask(self, method: str, topic: str, more: str = "") -> tuple[int, int, bytes]:
        """Status, length of the body, and what has come of it with the head."""
        try:
            request = f"{method} /v1/{topic}/{self._label} HTTP/1.1\r\nHost: {self._host}\r\n{more}\r\n"
            self._connected().sendall(request.encode())
            head = b""
            while b"\r\n\r\n" not in head:
                part = self._connected().recv(4096)
                if not part or len(head) > LONGEST_HEAD:
                    raise ConnectionError("no HTTP answer")
                head += part
        except OSError as error:
            self.close()
            raise SourceFailed(f"{self._source} does not answer: {type(error).__name__} {error}") from error
        text, _, body = head.partition(b"\r\n\r\n")
        found = _HEAD.match(text)
        if not found:
            self.close()
            raise SourceFailed(f"{self._source} does not speak HTTP")
        return int(found[1]), int(found[2]), body

    def _connected(self) -> socket.socket:
        if self._closed:
            raise ConnectionAbortedError("given up")
        if self._socket is None:
            try:
                address = urlsplit(self._source)
                self._socket = socket.create_connection((str(address.hostname), address.port or 80), self._stall)
            except ValueError as error:
                raise SourceFailed(f"{self._source} is no address of a weight server: {error}") from error
        return self._socket

    def close(self) -> None:
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):  # it may be closed already
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
            self._socket.close()
