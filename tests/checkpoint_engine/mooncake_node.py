"""A node with a real Mooncake engine, in a process of its own (its threads stay until the process ends, and ports are listened on).

    python -m tests.checkpoint_engine.mooncake_node FOLDER

A line of standard input says what to do, a line of standard output how it ended:

    make VERSION          the arena holds that version (`test_pull.made`); the address of the weight server
    pull VERSION URL...   pulls that version, which the nodes at these addresses have; `whole`, or what went wrong
"""

import asyncio
import sys
from pathlib import Path

from tests.checkpoint_engine.test_pull import Master, made, whole

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.mooncake import Memory, MooncakeTransport, open_engine
from rljob.checkpoint_engine.pull import Puller
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer


def pull(puller: Puller, master: Master, arena: Path, version: int, urls: list[str]) -> str:
    """What came of a pull."""
    manifest = made(arena.with_name("expected"), version)
    asyncio.run(master.want(manifest, *urls))
    try:
        asyncio.run(puller.pull(version, manifest.checksum, lambda progress: None))
    except InfrastructureError as error:
        return str(error)
    return "whole" if whole(arena, manifest) else ""


def main(folder: Path) -> None:
    """Until standard input ends."""
    host, arena, master = "127.0.0.1", folder / "w", Master()
    engine = open_engine(host, "tcp")
    shelf = Shelf(arena)
    server = WeightServer(shelf, host, Memory(engine, host))
    url = f"http://{host}:{server.port}"
    puller = Puller(master, MooncakeTransport(engine), shelf, arena, "rollout-0", url, patience=240, hopeless=0.0)
    for line in sys.stdin:
        command, version, *urls = line.split()
        if command == "make":
            made(arena, int(version))
            print(url, flush=True)
        else:
            print(pull(puller, master, arena, int(version), urls), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
