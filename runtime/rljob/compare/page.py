"""The comparison as one self-contained HTML page. Pure. Answers are strangers' text: all of it is escaped."""

from collections.abc import Sequence
from html import escape

from rljob.compare.figures import Pair
from rljob.compare.records import Labelled
from rljob.compare.run import HEADS, PAIR_HEADS, Result, pair_rows, percent, rows
from rljob.master.page.layout import page, section

_SHOWN, _LONGEST = 20, 600
"""Disagreements of each verifier, and characters of an answer."""
_ROW, _LEFT, _WIDTH = 30, 170, 760


def comparison_page(answers: Sequence[Labelled], results: Sequence[Result], found: Sequence[tuple[str, str, Pair]]) -> str:
    """The whole page."""
    right = sum(one.label for one in answers)
    subtitle = f"{len(answers)} answers labelled by people: {right} right, {len(answers) - right} wrong"
    sections = [
        section("Accuracy", _bars(results), "The line is where the true accuracy lies with 95 % confidence.", wide=True),
        section(
            "Verifiers", _table(HEADS, rows(results), "numbers"), "Failed judgements count nowhere. Tokens are those of judges.", wide=True
        ),
        section(
            "In pairs",
            _table(PAIR_HEADS, pair_rows(found), "numbers") if found else "",
            "p: how likely numbers so uneven are if both verifiers are equally good; below 0.05 one is better.",
            wide=True,
        ),
        *(section(f"{escape(one.name)} against people", _disagreements(answers, one), wide=True) for one in results),
    ]
    return page("Verifiers compared", subtitle, sections, live=False)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<table class="{kind}"><tr>{head}</tr>{body}</table>'


def _bars(results: Sequence[Result]) -> str:
    """A bar of each accuracy with its interval, from 0 to 100 %."""

    def x(share: float) -> float:
        return _LEFT + share * (_WIDTH - _LEFT - 60)

    parts = []
    for number, one in enumerate(results):
        accuracy, y = one.standing.accuracy, number * _ROW
        low, high = accuracy.interval
        parts.append(
            f'<text x="0" y="{y + 19}">{escape(one.name[:26])}</text>'
            f'<rect x="{_LEFT}" y="{y + 6}" width="{x(accuracy.value or 0.0) - _LEFT:.1f}" height="18" fill="var(--c0)"/>'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y + 15}" y2="{y + 15}" stroke="var(--c1)" stroke-width="3"/>'
            f'<text x="{x(1.0) + 6:.1f}" y="{y + 19}">{percent(accuracy)}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {len(results) * _ROW}" role="img" aria-label="Accuracy of each verifier">{"".join(parts)}</svg>'


def _disagreements(answers: Sequence[Labelled], result: Result) -> str:
    """The first answers that the verifier and the person see differently, wrongly rewarded ones first."""
    pairs = list(zip(answers, result.judged, strict=True))
    different = [(one, said) for one, said in pairs if said.right is not None and said.right != one.label]
    different.sort(key=lambda both: both[0].label)
    failed = [(one, said) for one, said in pairs if said.right is None]
    lines = []
    for one, said in [*different, *failed][:_SHOWN]:
        what = "failed" if said.right is None else "refused wrongly" if one.label else "rewarded wrongly"
        reference = one.reference if isinstance(one.reference, str) else repr(one.reference)
        lines.append((what, _cut(one.prompt), _cut(one.answer), _cut(reference), _cut(said.reason)))
    if not lines:
        return '<p class="none">No difference.</p>'
    more = len(different) + len(failed) - len(lines)
    rest = f'<p class="note">{more} more in the .json file.</p>' if more else ""
    return _table(("", "prompt", "answer", "reference", "reason"), lines, "samples") + rest


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
