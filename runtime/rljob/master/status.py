"""The job's status."""

import time

from rljob.api.status import JobStatus, NodeStatus, ProgressStatus
from rljob.master.decisions.stage import first_policy
from rljob.master.parts import Parts
from rljob.wire.node import NodeReport


def job_status(parts: Parts) -> JobStatus:
    """Everything that there is to say, now."""
    spec, history, activity, now = parts.job.spec, parts.state.history, parts.activity, parts.clock()
    committed = parts.state.versions.committed().version
    done = max(0, committed - first_policy(spec))
    records = history.iterations()
    over = activity.phase in ("Finishing", "Succeeded", "Failed")
    return JobStatus(
        phase=activity.phase,
        iteration=done if over else min(done + 1, spec.iterations),
        iterations=spec.iterations,
        policy_version=committed,
        reward=records[-1]["reward"] if records else None,
        rewards=[record["reward"] for record in records],
        held_out=[e.status for e in history.evaluations()],
        progress=_progress(parts),
        tokens_per_second=_speed(parts, now),
        engines=parts.pool.routable,
        nodes=[_node(report, parts, now) for report in parts.nodes.reports.values()],
        timings={phase: s for phase, s in records[-1]["seconds"].items() if phase != "total"} if records else {},
        last_failure=parts.watch.last,
        started=parts.state.database.get("started") or 0.0,
        updated=time.time(),  # for others, who go by the machine's clock
    )


def _progress(parts: Parts) -> ProgressStatus | None:
    """Of the phase: counted here, or by the worker that trains."""
    if parts.activity.phase not in ("WarmStart", "Training"):
        return parts.activity.progress
    training = next((w.progress for w in parts.nodes.workers() if w.step == "train" and w.progress), None)
    return ProgressStatus(done=training.done, total=training.total, unit="steps") if training else None


def _speed(parts: Parts, now: float) -> float:
    activity = parts.activity
    if activity.phase in ("Rollout", "Evaluating") and now > activity.begun:
        return (parts.pool.tokens() - activity.tokens) / (now - activity.begun)
    # A batch is of a rollout that is over, and of an iteration that has no record yet.
    batch, records = parts.state.versions.pending(), parts.state.history.iterations()
    last = batch.record if batch is not None and batch.task.kind == "rl" else records[-1] if records else {}
    return float(last.get("tokens_per_second", 0.0))


def _node(report: NodeReport, parts: Parts, now: float) -> NodeStatus:
    progress = ProgressStatus(done=report.progress.done, total=report.progress.total, unit=report.step) if report.progress else None
    serving = report.engine is not None and report.node in parts.pool.serving
    return NodeStatus(
        name=report.node,
        step=report.step,
        step_seconds=max(0.0, now - report.step_started),
        progress=progress,
        version=report.engine.version if report.engine is not None and serving else None,
        failure=report.failure.message if report.failure else "",
        switch=f"{report.switch_policy}: {report.switch_reason}" if report.kind == "worker" and report.switch_policy else "",
    )
