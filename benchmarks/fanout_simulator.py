"""How long a version takes to reach many rollout nodes: the production planning code in a simulated network.

    python benchmarks/fanout_simulator.py [--replicas 1,2,4,8,32,100] [--gigabytes 2000] [--nic 25] [--deaths 0.01] [--slow 0.01] [--json]

Every decision is `rljob.master.decisions.fanout.grant`, asked as the master is asked: with what each node last reported. The defaults are
a model of a trillion parameters in bf16 and one 200 Gb/s card for each node. 1,000 nodes take some minutes to simulate.

What is assumed:
- One source has the version; every node wants it at time 0. 256 pieces of equal size (`rljob.wire.pieces`).
- A node's link sends and receives at full speed at once; the switches between never limit. Streams share a link evenly; what a slow other
  end leaves unused is not given to the others (so the figures are rather too slow).
- A node checks `--hash` GB/s and receives no faster; a lease costs a round trip to the master (`--latency`).
- A node reports when a lease ends and every half second, and gives what it had reported (HEARTBEAT).
- `--deaths`: so many nodes die, each at a time drawn evenly from the ideal duration; whoever pulls from one notices after 5 s (STALL), the
  master forgets it after 10 s (SILENCE). `--slow`: so many have a tenth of the link. The draws are seeded.

Reported: the ideal (the version once through one link); seconds until half, 99 % and all of the living nodes with a whole link have it, and
until the last of the slow ones has it; what the source sent in multiples of the version, and the most that any other node sent; how often
the master was asked in a second, and the mean time of one decision.
"""

import argparse
import heapq
import itertools
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from _bars import add_bar_column, bars
from rich.console import Console
from rich.table import Table

from rljob.checkpoint_engine.pull import HEARTBEAT
from rljob.checkpoint_engine.transport import STALL
from rljob.master.decisions.fanout import Lease, Limits, Peer, grant
from rljob.master.exchange import SILENCE
from rljob.wire.pieces import COUNT

SOURCE = "worker-0"
GB = 1e9


@dataclass(eq=False)
class Flow:
    """A lease on its way."""

    source: str
    target: str
    lease: Lease
    left: float
    """Bytes."""
    rate: float = 0.0
    since: float = 0.0
    version: int = 0
    """Raised whenever its end is computed anew."""
    waits: bool = False
    """The source is dead, and the target has not noticed."""


@dataclass
class Node:
    """One end of flows."""

    link: float
    up: list[Flow] = field(default_factory=list)
    down: list[Flow] = field(default_factory=list)
    sent: float = 0.0
    done: float | None = None
    alive: bool = True


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    replicas: int
    bytes: float
    nic: float
    hash: float
    latency: float
    deaths: float
    slow: float
    limits: Limits = field(default_factory=Limits)


