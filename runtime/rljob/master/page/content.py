"""What the report says: sections of HTML from records. Everything that a model or a user wrote is escaped."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rljob.api.status import HeldOutStatus, JobStatus
from rljob.master.decisions.record import added_seconds
from rljob.master.decisions.samples import Pair
from rljob.master.page.charts import BARS, Column, Series, line_chart, stacked_bars

PHASES = ("rollout", "reward-wait", "evaluation", "train", "start-engine", "load-engine", "checkpoint", "export", "gate", "other")
"""Phases with a colour of their own, in stacking order; every other step counts as `hand-over`."""
HAND_OVER = "hand-over"
LONGEST_ANSWER = 1200
"""Characters of a sample answer that are shown."""

Record = Mapping[str, Any]


def reward_chart(records: Sequence[Record]) -> str:
    """Mean reward of the training answers, and their success rate where that is something else."""
    series = [_series("reward", records, "reward", 0)]
    if any(record["reward"] != record["success_rate"] for record in records):
        series.append(_series("success rate", records, "success_rate", 1))
    return line_chart(series, low=0.0)


def margin_chart(records: Sequence[Record]) -> str:
    """How far a reward model's scores of a pair lie apart."""
    return line_chart([_series("r(chosen) − r(rejected)", records, "margin", 1)])


def held_out_chart(held_out: Sequence[HeldOutStatus]) -> str:
    """Held-out accuracy, in all and per family."""
    families = sorted({family for h in held_out for family in h.families})
    lines = [Series("all", [(h.iteration, h.accuracy) for h in held_out], 0, marks=True)]
    for index, family in enumerate(families):
        points = [(h.iteration, h.families[family]) for h in held_out if family in h.families]
        lines.append(Series(family or "(no family)", points, 1 + index, faint=True, marks=True))
    return line_chart(lines, low=0.0, high=1.0)


def length_chart(records: Sequence[Record]) -> str:
    """Mean answer length in tokens."""
    return line_chart([_series("tokens per answer", records, "response_length", 2)], low=0.0)


def gap_chart(records: Sequence[Record]) -> str:
    """How far trainer and engine disagree about the same tokens."""
    return line_chart([_series("|Δ log-prob| per token", records, "logprob_gap", 3)], logarithmic=True)


def ending_chart(records: Sequence[Record]) -> str:
    """How answers ended, and how many taught nothing."""
    keys = (
        ("ended by themselves", "stopped", 4),
        ("cut by length", "cut", 3),
        ("looped", "repeated", 7),
        ("zero advantage", "zero_advantage", 9),
    )
    return line_chart([_series(label, records, key, color) for label, key, color in keys], low=0.0, high=1.0)


def time_chart(records: Sequence[Record]) -> str:
    """Seconds per phase of every iteration; of a long job, means of several."""
    step = max(1, math.ceil(len(records) / BARS))
    stretches = [records[at : at + step] for at in range(0, len(records), step)]
    phases = [by_phase(added_seconds(*(record["seconds"] for record in stretch))) for stretch in stretches]
    shown = [name for name in (*PHASES[:-1], HAND_OVER, "other") if any(p.get(name, 0.0) > 0 for p in phases)]
    order = (*PHASES[:-1], HAND_OVER, "other")
    columns = [
        Column(stretch[0]["iteration"], stretch[-1]["iteration"], [p.get(name, 0.0) / len(stretch) for name in shown])
        for stretch, p in zip(stretches, phases, strict=True)
    ]
    note = f'<p class="note">Each bar is the mean of {step} iterations.</p>' if step > 1 else ""
    return stacked_bars(columns, shown, [min(10, order.index(name)) for name in shown]) + note


def by_phase(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds with the small steps of the hand-over summed up; `total` left out."""
    return added_seconds(*({name if name in PHASES else HAND_OVER: value} for name, value in seconds.items() if name != "total"))


def summary(status: JobStatus, records: Sequence[Record], warm_start: str) -> str:
    """The figures that matter, as a table."""
    rows = [
        ("Phase", escape(status.phase)),
        ("Iterations", f"{len(records)} of {status.iterations}"),
        ("Weights", f"version {status.policy_version}"),
    ]
    if status.rewards:
        count = max(1, min(3, len(status.rewards) // 2))
        first, last = sum(status.rewards[:count]) / count, sum(status.rewards[-count:]) / count
        rows.append(("Mean reward", f"{first:.3f} → {last:.3f}" + (f" <small>(means of {count} iterations)</small>" if count > 1 else "")))
    if status.held_out:
        first_held, last_held = status.held_out[0], status.held_out[-1]
        change = 100 * (last_held.accuracy - first_held.accuracy)
        rows.append(
            (
                "Held-out accuracy",
                f"{first_held.accuracy:.1%} → {last_held.accuracy:.1%} <small>({change:+.1f} points, {last_held.count} prompts)</small>",
            )
        )
        rows += [
            (f"<small>{escape(family or '(no family)')}</small>", f"{first_held.families.get(family, 0.0):.1%} → {accuracy:.1%}")
            for family, accuracy in sorted(last_held.families.items())
        ]
    if warm_start:
        rows.append(("Warm start", warm_start))
    if records:
        if tokens := sum(r["tokens"] for r in records):
            last = records[-1]["tokens_per_second"]
            rows.append(("Tokens generated", f"{tokens:,} <small>(last iteration {last:,.0f} per second)</small>"))
        rows.append(("Time in iterations", _duration(sum(r["seconds"]["total"] for r in records))))
    if status.last_failure is not None:
        failure = status.last_failure
        when = f" <small>({failure.at:%Y-%m-%d %H:%M:%S} UTC)</small>" if failure.at is not None else ""
        rows.append(("Last failure", escape(f"{failure.stage} on {failure.pod}: {failure.message}") + when))
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows) + "</table>"


def time_table(records: Sequence[Record]) -> str:
    """Seconds and share of every step, over all iterations."""
    seconds = added_seconds(*(r["seconds"] for r in records))
    total = seconds.pop("total", 0.0)
    rows = sorted(seconds.items(), key=lambda item: -item[1])
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:,.1f}</td><td>{value / len(records):,.2f}</td><td>{value / max(total, 1e-9):.1%}</td></tr>"
        for name, value in rows
    )
    head = "<tr><th>step</th><th>seconds</th><th>per iteration</th><th>share</th></tr>"
    return f'<table class="numbers">{head}{body}</table>' if rows else ""


def samples(pairs: Sequence[Pair]) -> str:
    """Held-out questions with the first and the newest policy's answers."""
    head = "<tr><th>question</th><th>before</th><th>after</th></tr>"
    body = "".join(
        f"<tr><td>{_text(p.before.question)}<br><small>{escape(p.before.family)}</small></td>"
        f"{_answer(p.before.answer, p.before.right)}{_answer(p.after.answer, p.after.right)}</tr>"
        for p in pairs
    )
    return f'<table class="samples">{head}{body}</table>' if pairs else ""


def _answer(text: str, right: bool) -> str:
    mark = "right" if right else "wrong"
    return f'<td class="{mark}"><b>{"✓" if right else "✗"}</b> {_text(text)}</td>'


def _text(text: str) -> str:
    shown = text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]} … ({len(text) - LONGEST_ANSWER:,} more characters)"
    return escape(shown).replace("\n", "<br>")


def _series(label: str, records: Sequence[Record], key: str, color: int) -> Series:
    return Series(label, [(record["iteration"], record[key]) for record in records], color, marks=len(records) <= 30)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
