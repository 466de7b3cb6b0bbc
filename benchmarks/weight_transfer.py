"""Weights from one node to another, against a plain TCP socket that moves the same bytes with the same number of streams.

    python benchmarks/weight_transfer.py [--rounds 5] [--mib 512] [--streams 4] [--json]

As root, the source lives in a network namespace of its own, behind a veth pair; else both ends are on the loopback device, which the
output says. The source is another process: the product's weight server over a warm arena in shared memory. Each round moves the version by
every way, in turn:

*socket*: blocking sockets, one thread for each stream, from memory that is mapped into memory that is mapped, nothing checked. What
the link and the kernel give.
*http*, *mooncake*: the product's transports alone, each stream reading its part piece by piece into the place where it belongs.
*http, checked*, *mooncake, checked*: the whole pull as a rollout node does it: leases from the planning code, reads, checksum of every
tensor, and the arena takes its new name.

`share` is a socket's time divided by the way's, both the median of the rounds. Mooncake is left out where it is not installed.
"""

import argparse
import asyncio
import json
import mmap
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from _bars import add_bar_column, bars
from _engine import processor
from rich.console import Console
from rich.table import Table

from rljob.api import ConfigurationError
from rljob.checkpoint_engine.arena import TensorFile, TensorSpec, manifest_checksum, tensor_entries
from rljob.checkpoint_engine.draft import Draft
from rljob.checkpoint_engine.mooncake import Memory, MooncakeTransport, open_engine
from rljob.checkpoint_engine.pull import Puller
from rljob.checkpoint_engine.transport import HttpTransport, Transport
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.master.decisions.fanout import Limits
from rljob.master.exchange import Exchange
from rljob.master.nodes import Nodes
from rljob.wire.node import NodeReport
from rljob.wire.pieces import HeldWeights, PullPlan, PullReport
from rljob.wire.weights import Canary, Manifest

MiB = 1 << 20
HERE, THERE = "10.231.77.1", "10.231.77.2"


def make_version(arena: Path, shapes: Mapping[str, tuple[int, ...]]) -> Manifest:
    """Random weights, as a trainer would leave them."""
    specs = [TensorSpec(name, torch.bfloat16, shape) for name, shape in shapes.items()]
    with TensorFile.create(arena, specs, {}) as file:
        sums = {
            spec.name: file.write(spec.name, torch.randint(-30000, 30000, spec.shape, dtype=torch.int16).view(torch.bfloat16))
            for spec in specs
        }
        entries = tensor_entries(file, sums, "worker-0")
        checksum = manifest_checksum(entries)
        file.set_metadata({"version": "1", "checksum": checksum})
    return Manifest(version=1, dtype="BF16", tensors=entries, checksum=checksum, canary=Canary(tokens=(), logprobs=(), tolerance=0.0))


# --- the source, a process of its own --------------------------------------------------------------------------------------------------


def mooncake_engine(host: str) -> Any:
    """The engine, or None where there is none."""
    try:
        return open_engine(host, "tcp")
    except ConfigurationError:
        return None


