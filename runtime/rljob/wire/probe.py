"""`python -m rljob.wire.probe PATH SOCKET...`: GET PATH on unix sockets; exit status 0 if every answer is below 400.

For the exec probes of a kubelet, which can ask a port but not a unix socket. Runs every few seconds in every sidecar: needs nothing but
`socket`.
"""

import socket
import sys
from collections.abc import Sequence

TIMEOUT = 8.0
"""Seconds for one answer; less than the kubelet gives the whole probe, so that it hears why."""


def status_of(path: str, address: str, timeout: float = TIMEOUT) -> int:
    """HTTP status that the server at the unix socket `address` answers with.

    Raises:
        OSError: nobody listens, or there is no answer in time.
        ValueError: the answer is no HTTP.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(address)
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while b"\r\n" not in answer and (part := connection.recv(4096)):
            answer += part
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError(f"{answer[:40]!r} is no answer")
    return int(words[1])


def main(arguments: Sequence[str]) -> int:
    """Entry point; returns the exit status."""
    path, *sockets = arguments
    for address in sockets:
        try:
            status = status_of(path, address)
        except (OSError, ValueError) as error:
            print(f"{address}: {error}", file=sys.stderr)
            return 1
        if status >= 400:
            print(f"{address}: GET {path} is answered with {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
