"""How long a version takes to reach many rollout nodes: the production planning code in a simulated network.

    python benchmarks/fanout_simulator.py [--replicas 1,2,4,8,32,100] [--model SmolLM2-135M] [--nic 0.025] [--deaths 0] [--slow 0]
    python benchmarks/fanout_simulator.py --model 1T --nic 25 --replicas 1,8,100,1000 --deaths 0.01 --slow 0.01

Every decision is `rljob.master.decisions.fanout.grant`, asked as the master is asked: with what each node last reported. `--model` is
one of `_models.py`, or a config.json: its tensors, in bf16, cut in pieces as a trainer cuts them (`rljob.wire.pieces`). The defaults are
those of `weight_fanout.py`, which does the same for real. The second command is a model of a trillion parameters and one 200 Gb/s card for
each node; 1,000 nodes take some minutes to simulate.

Where the constants come from:
- `--stream`, GB/s that one stream moves and checks at most: the whole pull over HTTP in `weight_transfer.py --json`, which had one core for
  each end. A node's four streams have cores of their own here.
- `--decision`, seconds of the master's one thread for a request, HTTP and JSON included: `weight_fanout.py --json` (`master_ms`).
- `--latency`, seconds of the way there and back, while the master has nothing else to do: the same (`answer_ms` for one node). All on two
  cores of an AMD EPYC server without other work.
- HEARTBEAT, SILENCE, STALL, `Limits`, OFTEN: the product's own.

What is assumed:
- One source has the version; every node wants it at time 0.
- A node's link sends and receives at full speed at once; the switches between never limit. Streams share a link evenly; what a slow other
  end leaves unused is not given to the others (so the figures are rather too slow).
- The master answers one request after the other. A node has one question open at a time: it asks when a lease ends, and after the pause
  that the master named; with each of those pauses it also reports its progress, which is another request. When it is whole it says so.
- `--deaths`: so many nodes die, each at a time drawn evenly from the ideal duration; whoever pulls from one notices after 5 s (STALL), the
  master forgets it after 10 s (SILENCE). `--slow`: so many have a tenth of the link. The draws are seeded. Nobody gives up
  because all sources are busy (HOPELESS).

Reported: the ideal (the version once through one link, or through a node's streams); seconds until half, 99 % and all of the living nodes
with a whole link have it, and until the last of the slow ones has it; what the source sent in multiples of the version, and the most that
any other node sent; the share of the time until all have it that the master is at work, and the longest that a node waited for an answer;
the median time of `grant` and of keeping what was reported, as measured here (it is part of `--decision`).
"""

import argparse
import bisect
import heapq
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from _bars import add_bar_column, bars
from _models import MODELS, piece_sizes
from rich.console import Console
from rich.table import Table

from rljob.checkpoint_engine.transport import STALL
from rljob.master.decisions.fanout import Lease, Limits, Peer, Peers, grant
from rljob.master.exchange import SILENCE, pause
from rljob.wire.pieces import members

SOURCE = "worker-0"
GB = 1e9
NIC, STREAM, DECISION, LATENCY = 0.025, 1.97, 0.0012, 0.0023


@dataclass(eq=False)
class Flow:
    """A lease on its way."""

    source: str
    target: str
    lease: Lease
    bytes: float
    left: float
    rate: float = 0.0
    since: float = 0.0
    version: int = 0
    """Raised whenever its end is computed anew."""
    waits: bool = False
    """The source is dead, and the target has not noticed."""


@dataclass
class Node:
    """One end of flows, and what a node that pulls knows."""

    link: float
    up: list[Flow] = field(default_factory=list)
    down: list[Flow] = field(default_factory=list)
    have: int = 0
    refuses: frozenset[str] = frozenset()
    asking: bool = False
    news: bool = False
    """A lease has ended since it asked."""
    asked: int = 0
    sent: float = 0.0
    done: float | None = None
    alive: bool = True


@dataclass(frozen=True)
class Setting:
    """What is simulated; bytes and seconds."""

    replicas: int
    pieces: tuple[int, ...]
    nic: float = NIC * GB
    stream: float = STREAM * GB
    decision: float = DECISION
    latency: float = LATENCY
    deaths: float = 0.0
    slow: float = 0.0
    limits: Limits = field(default_factory=Limits)

    @property
    def bytes(self) -> int:
        return sum(self.pieces)

    @property
    def ideal(self) -> float:
        return self.bytes / min(self.nic, self.stream * self.limits.streams)


