"""What a person sees while the job runs and at its end. Rendering is pure: a status in, rich objects or lines out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rljob.api.status import HeldOutStatus, JobStatus, LastFailure, NodeStatus

_BARS = "▁▂▃▄▅▆▇█"
_PHASES = {
    "Preparing": "preparing",
    "WarmStart": "warm start",
    "Rollout": "rollout",
    "Training": "training",
    "Evaluating": "evaluation",
    "Finishing": "finishing",
}


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last `width` values as a row of bars, scaled between their smallest and largest."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1))] for v in shown)


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(seconds: float) -> str:
    """`0.3 s`, `41 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def ago(when: datetime, now: datetime) -> str:
    """`20 seconds ago`, `3 minutes ago`, `5 hours ago`, `2 days ago`; rounded down."""
    seconds = max(0, int((now - when).total_seconds()))
    size, unit = next(((s, u) for s, u in ((86400, "day"), (3600, "hour"), (60, "minute")) if seconds >= s), (1, "second"))
    count = seconds // size
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def last_failure(failure: LastFailure, now: datetime) -> str:
    """What failed where, when (if that is known) and why."""
    when = ago(failure.at, now) if failure.at is not None else ""
    # What befell the job as a whole, such as its deadline, was in no pod.
    return f"{', '.join(part for part in (failure.pod, failure.stage, failure.reason, when) if part)}: {failure.message}"


def percent(share: float) -> str:
    """`61.3 %`."""
    return f"{100 * share:.1f} %"


def changes(before: JobStatus | None, after: JobStatus) -> list[str]:
    """What is worth a line that stays: finished iterations, evaluations, failures, and each new phase before the first iteration."""
    lines = []
    known = before.finished if before else 0
    for index in range(max(0, known - after.rewards_before), len(after.rewards)):
        lines.append(_iteration_line(after, index))
    evaluated = {h.iteration for h in before.held_out} if before else set()
    for held_out in after.held_out:
        if held_out.iteration not in evaluated:
            lines.append(_held_out_line(held_out))
    failure = after.last_failure
    if failure is not None and (before is None or not _same(before.last_failure, failure)):
        lines.append(f"{failure.pod} failed at {failure.stage}: {failure.message}")
    if not after.rewards and (before is None or before.phase != after.phase) and after.phase in ("WarmStart", "Evaluating", "Rollout"):
        lines.append(f"{_PHASES[after.phase]} began")
    return lines


def _same(before: LastFailure | None, after: LastFailure) -> bool:
    """Whether a failure says what the one before has said: one that comes back by the minute is one line."""
    return before is not None and before.model_copy(update={"at": after.at}) == after


def _iteration_line(status: JobStatus, index: int) -> str:
    line = f"iteration {status.rewards_before + index + 1}/{status.iterations}: mean reward {status.rewards[index]:.3f}"
    if index + 1 == len(status.rewards) and status.timings:
        phases = dict(status.timings)
        judging = phases.pop("reward-wait", None)
        parts = sorted(phases.items(), key=lambda item: -item[1])
        shown = [f"{name} {span(seconds)}" for name, seconds in parts[:4] if seconds >= 0.05]
        # What judging adds is shown however little it is.
        line += f" ({', '.join(shown + ([f'judging +{span(judging)}'] if judging is not None else []))})"
    return line


def _held_out_line(held_out: HeldOutStatus) -> str:
    when = "before the first iteration" if held_out.iteration == 0 else f"after iteration {held_out.iteration}"
    count = f" ({held_out.count} prompts)" if held_out.count else ""
    return f"held-out accuracy {when}: {percent(held_out.accuracy)}{count}"


def live(job: str, status: JobStatus | None, elapsed: float, note: str) -> RenderableType:
    """The screen of the moment. `note`: what to say while the job itself says nothing yet."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=9)
    grid.add_column()
    if status is None:
        grid.add_row("now", Text(note or "starting", overflow="ellipsis", no_wrap=True))
        return Group(_head(job, "preparing", "", elapsed), grid)
    if status.progress is not None:
        grid.add_row(_PHASES.get(status.phase, status.phase.lower()), _progress(status))
    for node in status.nodes:
        grid.add_row(node.name, _node(node))
    if status.rewards:
        first, last = status.rewards[0], status.rewards[-1]
        grid.add_row("reward", Text.assemble((sparkline(status.rewards), "green"), f"  {first:.3f} → {last:.3f}"))
    if status.held_out:
        accuracies = [h.accuracy for h in status.held_out]
        curve = sparkline(accuracies) if len(accuracies) > 1 else ""
        grid.add_row("held-out", Text.assemble((curve, "cyan"), f"  {' → '.join(percent(a) for a in ends(accuracies))}"))
    in_loop = status.iteration > 0 and status.phase not in ("Preparing", "WarmStart")
    counted = f"iteration {min(status.iteration, status.iterations)}/{status.iterations}" if in_loop else ""
    return Group(_head(job, _PHASES.get(status.phase, status.phase.lower()), counted, elapsed), grid)


def ends[T](values: Sequence[T]) -> Sequence[T]:
    """The first and the last."""
    return [values[0], values[-1]] if len(values) > 1 else values


def _head(job: str, phase: str, counted: str, elapsed: float) -> Text:
    return Text.assemble((job, "bold"), "  ", (phase, "bold cyan"), "  ", counted, "  ", (clock(elapsed), "dim"))


def _progress(status: JobStatus) -> RenderableType:
    assert status.progress is not None
    done, total = status.progress.done, max(1, status.progress.total)
    speed = f"  {status.tokens_per_second:,.0f} tokens/s" if status.tokens_per_second and status.phase in ("Rollout", "Evaluating") else ""
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=total, completed=done, width=40), f"{done:,}/{total:,} {status.progress.unit}{speed}")
    return row


def _node(node: NodeStatus) -> RenderableType:
    text = Text.assemble((node.step, "cyan"), f" {span(node.step_seconds)}")
    if node.progress is not None and node.progress.total:
        text.append(f"  {node.progress.done}/{node.progress.total} {node.progress.unit}")
    if node.failure:
        text.append(f"  {node.failure}", style="red")
    return text


@dataclass(frozen=True)
class Result:
    """What the summary is made of."""

    job: str
    status: JobStatus
    seconds: float
    """Of this run."""
    phases: Mapping[str, float]
    folder: Path


def summary(result: Result) -> list[tuple[str, str]]:
    """Label and text of every line of the end's summary."""
    status = result.status
    rows = []
    if status.rewards:
        count = max(1, min(3, len(status.rewards) // 2))
        first, last = sum(status.rewards[:count]) / count, sum(status.rewards[-count:]) / count
        over = f" (means of the first and last {count} iterations)" if count > 1 else ""
        rows.append(("mean reward", f"{first:.3f} → {last:.3f}{over}"))
    rows += _held_out_rows(status.held_out)
    phases = [(_PHASES[name], seconds) for name, seconds in result.phases.items() if seconds >= 0.5 and name in _PHASES]
    if phases:
        rows.append(("time", " · ".join(f"{name} {span(seconds)}" for name, seconds in phases)))
    for label, name in (("model", "model"), ("report", "report.html"), ("metrics", "metrics.jsonl")):
        if (result.folder / name).exists():
            rows.append((label, str(result.folder / name)))
    return rows


def _held_out_rows(held_out: Sequence[HeldOutStatus]) -> list[tuple[str, str]]:
    if not held_out:
        return []
    first, last = held_out[0], held_out[-1]
    count = f", {last.count} prompts" if last.count else ""
    change = f"{percent(first.accuracy)} → {percent(last.accuracy)} ({100 * (last.accuracy - first.accuracy):+.1f} points{count})"
    rows = [("held-out accuracy", change)]
    if len(last.families) > 1:
        for family, accuracy in sorted(last.families.items()):
            before = first.families.get(family)
            rows.append((f"  {family}", f"{percent(before)} → {percent(accuracy)}" if before is not None else percent(accuracy)))
    return rows


def next_step(model: Path, python: str) -> str:
    """A command that talks to the trained model."""
    return (
        f'{python} -c "from transformers import pipeline as p; '
        f"print(p('text-generation', '{model}')([{{'role': 'user', 'content': 'Hello'}}], max_new_tokens=64)"
        "[0]['generated_text'][-1]['content'])\""
    )


def use_as_verifier(model: Path) -> str:
    """The part of a job that names a trained reward model."""
    return f"reward: {{verifier: reward-model, options: {{folder: {model}}}}}"
