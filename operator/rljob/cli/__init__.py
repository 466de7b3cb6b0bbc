"""The `rljob` command, and `kubectl rljob`."""

import locale
import os
import sys

__all__ = ["kubectl_main", "main"]


def main() -> None:
    """Entry point of `rljob`."""
    _begin()
    try:
        from rljob.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


def kubectl_main() -> None:
    """Entry point of `kubectl rljob`."""
    _begin()
    try:
        from rljob.cli.main import kubectl_main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


def _begin() -> None:
    """Begin again if the locale is not of UTF-8: jobs, prompts and what processes of a job tell each other are UTF-8 on every machine.

    Arguments keep their bytes, and so names of files do; children inherit the variable.
    """
    if not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
