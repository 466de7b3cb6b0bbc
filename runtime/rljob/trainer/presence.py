"""Ranks of several nodes begin together and end together.

A collective whose partner has died waits for ever, and a rank that is started again cannot join those that are left. On one node the shim
sees to that: when a rank ends, it ends the others. Between nodes every rank holds a connection to rank 0, from before it joins the others
until its end. Whoever loses it ends, rank 0 with it, and so do all; their shims and agents start them again, and they wait here until all
are there. Nothing but a number and a word travels.
"""

import errno
import logging
import os
import selectors
import socket
import threading
import time
from typing import NoReturn

from rljob.api import InfrastructureError

log = logging.getLogger(__name__)

BEGIN = b"begin\n"
RETRY = 0.5
"""Seconds between two tries to reach rank 0."""
REMIND = 30.0
"""Seconds after which a rank says again what it waits for."""
_GREETING = 16
"""Bytes of a greeting at most."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A machine that has gone without a word is noticed within 25 s."""


def attend(rank: int, size: int, host: str, port: int) -> None:
    """Wait until all ranks are there; from then on this process ends (status 1) when one of them does.

    Args:
        host: where rank 0 is; for rank 0 itself, what it listens on.

    Raises:
        InfrastructureError: rank 0 cannot listen there. Who has the port may be about to end, as a pod before this one on its machine.
    """
    if rank == 0:
        _gather(size, host, port)
    else:
        _join(rank, host, port)


def _gather(size: int, host: str, port: int) -> None:
    """Rank 0: until every other rank has a connection, then watch them."""
    try:
        listener = socket.create_server((host, port), backlog=size)
    except OSError as error:
        taken = (
            ": end the program that has the port; with hostNetwork in spec.templates.worker it may be one of another pod, so leave that out"
            if error.errno == errno.EADDRINUSE
            else ""
        )
        raise InfrastructureError(f"rank 0 of the trainer cannot listen on {host}:{port} ({error.strerror}){taken}") from error
    present: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        said = time.monotonic()
        while len(present) < size - 1:
            for key, _ in selector.select(timeout=REMIND):
                if key.fileobj is listener:
                    _admit(listener, present, selector, size)
                else:
                    _drop(key.fileobj, present, selector)  # type: ignore[arg-type]  # it has said all: this is its end
            if time.monotonic() - said > REMIND:
                said = time.monotonic()
                log.warning("waiting for ranks %s of the trainer", ", ".join(str(r) for r in range(1, size) if r not in present))
    for connection in present.values():
        connection.sendall(BEGIN)
    threading.Thread(target=_watch, args=(listener, present), name="presence", daemon=True).start()


def _admit(listener: socket.socket, present: dict[int, socket.socket], selector: selectors.BaseSelector, size: int) -> None:
    connection, rank = _greeted(listener)
    if rank is None or not 0 < rank < size:
        connection.close()
        return
    if rank in present:  # started again, and the end of the earlier one has not been seen yet
        _drop(present[rank], present, selector)
    present[rank] = connection
    selector.register(connection, selectors.EVENT_READ)


def _greeted(listener: socket.socket) -> tuple[socket.socket, int | None]:
    """A new connection, and the rank that it says it is."""
    connection, _ = listener.accept()
    _keep_alive(connection)
    connection.settimeout(2.0)
    try:
        line = connection.recv(_GREETING)
    except OSError:
        line = b""
    connection.settimeout(None)
    return connection, int(line) if line.endswith(b"\n") and line[:-1].isdigit() else None


def _drop(connection: socket.socket, present: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    selector.unregister(connection)
    connection.close()
    for rank in [rank for rank, theirs in present.items() if theirs is connection]:
        del present[rank]


def _watch(listener: socket.socket, present: dict[int, socket.socket]) -> None:
    """Rank 0, all the time: end when a rank has gone, or when one that has been started again wants to begin."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        for connection in present.values():
            selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not listener:
                    _end(f"rank {next(rank for rank, theirs in present.items() if theirs is key.fileobj)} of the trainer has ended")
                connection, rank = _greeted(listener)
                connection.close()
                if rank is not None:
                    _end(f"rank {rank} of the trainer has been started again")


def _join(rank: int, host: str, port: int) -> None:
    """Another rank: until rank 0 says that all are there, then watch it."""
    said = time.monotonic()
    while (connection := _reached(rank, host, port)) is None:
        if time.monotonic() - said > REMIND:
            said = time.monotonic()
            log.warning("waiting for rank 0 of the trainer at %s:%d", host, port)
        time.sleep(RETRY)
    threading.Thread(target=_watch_first, args=(connection,), name="presence", daemon=True).start()


def _reached(rank: int, host: str, port: int) -> socket.socket | None:
    """The connection, once all ranks are there; None if rank 0 is not there, or has gone meanwhile."""
    try:
        connection = socket.create_connection((host, port), timeout=5.0)
    except OSError:
        return None
    try:
        _keep_alive(connection)
        connection.settimeout(None)
        connection.sendall(f"{rank}\n".encode())
        if connection.recv(len(BEGIN), socket.MSG_WAITALL) == BEGIN:
            return connection
    except OSError as error:
        log.info("rank 0 of the trainer went away: %s", error)
    connection.close()
    return None


def _watch_first(connection: socket.socket) -> None:
    try:
        connection.recv(1)
    except OSError as error:
        log.info("the connection to rank 0 broke: %s", error)
    _end("rank 0 of the trainer, or another, has ended")


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _end(why: str) -> NoReturn:
    """At once: the main thread may be in a collective that never returns."""
    log.error("%s; this one ends too, to begin again with all", why)
    logging.shutdown()
    os._exit(1)
