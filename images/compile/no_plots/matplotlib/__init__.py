"""Stand-in for matplotlib in images, where nothing draws.

One package of prompt generators (cellpylib, which reasoning-gym imports) imports matplotlib for its functions that draw. The real one
and what it needs are 90 MB. Here the import succeeds, and whoever draws is told why it fails.
"""

from typing import NoReturn


def missing(name: str) -> NoReturn:
    """Raises ImportError: `name` of the real package is wanted."""
    raise ImportError(f"matplotlib.{name}: images hold no matplotlib, as nothing draws in them; it can be used outside")


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    missing(name)
