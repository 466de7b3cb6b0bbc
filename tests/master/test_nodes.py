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


def test_a_report_that_was_overtaken_is_answered_and_does_not_take_the_place_of_a_newer_one() -> None:
    """An agent gives up a long poll and reports anew over another connection; a master that is short of time may read the new one first."""
    nodes, observed = Nodes(1, lambda: 0.0), list[str]()
    nodes.observers.append(lambda report: observed.append(f"{report.incarnation}: {report.step}"))
    believed = []
    for incarnation, number, step in (("i", 1, "load"), ("i", 3, "rollout"), ("i", 2, "attest"), ("i2", 1, "idle")):
        told = report("worker-0", "worker").model_copy(update={"incarnation": incarnation, "number": number, "step": step})
        assert asyncio.run(nodes.sync(told, 0)) == nodes.desired
        believed.append(nodes.reports["worker-0"].step)
    assert believed == ["load", "rollout", "rollout", "idle"]
    assert observed == ["i: load", "i: rollout", "i2: idle"], "nobody is told what is not so any more"
