"""What the master knows of nodes from when it last heard of them."""

import asyncio
from typing import Literal

from rljob.master.nodes import SILENCE, Nodes
from rljob.wire.node import NodeReport


def report(node: str, kind: Literal["worker", "rollout"]) -> NodeReport:
    return NodeReport(node=node, kind=kind, incarnation="i", seen_revision=0, step="idle", step_started=0.0)


def test_a_silent_worker_is_away_and_waited_for_and_a_silent_rollout_node_is_gone() -> None:
    now = [0.0]
    nodes = Nodes(1, lambda: now[0])
    for name in ("worker-0", "worker-1", "rollout-0"):
        asyncio.run(nodes.sync(report(name, "rollout" if name == "rollout-0" else "worker"), 0))
    assert not nodes.workers_away()
    now[0] = SILENCE + 1
    asyncio.run(nodes.sync(report("worker-0", "worker"), 0))
    assert nodes.workers_away()
    assert set(nodes.reports) == {"worker-0", "worker-1"}
    asyncio.run(nodes.sync(report("worker-1", "worker"), 0))
    assert not nodes.workers_away(), "that a rollout node has gone holds no worker up"