class Simulation:
    """One fan-out."""

    def __init__(self, setting: Setting, seed: int = 1) -> None:
        self.setting, self.piece, self.now = setting, setting.bytes / COUNT, 0.0
        draw = random.Random(seed)
        names = [f"rollout-{i}" for i in range(setting.replicas)]
        slow = set(draw.sample(names, round(setting.slow * setting.replicas)))
        self.nodes = {name: Node(setting.nic * (0.1 if name in slow else 1.0)) for name in names} | {SOURCE: Node(setting.nic)}
        self.peers = {SOURCE: Peer((1 << COUNT) - 1)} | {name: Peer() for name in names}
        self.events: list[tuple[float, int, str, Any, int]] = []
        self.order = itertools.count()
        self.asked, self.deciding = 0, 0.0
        for name in names:
            self.at(0.0, "report", name)
        for name in draw.sample(names, round(setting.deaths * setting.replicas)):
            self.at(draw.uniform(0, setting.bytes / setting.nic), "death", name)

    def at(self, when: float, what: str, whom: Any, version: int = 0) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, whom, version))

    def run(self) -> None:
        """Until every living node has everything."""
        open_ = sum(node.done is None for name, node in self.nodes.items() if name != SOURCE)
        while open_:
            self.now, _, what, whom, version = heapq.heappop(self.events)
            match what:
                case "report":
                    open_ -= self.report(whom)
                case "end" if whom.version == version:
                    open_ -= self.end(whom)
                case "death":
                    open_ -= self.nodes[whom].done is None
                    self.die(whom)
                case "start":
                    self.start(whom)
                case "noticed" if whom.waits:
                    self.refuse(whom)
                case "forgotten":
                    self.peers.pop(whom, None)

    def report(self, name: str) -> int:
        """A heartbeat; 1 if the node has just become complete."""
        node = self.nodes[name]
        if not node.alive or node.done is not None:
            return 0
        self.at(self.now + HEARTBEAT, "report", name)
        return self.ask(name)

    def ask(self, name: str) -> int:
        node, peer, have = self.nodes[name], self.peers[name], self.peers[name].have
        for flow in node.down:
            self.settle(flow)
            have |= self.arrived(flow)
        self.peers[name] = Peer(have, peer.leases, peer.refuses)
        if have.bit_count() == COUNT:
            node.done = self.now
            return 1
        began = time.perf_counter()
        leases = grant(COUNT, self.peers, name, self.setting.limits)
        self.deciding += time.perf_counter() - began
        self.asked += 1
        self.peers[name] = Peer(have, (*peer.leases, *leases), peer.refuses)
        for lease in leases:
            self.at(self.now + self.setting.latency, "start", Flow(lease.source, name, lease, lease.pieces.bit_count() * self.piece))
        return 0

    def start(self, flow: Flow) -> None:
        if not self.nodes[flow.target].alive:
            return
        flow.since = self.now
        self.nodes[flow.target].down.append(flow)
        if self.nodes[flow.source].alive:
            self.nodes[flow.source].up.append(flow)
            self.share(flow.source, flow.target)
        else:
            self.lose(flow)

    def arrived(self, flow: Flow) -> int:
        """The pieces that have come, from the lowest on."""
        whole, mask, rest = 0, 0, flow.lease.pieces
        count = int((flow.lease.pieces.bit_count() * self.piece - flow.left) / self.piece + 1e-6)
        while rest and whole < count:
            lowest = rest & -rest
            mask, rest, whole = mask | lowest, rest ^ lowest, whole + 1
        return mask

    def settle(self, flow: Flow) -> None:
        moved = min(flow.left, flow.rate * (self.now - flow.since))
        flow.left, flow.since = flow.left - moved, self.now
        self.nodes[flow.source].sent += moved

    def share(self, *names: str) -> None:
        """Streams of these nodes have come or gone: everybody at them gets another share."""
        for flow in {id(f): f for name in names for f in (*self.nodes[name].up, *self.nodes[name].down)}.values():
            if flow.waits:
                continue
            self.settle(flow)
            source, target = self.nodes[flow.source], self.nodes[flow.target]
            flow.rate = min(source.link / len(source.up), min(target.link, self.setting.hash) / len(target.down))
            flow.version += 1
            self.at(self.now + flow.left / flow.rate, "end", flow, flow.version)

    def end(self, flow: Flow) -> int:
        self.settle(flow)
        flow.left = 0.0
        self.forget(flow, flow.lease.pieces)
        return self.ask(flow.target)

    def forget(self, flow: Flow, came: int, refused: frozenset[str] = frozenset()) -> None:
        """A lease is over."""
        flow.version += 1
        source, target, peer = self.nodes[flow.source], self.nodes[flow.target], self.peers[flow.target]
        target.down.remove(flow)
        if flow in source.up:
            source.up.remove(flow)
        leases = tuple(lease for lease in peer.leases if lease is not flow.lease)
        self.peers[flow.target] = Peer(peer.have | came, leases, peer.refuses | refused)
        self.share(flow.source, flow.target)

    def die(self, name: str) -> None:
        node = self.nodes[name]
        node.alive = False
        self.at(self.now + SILENCE, "forgotten", name)
        for flow in list(node.up):
            self.settle(flow)
            self.lose(flow)
        for flow in list(node.down):
            self.settle(flow)
            flow.version += 1
            if flow in self.nodes[flow.source].up:
                self.nodes[flow.source].up.remove(flow)
            self.share(flow.source)
        node.up, node.down = [], []

    def lose(self, flow: Flow) -> None:
        flow.waits, flow.rate = True, 0.0
        flow.version += 1
        self.at(self.now + STALL, "noticed", flow)

    def refuse(self, flow: Flow) -> None:
        if self.nodes[flow.target].alive:
            self.forget(flow, self.arrived(flow), frozenset({flow.source}))
            self.ask(flow.target)


def simulate(setting: Setting) -> dict[str, float]:
    """The figures of one fan-out."""
    simulation = Simulation(setting)
    simulation.run()
    ended = [(node.link < setting.nic, node.done) for node in simulation.nodes.values() if node.done is not None and node.alive]
    done = sorted(when for slow, when in ended if not slow)
    last = max((when for slow, when in ended if slow), default=0.0)
    others = [node.sent for name, node in simulation.nodes.items() if name != SOURCE]
    return {
        "replicas": setting.replicas,
        "ideal": setting.bytes / setting.nic,
        "half": done[len(done) // 2],
        "most": done[min(len(done) - 1, round(0.99 * len(done)))],
        "all": done[-1],
        "slow": last,
        "source": simulation.nodes[SOURCE].sent / setting.bytes,
        "other": max(others) / setting.bytes,
        "asked_per_second": simulation.asked / max(done[-1], last),
        "decision_ms": 1000 * simulation.deciding / simulation.asked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="1,2,4,8,32,100")
    parser.add_argument("--gigabytes", type=float, default=2000.0)
    parser.add_argument("--nic", type=float, default=25.0, help="GB/s of a node's link, each way")
    parser.add_argument("--hash", type=float, default=40.0, help="GB/s that a node checks")
    parser.add_argument("--latency", type=float, default=0.005, help="seconds to get a lease")
    parser.add_argument("--deaths", type=float, default=0.01)
    parser.add_argument("--slow", type=float, default=0.01)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows = []
    for count in map(int, chosen.replicas.split(",")):
        setting = Setting(
            count, chosen.gigabytes * GB, chosen.nic * GB, chosen.hash * GB, chosen.latency, chosen.deaths, chosen.slow
        )  # fmt: skip
        rows.append(simulate(setting))
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return
    title = f"{chosen.gigabytes:.0f} GB, {chosen.nic:g} GB/s a node; {chosen.deaths:.1%} die, {chosen.slow:.1%} have a tenth of the link"
    table = Table(title=title)
    heads = ("nodes", "ideal s", "half s", "99 % s", "all s", "slow s", "source sent ×", "others at most ×", "asked/s", "decision ms")
    for head in heads:
        table.add_column(head, justify="right")
    add_bar_column(table, "all s")
    for values, bar in zip((list(row.values()) for row in rows), bars([list(row.values())[4] for row in rows]), strict=True):
        table.add_row(f"{values[0]:.0f}", *(f"{value:.1f}" for value in values[1:6]), *(f"{value:.2f}" for value in values[6:]), bar)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
