"""When failures end the job: too many in a row without progress, or one that the user has to resolve."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rljob.api import ConfigurationError, JobFailed, RLJobError
from rljob.api.status import LastFailure
from rljob.wire.base import Failure
from rljob.wire.node import NodeReport


@dataclass(frozen=True)
class Health:
    """Failures since the job last got anywhere."""

    failures: int = 0
    """In a row, without progress between them."""
    last: LastFailure | None = None
    """The newest, also if the job went on."""
    configuration: bool = False
    """The newest is one that trying again cannot cure."""
    counted: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Per node: its incarnation and how many of its failures have been counted."""


def reported(health: Health, report: NodeReport, workers_away: bool = False) -> Health:
    """After a node's report: failures that it had not told of before count.

    Not those of a rollout node: it serves nothing (it gets no weights, or its accelerator is broken, say), and the job does well without
    it. Nor those of a worker that finds nobody to pull from while another worker is away (`workers_away`): the job waits for that one, as
    it does when nobody has to pull.
    """
    incarnation, counted = health.counted.get(report.node, ("", 0))
    known = counted if incarnation == report.incarnation and counted <= report.failures else 0
    health = replace(health, counted={**health.counted, report.node: (report.incarnation, report.failures)})
    if report.failure is None:
        return health
    if report.failures == known and (report.kind == "rollout" or not report.failure.configuration):
        return health
    if report.kind == "rollout":
        return _failed(health, report.node, report.failure.model_copy(update={"configuration": False}), 0)
    if workers_away and report.failure.stage == "pull" and not report.failure.configuration:
        return _failed(health, report.node, report.failure, 0)
    return _failed(health, report.node, report.failure, max(1, report.failures - known))


def failed(health: Health, pod: str, failure: Failure, vital: bool = True) -> Health:
    """After a failure that the master saw itself; `vital`: of something that the job cannot do without."""
    return _failed(health, pod, failure, 1 if vital else 0)


def progressed(health: Health) -> Health:
    """After anything durable was reached: the row of failures ends."""
    return replace(health, failures=0)


def end_of(health: Health, backoff_limit: int) -> RLJobError | None:
    """The error that ends the job, or None while it may go on."""
    if health.last is None:
        return None
    where = f"{health.last.stage} on {health.last.pod}: {health.last.message}"
    if health.configuration:
        return ConfigurationError(where)
    if health.failures > backoff_limit:
        return JobFailed(
            f"{health.failures} failures in a row without progress (spec.backoffLimit is {backoff_limit}); the last in {where}"
        )
    return None


def _failed(health: Health, pod: str, failure: Failure, count: int) -> Health:
    last = LastFailure(stage=failure.stage, pod=pod, reason=failure.reason, message=failure.message)
    return replace(health, failures=health.failures + count, last=last, configuration=failure.configuration)
