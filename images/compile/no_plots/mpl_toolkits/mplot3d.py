"""Stand-in: see the package matplotlib."""

from typing import Any

from matplotlib import missing


class Axes3D:
    """Cannot be made."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        missing("mplot3d.Axes3D")
