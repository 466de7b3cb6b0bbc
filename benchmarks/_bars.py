"""Figures as bars, for the last column of a table."""

from collections.abc import Sequence

from rich.table import Table

WIDTH = 16
"""Characters of the longest bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bars(values: Sequence[float]) -> list[str]:
    """A bar for each value, the largest one `WIDTH` long."""
    longest = max(values, default=0.0) or 1.0
    return [_bar(max(0.0, value) / longest) for value in values]


def _bar(share: float) -> str:
    whole, eighths = divmod(round(share * WIDTH * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths]).rstrip()


def add_bar_column(table: Table, heading: str) -> None:
    """The column that `bars` go into; they are never cut."""
    table.add_column(heading, no_wrap=True, min_width=WIDTH)
