"""One version of the weights to 1, 2, 4, 8 rollout nodes at once, over links that are slower than this machine's processor.

    python benchmarks/weight_fanout.py [--replicas 1,2,4,8] [--model SmolLM2-135M] [--mbit 200] [--json]

As root: every node is a process in a network namespace of its own, and they meet on a bridge. Each one's link is shaped in both directions
by the kernel's token bucket (`tc ... tbf`). Everything that moves weights is the product's own: weight server, puller, HTTP transport, and
the planning code (`master.exchange`), which nodes ask over HTTP as they ask a master. The version has the tensors of `--model` (of
`_models.py`, or a config.json) in bf16, with random numbers. All start at the same moment, with empty arenas.

Reported: seconds until every node has the version, verified; against one node's, and against the time that the bytes take through one link;
how often the source sent the version, and the most that any other node sent, from the counters of their links; milliseconds of processor
that the master's process spends on a report, and milliseconds until half of the reports are answered. Both ends of every link are on this
machine, so with many nodes its processor becomes the limit: lower `--mbit` then.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from _bars import add_bar_column, bars
from _engine import processor
from _models import MODELS, shapes
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from weight_transfer import Local, make_version

from rljob.checkpoint_engine.clients import HttpMaster
from rljob.checkpoint_engine.pull import Puller
from rljob.checkpoint_engine.transport import HttpTransport
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.wire.pieces import PullPlan, PullReport
from rljob.wire.weights import Manifest

# --- a node, a process of its own ------------------------------------------------------------------------------------------------------


class Asked:
    """The master, who is asked over HTTP, and how long its answers take."""

    def __init__(self, manifest: Manifest, master: HttpMaster) -> None:
        self._manifest, self._master = manifest, master
        self.seconds: list[float] = []

    async def manifest(self, version: int) -> Manifest | None:
        return self._manifest

    async def pull(self, version: int, report: PullReport) -> PullPlan:
        began = time.monotonic()
        plan = await self._master.pull(version, report)
        self.seconds.append(time.monotonic() - began)
        return plan


def be_node(name: str, host: str, arena: Path, manifest: Path | None, master: str) -> None:
    """Give the arena, and with a manifest pull it first, when a line comes; until standard input ends."""
    shelf = Shelf(arena)
    url = f"http://{host}:{WeightServer(shelf, host).port}"
    print(url, flush=True)
    if manifest is not None and sys.stdin.readline():
        print(asyncio.run(_pull(name, url, shelf, arena, Manifest.model_validate_json(manifest.read_text()), master)), flush=True)
    sys.stdin.read()


async def _pull(name: str, url: str, shelf: Shelf, arena: Path, manifest: Manifest, master: str) -> float:
    """The median of the seconds that an answer of the master took."""
    async with httpx.AsyncClient(base_url=master) as http:
        asked = Asked(manifest, HttpMaster(http, name))
        puller = Puller(asked, HttpTransport(), shelf, arena, name, url, patience=300)
        if await puller.pull(manifest.version, manifest.checksum, lambda progress: None) is None:
            raise RuntimeError("the version was not wanted")
        return statistics.median(asked.seconds)


# --- the network -----------------------------------------------------------------------------------------------------------------------


class Network:
    """A bridge, and namespaces with shaped links to it."""

    def __init__(self, mbit: int) -> None:
        self._name, self._mbit = f"rl{secrets.token_hex(3)}", mbit
        self._net = f"10.232.{secrets.randbelow(250) + 1}"
        self.master = f"{self._net}.254"
        self._nodes: list[str] = []
        _run("ip", "link", "add", self._name, "type", "bridge")
        _run("ip", "addr", "add", f"{self.master}/24", "dev", self._name)
        _run("ip", "link", "set", self._name, "up")

    def add(self) -> tuple[str, list[str]]:
        """Address of one more node, and what its command begins with."""
        number = len(self._nodes)
        space, address = f"{self._name}n{number}", f"{self._net}.{number + 1}"
        self._nodes.append(space)
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", self.link(number), "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", self.link(number), "master", self._name, "up")
        _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", space, "link", "set", device, "up")
        shape = ("root", "tbf", "rate", f"{self._mbit}mbit", "burst", "256kb", "latency", "50ms")
        _run("tc", "qdisc", "add", "dev", self.link(number), *shape)
        _run("tc", "-n", space, "qdisc", "add", "dev", "eth0", *shape)
        return address, ["ip", "netns", "exec", space]

    def link(self, number: int) -> str:
        """This machine's end of a node's link."""
        return f"{self._name}l{number}"

    def sent(self, number: int) -> int:
        """Bytes that a node has sent."""
        return int(Path("/sys/class/net", self.link(number), "statistics", "rx_bytes").read_text())

    def close(self) -> None:
        for space in self._nodes:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._name], check=False, capture_output=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def network(mbit: int) -> Iterator[Network]:
    """Gone afterwards, whatever happens."""
    made = Network(mbit)
    try:
        yield made
    finally:
        made.close()


# --- the measurement -------------------------------------------------------------------------------------------------------------------


class Master:
    """A master that knows of nothing but one version, behind the address that nodes ask."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._local: Local | None = None
        self.asked = 0

    async def begin(self, source: str) -> None:
        """Know who has the version."""
        self._local = Local(self._manifest, source, streams=4)
        await self._local.begin()

    def application(self) -> Starlette:
        return Starlette(routes=[Route("/v1/weights/{version:int}/pull", self.pull, methods=["POST"])])

    async def pull(self, request: Request) -> Response:
        """As `rljob.master.service`."""
        if self._local is None:
            raise RuntimeError("unreachable: nodes start when the source is known")
        self.asked += 1
        report = PullReport.model_validate_json(await request.body())
        plan = await self._local.pull(request.path_params["version"], report)
        return Response(plan.model_dump_json(), media_type="application/json")


