"""Charts as inline SVG. Colours are CSS variables of the page, so that they follow its dark or light theme."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, WIDE, HEIGHT = 560, 1160, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
POINTS = 500
"""Of a line, at most: about one a pixel."""
MARKS = 100
"""Points that have room for a dot each."""
BARS = 250
"""Of a chart, at most."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    """(x, y); x is an iteration."""
    color: int
    """Index into the page's palette, `--c0` to `--c10`, or beyond it."""
    marks: bool = False
    """A dot at each point, while there is room."""
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """The range of an axis, and where its grid lines are."""

    low: float
    high: float
    ticks: tuple[float, ...]


@dataclass(frozen=True)
class Column:
    """One bar of a chart."""

    first: int
    last: int
    """The iterations that it stands for; of several it shows the mean."""
    parts: Sequence[float]


def nice_axis(low: float, high: float, count: int = 5) -> Axis:
    """An axis that covers low to high with about `count` steps of 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # equal but for rounding: steps so small vanish beside the values
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


def line_chart(series: Sequence[Series], low: float | None = None, high: float | None = None, logarithmic: bool = False) -> str:
    """Lines over iterations; `low` and `high` are covered at least. Logarithmic charts leave values of 0 out."""
    kept = [Series(s.label, [p for p in s.points if not logarithmic or p[1] > 0], s.color, s.marks, s.faint) for s in series]
    points = [p for s in kept for p in s.points]
    if not points:
        return _empty()
    values = [math.log10(y) if logarithmic else y for _, y in points]
    least, most = min([*values, *_given(low)]), max([*values, *_given(high)])
    if most == low:
        most += 1.0  # all values are the lowest there can be: nothing below it is worth an axis
    y_axis = _log_axis(values) if logarithmic else nice_axis(least, most)
    x_axis = _iteration_axis([x for x, _ in points])
    scale = _Scale(x_axis, y_axis)
    body = [_frame(scale, (lambda v: f"1e{v:.0f}") if logarithmic else _number)]
    for one in sorted(kept, key=lambda s: not s.faint):
        placed = [(scale.x(x), scale.y(math.log10(y) if logarithmic else y)) for x, y in thinned(one.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        style = f'stroke="{_paint(one.color)}" fill="none" stroke-width="{1.2 if one.faint else 2}"' + (
            ' opacity=".6"' if one.faint else ""
        )
        body.append(f'<polyline points="{path}" {style}><title>{escape(one.label)}{_newest(one.points)}</title></polyline>')
        if (one.marks and len(placed) <= MARKS) or len(placed) == 1:
            titles = [f"{escape(one.label)}, iteration {x:g}: {y:.4g}" for x, y in one.points]
            body += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_paint(one.color)}"><title>{t}</title></circle>'
                for (x, y), t in zip(placed, titles, strict=True)
            ]
    return _svg(body, WIDTH) + _legend([(s.label, s.color) for s in kept if s.points] if len(kept) > 1 else [])


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about `POINTS` points, by x: of each stretch the lowest and the highest, so that no peak is lost, and both ends."""
    if len(points) <= POINTS:
        return points
    step = math.ceil(2 * len(points) / POINTS)
    kept = {points[0], points[-1]}
    for at in range(0, len(points), step):
        stretch = points[at : at + step]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def stacked_bars(columns: Sequence[Column], labels: Sequence[str], colors: Sequence[int]) -> str:
    """Bars over iterations, their parts (seconds by label) on top of each other."""
    if not columns:
        return _empty()
    y_axis = nice_axis(0.0, max(sum(column.parts) for column in columns) or 1.0)
    first, last = columns[0].first, columns[-1].last
    x_axis = Axis(first - 0.6, last + 0.6, _iteration_axis([first, last]).ticks)
    scale = _Scale(x_axis, y_axis, WIDE)
    body = [_frame(scale, _number)]
    for column in columns:
        base, span = 0.0, column.last - column.first + 1
        x, width = (column.first + column.last) / 2, max(1.0, min(36.0, 0.8 * (scale.x(span) - scale.x(0.0))))
        when = f"iteration {column.first}" if span == 1 else f"mean of iterations {column.first} to {column.last}"
        for part, label, color in zip(column.parts, labels, colors, strict=True):
            if part > 0:
                y, height = scale.y(base + part), scale.y(base) - scale.y(base + part)
                title = f"<title>{escape(label)}, {when}: {part:.2f} s</title>"
                place = f'x="{scale.x(x) - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.2f}"'
                body.append(f'<rect {place} fill="{_paint(color)}">{title}</rect>')
                base += part
    return _svg(body, WIDE) + _legend(list(zip(labels, colors, strict=True)))


@dataclass(frozen=True)
class _Scale:
    x_axis: Axis
    y_axis: Axis
    width: int = WIDTH

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low) * (HEIGHT - TOP - BOTTOM)


def _paint(color: int) -> str:
    """A colour of the palette; beyond it, hues that lie as far from each other as can be."""
    return f"var(--c{color})" if color <= 10 else f"hsl({137 * color % 360} 55% 50%)"


def _newest(points: Sequence[tuple[float, float]]) -> str:
    return f", iteration {points[-1][0]:g}: {points[-1][1]:.4g}" if points else ""


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _log_axis(exponents: Sequence[float]) -> Axis:
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    high = high if high > low else low + 1
    step = max(1, (high - low) // 5)
    return Axis(low, high, tuple(float(e) for e in range(low, high + 1, step)))


def _iteration_axis(values: Sequence[float]) -> Axis:
    """Whole iterations only."""
    low, high = min(values), max(values)
    if low == high:
        return Axis(low - 1, high + 1, (low,))
    grid = nice_axis(low, high, 8).ticks
    step = max(1, round(grid[1] - grid[0]))
    between = [float(t) for t in range(math.ceil(low / step) * step, int(high) + 1, step) if step / 2 <= min(t - low, high - t)]
    return Axis(low, high, (low, *between, high))


def _number(value: float) -> str:
    text = f"{value:.6g}"
    return "0" if text in ("-0", "0") or abs(value) < 1e-12 else text


def _frame(scale: _Scale, text: Callable[[float], str]) -> str:
    rows = []
    for tick in scale.y_axis.ticks:
        y = scale.y(tick)
        rows.append(f'<line x1="{LEFT}" x2="{scale.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        rows.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text(tick)}</text>')
    for tick in scale.x_axis.ticks:
        rows.append(f'<text x="{scale.x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    rows.append(f'<text x="{(LEFT + scale.width - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">iteration</text>')
    return "".join(rows)


def _svg(body: Sequence[str], width: int) -> str:
    return f'<svg viewBox="0 0 {width} {HEIGHT}" role="img">{"".join(body)}</svg>'


def _empty() -> str:
    return '<p class="none">Nothing yet.</p>'


def _legend(entries: Sequence[tuple[str, int]]) -> str:
    keys = "".join(f'<span><i style="background:{_paint(color)}"></i>{escape(label)}</span>' for label, color in entries)
    return f'<div class="legend">{keys}</div>' if keys else ""
