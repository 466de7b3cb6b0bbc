"""Gives this node's weights to other nodes: range reads over HTTP, from shared memory to the socket without a copy in this process.

    GET /v1/weights/{version}/{checksum}    Range: bytes=FIRST-LAST    206, or 404 if that is not here (any more), complete and checked
    HEAD the same                                                      200 or 404: whether this node has (some of) the version
    GET /v1/memory/{version}/{checksum}                                where it lies in memory; 404 also where there is no Mooncake

What it does not guard: an arena can be written anew while it is being sent. Whoever pulls checks what came and asks again whether this
node still has the version: it takes its name off an arena before it writes there. There is no authentication, as between all processes of
a job: the job's NetworkPolicies let its own nodes in and nobody else.
"""

import logging
import re
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.draft import Draft, part_of, read_metadata
from rljob.checkpoint_engine.mooncake import Memory

log = logging.getLogger(__name__)

IDLE = 30.0
"""Seconds after which a connection that takes nothing or asks nothing is closed."""
_PATH = re.compile(r"/v1/(weights|memory)/(\d+)/(\w+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Shelf:
    """What this node can give: its arena if that is complete, and the checked pieces of its draft."""

    def __init__(self, arena: Path) -> None:
        self._arena = arena
        self._draft: Draft | None = None

    def offer(self, draft: Draft | None) -> None:
        """From now on (no longer) give what the draft has."""
        self._draft = draft

    def open(self, version: int, checksum: str, first: int = 0, last: int = -1) -> BinaryIO | None:
        """A file whose bytes `first` to `last` are the version's; None if they are not here."""
        draft, whole = self._draft, {"version": str(version), "checksum": checksum}
        if (file := _opened(self._arena, whole)) is not None:
            return file
        if draft is None or (draft.manifest.version, draft.manifest.checksum) != (version, checksum):
            return None
        inside = [i for i, p in enumerate(draft.pieces) if p.offset <= last and p.offset + p.bytes > first]
        if not all(draft.have >> i & 1 for i in inside):
            return None
        # The draft may become the arena at any moment; then the file before lies in its place.
        return _opened(draft.path, part_of(draft.manifest), whole) or _opened(self._arena, whole)


def _opened(path: Path, *accepted: Mapping[str, str]) -> BinaryIO | None:
    """The file, if it says that it is one of these."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    if read_metadata(file.fileno()) in accepted:
        return file
    file.close()
    return None


class WeightServer:
    """The server, in threads of its own."""

    def __init__(self, shelf: Shelf, host: str, memory: Memory | None = None) -> None:
        """Listens on a free port of `host`; `memory` for nodes that read with Mooncake."""

        class Handler(_Handler):
            """Bound to this shelf."""

        Handler.shelf, Handler.memory = shelf, memory
        self._server = _Server((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="weight-server", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Accept nobody any more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    """Connections that wait to be accepted: several nodes open several streams at once."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE
    shelf: Shelf
    memory: Memory | None

    def do_HEAD(self) -> None:
        file = self._file(0, -1)
        if file is not None:
            file.close()
        self._answer(HTTPStatus.OK if file is not None else HTTPStatus.NOT_FOUND, 0)

    def do_GET(self) -> None:
        if self.path.startswith("/v1/memory/"):
            self._place()
            return
        span = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not span or int(span[1]) > int(span[2]):
            self._answer(HTTPStatus.BAD_REQUEST, 0)
            return
        first, last = int(span[1]), int(span[2])
        file = self._file(first, last)
        if file is None:
            self._answer(HTTPStatus.NOT_FOUND, 0)
            return
        with file:
            self._answer(HTTPStatus.PARTIAL_CONTENT, last - first + 1)
            try:
                sent = self.connection.sendfile(file, first, last - first + 1)
            except OSError:
                sent = 0
        if sent != last - first + 1:
            self.close_connection = True

    def _place(self) -> None:
        file = self._file(0, -1) if self.memory is not None else None
        if file is None or self.memory is None:
            self._answer(HTTPStatus.NOT_FOUND, 0)
            return
        with file:
            try:
                place = self.memory.place(file)
            except InfrastructureError as error:
                log.warning("%s", error)
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, 0)
                return
        self._answer(HTTPStatus.OK, len(place))
        self.wfile.write(place)

    def _file(self, first: int, last: int) -> BinaryIO | None:
        wanted = _PATH.fullmatch(self.path)
        return self.shelf.open(int(wanted[2]), wanted[3], first, last) if wanted else None

    def _answer(self, status: HTTPStatus, length: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: whoever pulls says what did not work."""
