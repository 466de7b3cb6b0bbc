"""`GET /metrics`: the job's figures for Prometheus, read from the status when asked."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rljob.master.parts import Parts
from rljob.master.status import job_status


class JobCollector:
    """Turns status and tallies into metric families; nothing is counted twice."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """All families."""
        status, tally = job_status(self._parts), self._parts.pool.tally
        yield GaugeMetricFamily("rljob_iteration", "Iteration in progress", status.iteration)
        yield GaugeMetricFamily("rljob_policy_version", "Committed version of the weights", status.policy_version)
        yield GaugeMetricFamily("rljob_engines", "Routable engines", status.engines)
        yield GaugeMetricFamily("rljob_tokens_per_second", "Generation speed of the running or last rollout", status.tokens_per_second)
        if status.reward is not None:
            yield GaugeMetricFamily("rljob_reward", "Mean reward of the last finished iteration", status.reward)
        if status.held_out:
            yield GaugeMetricFamily("rljob_held_out_accuracy", "Newest held-out accuracy", status.held_out[-1].accuracy)
        phase = GaugeMetricFamily("rljob_phase", "1 for the phase the job is in", labels=["phase"])
        phase.add_metric([status.phase], 1)
        yield phase
        seconds = GaugeMetricFamily("rljob_phase_seconds", "Seconds per phase of the last finished iteration", labels=["phase"])
        for name, value in status.timings.items():
            seconds.add_metric([name], value)
        yield seconds
        yield from self._last_iteration()
        yield CounterMetricFamily("rljob_generated_tokens", "Tokens received from engines", tally.tokens)
        yield CounterMetricFamily("rljob_discarded_tokens", "Tokens thrown away because another policy wrote them", tally.discarded)
        yield CounterMetricFamily("rljob_redispatched_requests", "Requests sent again because an engine failed", tally.redispatched)

    def _last_iteration(self) -> Iterator[Metric]:
        records = self._parts.state.history.iterations()
        for key in ("loss", "grad_norm", "kl", "logprob_gap", "success_rate", "zero_advantage", "response_length", "stale_tokens"):
            if records:
                yield GaugeMetricFamily(f"rljob_{key}", f"`{key}` of the last finished iteration (docs/metrics.md)", records[-1][key])


def exposition(parts: Parts) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(JobCollector(parts))
    return generate_latest(registry)
