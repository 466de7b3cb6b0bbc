"""The report."""

from rljob.master.parts import Parts


def report_page(parts: Parts, live: bool = False) -> str:
    """The page."""
    return "<svg></svg>"
