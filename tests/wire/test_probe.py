"""Probing unix sockets."""

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rljob.wire.probe import main, status_of


@contextmanager
def server(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A unix socket that answers one request after the other with the same bytes."""
    asked: list[bytes] = []
    with tempfile.TemporaryDirectory(prefix="rlj-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(folder) / "s.sock")
        listener.bind(address)
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # closed
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield address, asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_good_answer_is_success() -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n{}") as (address, asked):
        assert main(["/v1/status", address, address]) == 0
    assert asked[0].startswith(b"GET /v1/status HTTP/1.0\r\nHost: ")


def test_a_bad_status_is_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as (address, _):
        assert main(["/v1/status", address]) == 1
    assert "answered with 503" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n"])
def test_something_that_does_not_speak_http_is_failure(answer: bytes) -> None:
    with server(answer) as (address, _), pytest.raises(ValueError, match="is no answer"):
        status_of("/", address)


def test_nobody_there_is_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/", "/tmp/there-is-no-such.sock"]) == 1
    assert "/tmp/there-is-no-such.sock" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, rljob.wire.probe, rljob.wire.wait; print({'pydantic', 'http', 'email', 'asyncio', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
