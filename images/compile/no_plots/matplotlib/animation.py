"""Stand-in: see the package."""

from typing import NoReturn

from matplotlib import missing


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    missing(f"animation.{name}")
