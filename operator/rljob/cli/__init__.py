"""The `rljob` command."""

from rljob.cli.main import main

__all__ = ["main"]
