"""The screen of a job in a cluster. Pure: a snapshot in, rich objects out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rljob.api.status import HeldOutStatus, NodeStatus, ProgressStatus
from rljob.local.view import clock, last_failure, percent, span, sparkline
from rljob.remote.advice import advice
from rljob.remote.observe import Condition, Event, PodState, Snapshot

_PHASE_STYLE = {"Succeeded": "bold green", "Failed": "bold red", "Suspended": "bold yellow"}
_GOOD, _BAD = "green", "red"
_TRUE_IS_BAD = ("Stalled", "Failed")
_EVENTS = 5


def screen(seen: Snapshot, now: datetime, note: str = "") -> RenderableType:
    """Everything that a person wants to know. `note`: one more line at the end, such as that the cluster does not answer."""
    parts: list[RenderableType] = [_head(seen), _figures(seen)]
    # Before the rest, because a low terminal cuts the end off.
    if words := _pressing(seen, now):
        parts += [words]
    if seen.pods:
        parts += [Text(), _pods(seen)]
    if seen.conditions:
        parts += [Text(), _conditions(seen.conditions)]
    if seen.events:
        parts += [Text(), _events(seen.events, now)]
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _head(seen: Snapshot) -> Text:
    status = seen.status
    phase = seen.phase or "not seen by an operator yet"
    counted = f"iteration {min(max(status.iteration, status.finished), status.iterations)}/{status.iterations}"
    return Text.assemble(
        (seen.name, "bold"), (f"  {seen.namespace}", "dim"), "  ", (phase, _PHASE_STYLE.get(phase, "bold cyan")),
        f"  {counted}  ", (f"policy version {status.policy_version}", "dim"), "  ", (f"age {clock(seen.age)}", "dim"),
    )  # fmt: skip


def _figures(seen: Snapshot) -> RenderableType:
    status = seen.status
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=14)
    grid.add_column()
    if status.rewards:
        first, last = status.rewards[0], status.rewards[-1]
        # An RLJob keeps the newest ones.
        since = f" (iteration {status.rewards_before + 1})" if status.rewards_before else ""
        grid.add_row("reward", Text.assemble((sparkline(status.rewards), "green"), f"  {first:.3f}{since} → {last:.3f}"))
    elif status.reward is not None:
        grid.add_row("reward", f"{status.reward:.3f}")
    if status.held_out:
        grid.add_row("held-out", _held_out(status.held_out))
    if status.progress is not None and not seen.finished and not seen.suspended:
        speed = f"  {status.tokens_per_second:,.0f} tokens/s" if status.tokens_per_second else ""
        grid.add_row("progress", Text.assemble(_bar(status.progress), speed))
    if status.timings:
        # The longest first; a cluster does not keep the order in which they were written.
        timings = sorted(status.timings.items(), key=lambda item: (-item[1], item[0]))
        grid.add_row("last iteration", ", ".join(f"{name} {span(seconds)}" for name, seconds in timings))
    if status.switches:
        grid.add_row("switch", Text("\n".join(status.switches)))
    if (seen.replicas or seen.ready_replicas) and not seen.finished and not seen.suspended:
        wrong = seen.ready_replicas != seen.replicas
        grid.add_row("rollout pods", Text(f"{seen.ready_replicas} of {seen.replicas} ready", style="yellow" if wrong else ""))
    if seen.sharing and not seen.finished:
        grid.add_row("accelerators", Text(f"shared by {seen.sharing}"))
    return grid


def _held_out(held_out: Sequence[HeldOutStatus]) -> Text:
    accuracies = [h.accuracy for h in held_out]
    if len(accuracies) == 1:
        return Text(f"{percent(accuracies[0])} after iteration {held_out[0].iteration}")
    since = f" (after iteration {held_out[0].iteration})" if held_out[0].iteration else ""
    return Text.assemble((sparkline(accuracies), "cyan"), f"  {percent(accuracies[0])}{since} → {percent(accuracies[-1])}")


def _bar(progress: ProgressStatus, width: int = 24) -> Text:
    filled = round(width * min(1.0, progress.done / max(1, progress.total)))
    return Text.assemble(("━" * filled, "cyan"), ("━" * (width - filled), "dim"), f" {progress.done:,}/{progress.total:,} {progress.unit}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pods(seen: Snapshot) -> Table:
    nodes = {node.name: node for node in seen.status.nodes}
    table = _table("POD", "STATE", "READY", "RESTARTS", "NOW")
    for pod in seen.pods:
        node = None if seen.finished else nodes.get(pod.short)
        style = _GOOD if pod.healthy else _BAD if pod.message or pod.state in ("Failed", "Error") else "yellow"
        table.add_row(pod.name, Text(pod.state, style=style), f"{pod.ready}/{pod.counted}", str(pod.restarts), _now(pod, node))
    return table


def _now(pod: PodState, node: NodeStatus | None) -> Text:
    """What a pod is doing: why it does not run, else the step of its node."""
    if not pod.healthy and pod.message:
        return Text(pod.message, style=_BAD)
    if node is None:
        return Text()
    text = Text.assemble((node.step, "cyan"), f" {span(node.step_seconds)}")
    if node.progress is not None and node.progress.total:
        text.append(f"  {node.progress.done:,}/{node.progress.total:,} {node.progress.unit}".rstrip())
    if node.version is not None:
        text.append(f"  serves version {node.version}", style="dim")
    if node.failure:
        text.append(f"  {node.failure}", style=_BAD)
    return text


def _conditions(conditions: Sequence[Condition]) -> Table:
    table = _table("CONDITION", "", "REASON", "MESSAGE")
    for condition in conditions:
        style = "dim"
        if condition.holds:
            style = _BAD if condition.type in _TRUE_IS_BAD else _GOOD
        table.add_row(Text(condition.type, style=style), Text(condition.status, style=style), condition.reason, condition.message)
    return table


def _events(events: Sequence[Event], now: datetime) -> Table:
    table = _table("EVENT", "", "ABOUT", "MESSAGE")
    for event in events[-_EVENTS:]:
        times = f" (× {event.count})" if event.count > 1 else ""
        age = clock(max(0.0, (now - event.at).total_seconds()))
        table.add_row(f"{age} ago", Text(event.reason, style="yellow" if event.warning else ""), event.about, event.message + times)
    return table


def _pressing(seen: Snapshot, now: datetime) -> RenderableType | None:
    """The last failure, and what to do."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=14)
    grid.add_column()
    failure = seen.status.last_failure
    if failure is not None:
        grid.add_row("last failure", Text(last_failure(failure, now), style=_BAD))
    for label, line in zip(("next", *[""] * 9), advice(seen), strict=False):
        grid.add_row(label, Text(line, style="bold"))
    for field in seen.unreadable:
        grid.add_row("note", f"status.{field} is written by another version and not shown; update rljob")
    return grid if grid.rows else None


def table_of_jobs(jobs: Sequence[dict[str, Any]], now: datetime, everywhere: bool) -> RenderableType:
    """One line for each job."""
    table = _table(*(["NAMESPACE"] if everywhere else []), "NAME", "PHASE", "ITERATION", "REWARD", "CURVE", "ROLLOUTS", "AGE")
    for job in jobs:
        metadata, said, spec = job["metadata"], job.get("status", {}), job["spec"]
        rewards = said.get("rewards", [])
        reward = f"{said['reward']:.3f}" if said.get("reward") is not None else ""
        age = (now - datetime.fromisoformat(metadata["creationTimestamp"])).total_seconds()
        table.add_row(
            *([metadata["namespace"]] if everywhere else []), metadata["name"], said.get("phase", ""),
            f"{said.get('iteration', 0)}/{spec.get('iterations', '')}", reward, Text(sparkline(rewards, 20), style="green"),
            f"{said.get('rollout', {}).get('readyReplicas', 0)}/{spec.get('rollout', {}).get('replicas', 0)}", clock(age),
        )  # fmt: skip
    return table
