"""Gathers what the report shows."""

from rljob.master.decisions.samples import Pair, pairs
from rljob.master.page import content
from rljob.master.page.layout import page, section
from rljob.master.parts import Parts
from rljob.master.state import History
from rljob.master.status import job_status
from rljob.wire.node import TrainMetrics

SAMPLES = 9


class LivePage:
    """The page that renews itself, made anew when what it shows has changed and not each time somebody looks."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._shown: tuple[object, ...] = ()
        self._page = ""

    def now(self) -> str:
        """The page, as things stand."""
        status = job_status(self._parts)
        shown = (status.phase, status.policy_version, len(status.held_out), status.last_failure)
        if shown != self._shown:
            self._page, self._shown = report_page(self._parts, live=True), shown
        return self._page


def report_page(parts: Parts, live: bool = False) -> str:
    """The page, as things stand; `live`: it renews itself."""
    status, records, history = job_status(parts), parts.state.history.iterations(), parts.state.history
    if parts.job.spec.reward_model is not None:
        return _reward_model_page(parts, live)
    sections = [
        section("Summary", content.summary(status, records, _warm_start(parts.state.versions.warm_start_metrics()))),
        section("Held-out accuracy", content.held_out_chart(status.held_out), _held_out_note(parts)) if status.held_out else "",
        section("Reward", content.reward_chart(records), "Mean over an iteration's answers, by the verifier alone."),
        section("Answer length", content.length_chart(records), "Mean tokens per answer."),
        section(
            "Log-prob gap",
            content.gap_chart(records),
            "Mean absolute difference per token between trainer and engine, at each iteration's start.",
        ),
        section("How answers ended", content.ending_chart(records), "Shares of an iteration's answers."),
        section(
            "Time per iteration",
            content.time_chart(records),
            "Seconds; steps of the hand-over between trainer and engine as the node timed them.",
            wide=True,
        ),
        section("Time per step", content.time_table(records) if records else "", wide=True),
        section(
            "Sample answers", content.samples(_pairs(history)), "The first held-out prompts of each family, picked by position.", wide=True
        ),
    ]
    algorithm = parts.job.spec.algorithm
    subtitle = f"RLJob · {algorithm.prompts_per_iteration} prompts × {algorithm.samples_per_prompt} answers per iteration"
    return page(parts.job.metadata.name, subtitle, sections, live)


def _reward_model_page(parts: Parts, live: bool) -> str:
    """The page of a job that trains a reward model: nothing is generated, and no engine takes turns."""
    status, records, settings = job_status(parts), parts.state.history.iterations(), parts.job.spec.reward_model
    assert settings is not None
    note = "Share of pairs that are never trained on in which the chosen answer has the higher score; iteration 0 is the untrained head."
    before = "Share of an iteration's pairs in the right order when their step came: before the model had learned from them."
    sections = [
        section("Summary", content.summary(status, records, "")),
        section("Held-out accuracy", content.held_out_chart(status.held_out), note) if status.held_out else "",
        section("Training pairs in the right order", content.reward_chart(records), before),
        section("Margin", content.margin_chart(records), "Mean score of the chosen answer above the rejected one, at the same moment."),
        section("Time per iteration", content.time_chart(records), "Seconds.", wide=True),
        section("Time per step", content.time_table(records) if records else "", wide=True),
        section("Sample pairs", content.samples(_pairs(parts.state.history)), "Chosen answers; right: with the higher score.", wide=True),
    ]
    subtitle = f"RLJob · a reward model, {settings.steps_per_iteration} steps × {settings.batch_size} pairs per iteration"
    return page(parts.job.metadata.name, subtitle, sections, live)


def _pairs(history: History) -> tuple[Pair, ...]:
    evaluations = history.evaluations()
    if not evaluations:
        return ()
    first, last = evaluations[0].version, evaluations[-1].version
    shown = [pair.before.prompt for pair in pairs(history.outline(first), history.outline(last), SAMPLES)]
    before, after = (list(history.answers(version, shown).values()) for version in (first, last))
    return pairs(before, after, SAMPLES)


def _warm_start(metrics: TrainMetrics | None) -> str:
    if metrics is None:
        return ""
    return f"{metrics.steps} steps, {metrics.samples:,} demonstrations, loss {metrics.loss:.3f} <small>({metrics.seconds:.1f} s)</small>"


def _held_out_note(parts: Parts) -> str:
    spec = parts.job.spec.evaluation
    if spec is None:
        return ""
    how = "greedy" if spec.temperature == 0 else f"temperature {spec.temperature:g}"
    return f"Prompts that are never trained on, {how}; iteration 0 is the policy that RL starts from."
