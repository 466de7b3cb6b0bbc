"""The `rljob` command, and `kubectl rljob`."""

from rljob.cli.main import kubectl_main, main

__all__ = ["kubectl_main", "main"]
