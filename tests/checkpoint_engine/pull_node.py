"""A node that gives its arena and pulls into it, in a process of its own: it can be killed and stopped as a whole.

    python -m tests.checkpoint_engine.pull_node FOLDER http|mooncake

A line of standard input says what to do, a line of standard output how it ended:

    serve                      the address of the weight server; the arena is FOLDER/w
    fault SIGNAL N             sends itself that signal when it is asked for the N-th time from now on for (the place of) weights
    pull MANIFEST URL...       pulls the version in that file, which the nodes at these addresses have; `done`, or what went wrong
"""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from tests.checkpoint_engine.tracker import Master

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.mooncake import Memory, MooncakeTransport, open_engine
from rljob.checkpoint_engine.pull import Puller
from rljob.checkpoint_engine.transport import HttpTransport, Transport
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.wire.weights import Manifest

HOST, STALL = "127.0.0.1", 3.0


class Faulty(Shelf):
    """Does something to this process when it is asked for the n-th time."""

    fault, left = signal.SIGKILL, 0

    def __init__(self, arena: Path) -> None:
        super().__init__(arena)
        self._lock = threading.Lock()

    def arm(self, fault: signal.Signals, count: int) -> None:
        """Says `ready` before anything can happen: a request from before a stop may still be on its way and count as the first one."""
        with self._lock:
            self.fault, self.left = fault, count
            print("ready", flush=True)

    def open(self, version: int, checksum: str, first: int = 0, last: int = -1) -> BinaryIO | None:
        with self._lock:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.fault)
        return super().open(version, checksum, first, last)


def pull(puller: Puller, master: Master, manifest: Manifest, urls: list[str]) -> str:
    """What came of a pull."""
    asyncio.run(master.want(manifest, *urls))
    try:
        asyncio.run(puller.pull(manifest.version, manifest.checksum, lambda progress: None))
    except InfrastructureError as error:
        return str(error)
    return "done"


def main(folder: Path, transport: str) -> None:
    """Until standard input ends."""
    arena, master = folder / "w", Master()
    shelf = Faulty(arena)
    memory: Memory | None = None
    way: Transport = HttpTransport(STALL)
    if transport == "mooncake":
        engine = open_engine(HOST, "tcp")
        memory, way = Memory(engine, HOST), MooncakeTransport(engine, STALL)
    url = f"http://{HOST}:{WeightServer(shelf, HOST, memory).port}"
    puller = Puller(master, way, shelf, arena, "rollout-0", url, patience=240, hopeless=0.0)
    for line in sys.stdin:
        match line.split():
            case ["serve"]:
                print(url, flush=True)
            case ["fault", name, count]:
                shelf.arm(signal.Signals[name], int(count))
            case ["pull", manifest, *urls]:
                print(pull(puller, master, Manifest.model_validate_json(Path(manifest).read_bytes()), urls), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
