"""The `rljob` command, and `kubectl rljob`."""

import importlib
import locale
import os
import sys

__all__ = ["kubectl_main", "main"]


def main() -> None:
    """Entry point of `rljob`."""
    _command("main")


def kubectl_main() -> None:
    """Entry point of `kubectl rljob`."""
    _command("kubectl_main")


def _command(name: str) -> None:
    """Import it, which takes a second in which somebody may lose patience, and run it."""
    _begin()
    try:
        commands = importlib.import_module("rljob.cli.main")
    except KeyboardInterrupt:
        sys.exit(130)
    getattr(commands, name)()


def _begin() -> None:
    """Begin again if the locale is not of UTF-8: jobs, prompts and what processes of a job tell each other are UTF-8 on every machine.

    Arguments keep their bytes, and so names of files do; children inherit the variable.
    """
    if not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
