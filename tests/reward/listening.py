"""A server on a port of its own whose answers a test decides on, and from when on it listens."""

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = Callable[[str, Mapping[str, str], bytes], tuple[int, bytes]]
"""Path, headers (by lower-case names) and body of a POST to status and body of the reply."""


class Listener:
    """Has an address at once; whoever connects before `open` is refused, as where nobody is."""

    def __init__(self, answer: Answer) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, body = answer(self.path, headers, self.rfile.read(int(headers["content-length"])))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.server_bind()
        self._thread: Thread | None = None

    @property
    def address(self) -> str:
        """Such as `http://127.0.0.1:8000`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def open(self) -> None:
        """From now on it answers."""
        self._server.server_activate()
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        """Nobody is there any more."""
        if self._thread:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
