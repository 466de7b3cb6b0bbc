"""Free ports. Taken from below the range that the kernel gives to outgoing connections, so that none of those takes one later."""

import random
import socket
from collections.abc import Collection, Iterable

from rljob.api import InfrastructureError
from rljob.local.places import HOST

_RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Could a server listen there now?"""
    with socket.socket() as probe:
        # As servers do: a closed connection's rest (TIME_WAIT) does not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def pick(wanted: Iterable[tuple[str, str]], random_: random.Random, taken: Collection[int] = ()) -> dict[tuple[str, str], int]:
    """A free port for each, and none that is `taken`: promised to somebody who may not listen yet.

    Raises:
        InfrastructureError: the machine has none left.
    """
    picked: dict[tuple[str, str], int] = {}
    candidates = iter(random_.sample(_RANGE, len(_RANGE)))
    for key in wanted:
        for port in candidates:
            if port not in taken and is_free(port):
                picked[key] = port
                break
        else:
            raise InfrastructureError(f"no free port between {_RANGE.start} and {_RANGE.stop - 1}; end programs that listen there")
    return picked
