"""HTTP connections between the processes of a job, and when an idle one ends; hundreds at a time are `rljob.wire.crowd`.

A client closes no idle connection by its clock. httpcore's pool (1.0) picks the idle ones that have expired and closes them one after
another; one of them may have been given to a request meanwhile, which then ends with a ReadError (anyio's ClosedResourceError). A process
that is short of processor time, and gets its answers in bursts, loses dozens of requests in this way. So the server decides: it keeps idle
connections for `IDLE_SECONDS`, and a client drops those that were closed when it next looks.
"""

import socket
import ssl
from pathlib import Path

import httpx

IDLE_SECONDS = 600
"""For how long our servers keep a connection on which nothing is asked (uvicorn: 5 s)."""
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Socket options. A machine that has gone without a word has closed its connections after 90 s: nobody else would ever end them."""

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody: a job's processes have no addresses with https, and one would be refused. To load the machine's certificates takes 20
times as long as the rest of making a client."""


def pool(most: int | None = None, uds: Path | None = None) -> httpx.AsyncHTTPTransport:
    """One pool of a few connections; `rljob.wire.crowd` is for hundreds. A proxy of the environment is not for it, nor is https.

    Args:
        most: connections at a time.
        uds: socket of the server, if it is on this machine.
    """
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=None, keepalive_expiry=None)
    if uds is not None:
        return httpx.AsyncHTTPTransport(verify=NO_CERTIFICATES, limits=limits, uds=str(uds))
    return httpx.AsyncHTTPTransport(verify=NO_CERTIFICATES, limits=limits, socket_options=KEEPALIVE)