async def fan_out(folder: Path, manifest: Manifest, replicas: int, mbit: int) -> dict[str, float]:
    """Seconds until all have it, and what was sent, in multiples of the version."""
    described = folder / "manifest.json"
    described.write_text(manifest.model_dump_json())
    with ExitStack() as stack:
        net = stack.enter_context(network(mbit))

        def start(name: str, arena: Path, what: str) -> subprocess.Popen[str]:
            address, prefix = net.add()
            command = [*prefix, sys.executable, __file__, "--node", name, address, str(arena), what, f"http://{net.master}:{port}"]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            return process

        master = Master(manifest)
        listener = socket.create_server((net.master, 0))
        port = int(listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(master.application(), log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        source = start("worker-0", folder / "source" / "w", "")
        await master.begin(await _line(source))
        nodes = [start(f"rollout-{i}", _fresh(folder / f"node-{i}") / "w", str(described)) for i in range(replicas)]
        for node in nodes:
            await _line(node)
        before = [net.sent(number) for number in range(replicas + 1)]
        began, worked = time.monotonic(), time.process_time()
        for node in nodes:
            if node.stdin is not None:
                node.stdin.write("go\n")
                node.stdin.flush()
        answers = await asyncio.gather(*(_line(node) for node in nodes))
        seconds, worked = time.monotonic() - began, time.process_time() - worked
        size = sum(shard.bytes for tensor in manifest.tensors for shard in tensor.shards)
        sent = [(net.sent(number) - before[number]) / size for number in range(replicas + 1)]
        server.should_exit = True
        await serving
        return {
            "seconds": seconds, "ideal": size * 8 / (mbit * 1e6), "source_sent": sent[0], "most_sent": max(sent[1:]),
            "master_ms": 1000 * worked / master.asked, "answer_ms": 1000 * statistics.median(map(float, answers)),
        }  # fmt: skip


async def _line(process: subprocess.Popen[str]) -> str:
    line = await asyncio.to_thread(process.stdout.readline) if process.stdout is not None else ""
    if not line:
        raise RuntimeError("a node ended; its message stands above")
    return line.strip()


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def measure(counts: Sequence[int], model: str, mbit: int) -> dict[int, dict[str, float]]:
    """By number of replicas."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        folder = Path(place)
        (folder / "source").mkdir()
        manifest = make_version(folder / "source" / "w", shapes(model))
        return {count: asyncio.run(fan_out(folder, manifest, count, mbit)) for count in counts}


def show(found: dict[int, dict[str, float]], model: str, mbit: int) -> None:
    """A table, with the times as bars."""
    first = next(iter(found.values()))
    table = Table(title=f"{model}, {first['ideal'] * mbit / 8:.0f} MB to all of them, links of {mbit} Mbit/s ({processor()})")
    for column in ("replicas", "seconds", "× the first", "× one link", "source sent", "most by another", "master ms", "answer ms"):
        table.add_column(column, justify="right")
    add_bar_column(table, "seconds")
    for (count, row), bar in zip(found.items(), bars([row["seconds"] for row in found.values()]), strict=True):
        figures = (row["seconds"], row["seconds"] / first["seconds"], row["seconds"] / row["ideal"], row["source_sent"], row["most_sent"])
        table.add_row(str(count), *(f"{figure:.2f}" for figure in (*figures, row["master_ms"], row["answer_ms"])), bar)
    Console(width=130).print(table)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="1,2,4,8")
    parser.add_argument("--model", default="SmolLM2-135M", help=f"a config.json, or one of {', '.join(MODELS)}")
    parser.add_argument("--mbit", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--node", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.node:
        name, host, arena, manifest, master = chosen.node
        be_node(name, host, Path(arena), Path(manifest) if manifest else None, master)
        return
    if os.geteuid() != 0 or shutil.which("tc") is None:
        sys.exit("shaped links need root and the commands ip and tc (apt-get install iproute2)")
    found = measure([int(count) for count in chosen.replicas.split(",")], chosen.model, chosen.mbit)
    show(found, chosen.model, chosen.mbit)
    if chosen.json:
        rows: dict[str, Any] = {str(count): {name: round(value, 3) for name, value in row.items()} for count, row in found.items()}
        print(json.dumps({"model": chosen.model, "mbit": chosen.mbit, "replicas": rows}))


if __name__ == "__main__":
    main()