def be_source(host: str, arena: Path) -> None:
    """Serve an arena by every way until standard input ends; the first line written says where."""
    engine = mooncake_engine(host)
    server = WeightServer(Shelf(arena), host, Memory(engine, host) if engine is not None else None)
    listener = socket.create_server((host, 0))
    with arena.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    threading.Thread(target=_serve_sockets, args=(listener, content), daemon=True).start()
    print(json.dumps({"url": f"http://{host}:{server.port}", "port": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()


def _serve_sockets(listener: socket.socket, content: memoryview) -> None:
    def serve(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(16):
                first = int.from_bytes(request[:8], "big")
                connection.sendall(content[first : first + int.from_bytes(request[8:], "big")])

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


@contextmanager
def network() -> Iterator[tuple[str, str, list[str]]]:
    """Addresses of this end and the source's, and what its command begins with."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        yield "127.0.0.1", "127.0.0.1", []
        return
    name = f"rl{secrets.token_hex(3)}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", name)
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        ip("addr", "add", f"{HERE}/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", f"{THERE}/30", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        yield "127.0.0.1", "127.0.0.1", []
        return
    try:
        yield HERE, THERE, ["ip", "netns", "exec", name]
    finally:
        ip("netns", "del", name)


# --- the ways --------------------------------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], None], streams: int) -> float:
    """Seconds until every stream has done its part."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def by_socket(address: tuple[str, int], draft: Draft, streams: int) -> float:
    """Plain sockets; each stream one connection and one range."""
    first, room = draft.pieces[0].offset, draft.memory()
    size = len(room) - first
    bounds = [first + size * i // streams for i in range(streams + 1)]
    connections = [socket.create_connection(address) for _ in range(streams)]

    def part(number: int) -> None:
        begin, end = bounds[number], bounds[number + 1]
        connections[number].sendall(begin.to_bytes(8, "big") + (end - begin).to_bytes(8, "big"))
        at = begin
        while at < end:
            count = connections[number].recv_into(room[at:end])
            if not count:
                raise ConnectionError("the source went away")
            at += count

    seconds = in_threads(part, streams)
    for connection in connections:
        connection.close()
    return seconds


def by_transport(transport: Transport, url: str, draft: Draft, streams: int) -> float:
    """A transport alone: every stream reads its share of the pieces."""
    transport.begin(draft.memory())
    found = [transport.connect(url, 1, draft.manifest.checksum) for _ in range(streams)]
    count = len(draft.pieces)

    def part(number: int) -> None:
        share = range(count * number // streams, count * (number + 1) // streams)
        for _ in found[number].read(draft.pieces[share[0]].offset, [draft.room(piece) for piece in share]):
            pass

    seconds = in_threads(part, streams)
    for stream in found:
        stream.close()
    transport.end()
    return seconds


class Local:
    """The master's exchange without a master between."""

    def __init__(self, manifest: Manifest, url: str, streams: int) -> None:
        self._manifest = manifest
        self._nodes = Nodes(1, time.time)
        self._exchange = Exchange(self._nodes, time.time, Limits(streams=streams))
        self._held = HeldWeights(version=1, checksum=manifest.checksum, url=url)

    async def begin(self) -> None:
        """Want the version, and know who has it."""
        self._nodes.want("rollout", 1, self._manifest.checksum)
        report = NodeReport(
            node="worker-0", kind="worker", incarnation="i", seen_revision=0, step="rollout", step_started=0.0, weights=self._held
        )
        await self._nodes.sync(report, 0)

    async def manifest(self, version: int) -> Manifest | None:
        return self._manifest

    async def pull(self, version: int, report: PullReport) -> PullPlan:
        return self._exchange.plan(self._manifest, report)


def by_pull(transport: Transport, url: str, manifest: Manifest, arena: Path, streams: int) -> float:
    """The whole pull of a rollout node into a warm draft."""

    async def work() -> float:
        master = Local(manifest, url, streams)
        await master.begin()
        puller = Puller(master, transport, Shelf(arena), arena, "rollout-0", "http://nobody", patience=60)
        began = time.perf_counter()
        if await puller.pull(1, manifest.checksum, lambda progress: None) is None:
            raise RuntimeError("the version was not wanted")
        return time.perf_counter() - began

    return asyncio.run(work())


def measure(rounds: int, mib: int, streams: int) -> dict[str, Any]:
    """Seconds by way, of each round."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        (folder / "there").mkdir()
        (folder / "here").mkdir()
        manifest = make_version(folder / "there" / "w", {f"layer.{i}.weight": (4096, 1024) for i in range(mib // 8)})
        here, there, prefix = stack.enter_context(network())
        command = [*prefix, sys.executable, __file__, "--source", there, str(folder / "there" / "w")]
        source = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        stack.callback(source.terminate)
        if source.stdout is None or not (line := source.stdout.readline()):
            raise RuntimeError("the source did not start")
        where = json.loads(line)
        transports: dict[str, Transport] = {"http": HttpTransport()}
        if (engine := mooncake_engine(here)) is not None:
            transports["mooncake"] = MooncakeTransport(engine)
        draft = Draft.of(folder / "here" / "draft", manifest)
        arena, url, address = folder / "here" / "w", str(where["url"]), (there, int(where["port"]))
        seconds: dict[str, list[float]] = {}
        for number in range(rounds + 2):  # the first two rounds touch every page of both files for the first time
            found = {"socket": by_socket(address, draft, streams)}
            for name, transport in transports.items():
                found[name] = by_transport(transport, url, draft, streams)
            for name, transport in transports.items():
                found[f"{name}, checked"] = by_pull(transport, url, manifest, arena, streams)
            if number >= 2:
                for name, taken in found.items():
                    seconds.setdefault(name, []).append(taken)
        return {"link": "veth between two network namespaces" if prefix else "loopback", "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--source", nargs=2, metavar=("HOST", "ARENA"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.source:
        be_source(chosen.source[0], Path(chosen.source[1]))
        return
    found = measure(chosen.rounds, chosen.mib, chosen.streams)
    median = {name: statistics.median(taken) for name, taken in found["seconds"].items()}
    result = {
        "link": found["link"], "mib": chosen.mib, "streams": chosen.streams, "rounds": chosen.rounds, "processor": processor(),
        "ways": {
            name: {"seconds": median[name], "gb_per_s": chosen.mib * MiB / taken / 1e9, "share": median["socket"] / taken}
            for name, taken in median.items()
        },
    }  # fmt: skip
    if chosen.json:
        print(json.dumps(result, indent=1))
        return
    table = Table(title=f"{chosen.mib} MiB over {found['link']}, {chosen.streams} streams, median of {chosen.rounds} ({processor()})")
    for column in ("way", "seconds", "GB/s", "share of a socket"):
        table.add_column(column, justify="left" if column == "way" else "right")
    add_bar_column(table, "GB/s")
    rows = result["ways"]
    for (name, row), bar in zip(rows.items(), bars([row["gb_per_s"] for row in rows.values()]), strict=True):
        table.add_row(name, f"{row['seconds']:.3f}", f"{row['gb_per_s']:.2f}", f"{row['share']:.2f}", bar)
    Console(width=110).print(table)
    if "mooncake" not in median:
        print("mooncake is not installed here (mooncake-transfer-engine-non-cuda, libibverbs1): it was left out")


if __name__ == "__main__":
    main()