class Simulation:
    """One fan-out."""

    def __init__(self, setting: Setting, seed: int = 1) -> None:
        self.setting, self.now = setting, 0.0
        self.full = (1 << len(setting.pieces)) - 1
        draw = random.Random(seed)
        names = [f"rollout-{i}" for i in range(setting.replicas)]
        slow = set(draw.sample(names, round(setting.slow * setting.replicas)))
        self.nodes = {name: Node(setting.nic * (0.1 if name in slow else 1.0)) for name in names} | {SOURCE: Node(setting.nic)}
        self.peers = Peers(len(setting.pieces), setting.limits, {SOURCE: Peer(self.full)})
        self.pulling = set[str]()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.open = len(names)
        """Nodes that live and have not everything."""
        self.free, self.longest = 0.0, 0.0
        """When the master has nothing to do any more, and the longest that anybody waited for it."""
        self.requests: list[float] = []
        """When each began."""
        self.deciding: list[float] = []
        for name in names:
            self.ask(name)
        for name in draw.sample(names, round(setting.deaths * setting.replicas)):
            self.at(draw.uniform(0, setting.ideal), lambda name=name: self.die(name))  # type: ignore[misc]

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self) -> None:
        """Until every living node has everything."""
        while self.open:
            self.now, _, what = heapq.heappop(self.events)
            what()

    # --- the master -------------------------------------------------------------------------------------------------------------------

    def request(self, what: Callable[[], None], count: int = 1) -> None:
        """Let the master do something, after what it has to do already; `count` requests."""
        began = max(self.now + self.setting.latency / 2, self.free)
        self.free = began + count * self.setting.decision
        self.requests += [began] * count
        self.longest = max(self.longest, self.free + self.setting.latency / 2 - self.now)
        self.at(self.free, what)

    def ask(self, name: str, late: bool = False) -> None:
        """A node reports; `late`: because its pause is over."""
        node = self.nodes[name]
        node.asking, node.news, node.asked = True, False, node.asked + 1
        have = node.have
        for flow in node.down:
            self.settle(flow)
            have |= self.arrived(flow)
        peer = Peer(have, tuple(flow.lease for flow in node.down), node.refuses)
        self.request(lambda: self.decide(name, peer), 2 if late else 1)

    def decide(self, name: str, peer: Peer) -> None:
        if not self.nodes[name].alive:
            return
        self.pulling.add(name)
        began = time.perf_counter()
        self.peers.put(name, peer)
        leases = grant(self.peers, name)
        self.peers.put(name, Peer(peer.have, (*peer.leases, *leases), peer.refuses))
        self.deciding.append(time.perf_counter() - began)
        wait = pause(len(self.pulling))
        self.at(self.now + self.setting.latency / 2, lambda: self.answered(name, leases, wait))

    def answered(self, name: str, leases: tuple[Lease, ...], wait: float) -> None:
        node = self.nodes[name]
        if not node.alive or node.done is not None:
            return
        node.asking = False
        for lease in leases:
            size = sum(self.setting.pieces[i] for i in members(lease.pieces))
            self.start(Flow(lease.source, name, lease, size, size))
        if node.news:
            self.ask(name)
            return
        asked = node.asked
        self.at(self.now + wait, lambda: self.ask(name, late=True) if node.asked == asked and node.alive and node.done is None else None)

    def ended(self, name: str) -> None:
        """A lease of a node is over."""
        node = self.nodes[name]
        if node.have == self.full:
            node.done = self.now
            self.open -= 1
            self.request(lambda: self.whole(name))
        elif node.asking:
            node.news = True
        else:
            self.ask(name)

    def whole(self, name: str) -> None:
        self.pulling.discard(name)
        if self.nodes[name].alive:
            self.peers.put(name, Peer(self.full))

    def forget(self, name: str) -> None:
        self.pulling.discard(name)
        self.peers.drop(name)

    # --- the network ------------------------------------------------------------------------------------------------------------------

    def start(self, flow: Flow) -> None:
        flow.since = self.now
        self.nodes[flow.target].down.append(flow)
        if self.nodes[flow.source].alive:
            self.nodes[flow.source].up.append(flow)
            self.share(flow.source, flow.target)
        else:
            self.lose(flow)

    def arrived(self, flow: Flow) -> int:
        """The pieces that have come, from the lowest on."""
        came, mask = flow.bytes - flow.left, 0
        for piece in members(flow.lease.pieces):
            came -= self.setting.pieces[piece]
            if came < -1:
                break
            mask |= 1 << piece
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
            source, target = self.nodes[flow.source], self.nodes[flow.target]
            rate = min(source.link / len(source.up), target.link / len(target.down), self.setting.stream)
            if rate != flow.rate:
                self.settle(flow)
                flow.rate = rate
                flow.version += 1
                self.at(self.now + flow.left / rate, lambda flow=flow, version=flow.version: self.end(flow, version))  # type: ignore[misc]

    def end(self, flow: Flow, version: int) -> None:
        if flow.version == version:
            self.settle(flow)
            flow.left = 0.0
            self.close(flow)
            self.ended(flow.target)

    def close(self, flow: Flow) -> None:
        """What has come of a lease stays."""
        flow.version += 1
        source, target = self.nodes[flow.source], self.nodes[flow.target]
        target.have |= self.arrived(flow)
        target.down.remove(flow)
        if flow in source.up:
            source.up.remove(flow)
        self.share(flow.source, flow.target)

    def die(self, name: str) -> None:
        node = self.nodes[name]
        self.open -= node.done is None
        node.alive = False
        self.at(self.now + SILENCE, lambda: self.forget(name))
        for flow in list(node.up):
            self.settle(flow)
            self.lose(flow)
        for flow in list(node.down):
            self.settle(flow)
            self.close(flow)
        node.up = []

    def lose(self, flow: Flow) -> None:
        flow.waits, flow.rate = True, 0.0
        flow.version += 1
        self.at(self.now + STALL, lambda: self.refuse(flow))

    def refuse(self, flow: Flow) -> None:
        target = self.nodes[flow.target]
        if target.alive and flow in target.down:
            target.refuses |= {flow.source}
            self.close(flow)
            self.ended(flow.target)


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
        "ideal": setting.ideal,
        "half": done[len(done) // 2],
        "most": done[min(len(done) - 1, round(0.99 * len(done)))],
        "all": done[-1],
        "slow": last,
        "source": simulation.nodes[SOURCE].sent / setting.bytes,
        "other": max(others) / setting.bytes,
        "master": setting.decision * bisect.bisect(simulation.requests, done[-1]) / done[-1],
        "answer": simulation.longest,
        "grant_ms": 1000 * statistics.median(simulation.deciding),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="1,2,4,8,32,100")
    parser.add_argument("--model", default="SmolLM2-135M", help=f"a config.json, or one of {', '.join(MODELS)}")
    parser.add_argument("--nic", type=float, default=NIC, help="GB/s of a node's link, each way")
    parser.add_argument("--stream", type=float, default=STREAM, help="GB/s that one stream moves and checks at most")
    parser.add_argument("--decision", type=float, default=DECISION, help="seconds that the master works for a request")
    parser.add_argument("--latency", type=float, default=LATENCY, help="seconds to the master and back")
    parser.add_argument("--deaths", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    pieces, rows = piece_sizes(chosen.model), []
    for count in map(int, chosen.replicas.split(",")):
        speeds = (chosen.nic * GB, chosen.stream * GB, chosen.decision, chosen.latency)
        rows.append(simulate(Setting(count, pieces, *speeds, chosen.deaths, chosen.slow)))
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return
    title = f"{chosen.model}: {sum(pieces) / GB:.3g} GB in {len(pieces)} pieces, {chosen.nic:g} GB/s a node"
    table = Table(title=f"{title}; {chosen.deaths:.1%} die, {chosen.slow:.1%} have a tenth of the link")
    heads = ("nodes", "ideal s", "half s", "99 % s", "all s", "slow s", "source sent ×", "others at most ×")
    for head in (*heads, "master at work", "answer at most s", "grant ms"):
        table.add_column(head, justify="right")
    add_bar_column(table, "all s")
    for values, bar in zip((list(row.values()) for row in rows), bars([row["all"] for row in rows]), strict=True):
        table.add_row(f"{values[0]:.0f}", *(f"{value:.1f}" for value in values[1:6]), *(f"{value:.2f}" for value in values[6:]), bar)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
