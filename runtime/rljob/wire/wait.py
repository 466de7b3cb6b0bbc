"""`python -m rljob.wire.wait FILE... [-- COMMAND...]`: end, or become COMMAND, once every FILE is there.

The first container of a pod that waits for what another pod makes on a shared volume. Without a deadline: whoever makes the files reports
why they are late. Needs nothing but the standard library.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence

POLL = 0.2
REPEAT = 60.0
"""Seconds between two lines that say what is still missing."""


def present(path: str) -> bool:
    """Is there an entry of that name? The folder is listed, because a network file system may go on answering from what it
    remembers of a file that was not there."""
    folder, name = os.path.split(path)
    try:
        return name in os.listdir(folder or ".")
    except (FileNotFoundError, NotADirectoryError):
        return False


def wait(
    files: Sequence[str],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    there: Callable[[str], bool] = present,
) -> None:
    """Return once all `files` are there.

    Raises:
        OSError: their folder cannot be listed.
    """
    waited = 0.0
    while missing := [path for path in files if not there(path)]:
        if waited % REPEAT < POLL:
            say(f"waiting for {' and '.join(missing)}")
        sleep(POLL)
        waited += POLL


def main(arguments: Sequence[str]) -> int:
    """Entry point; returns the exit status."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    files, command = words[:at], words[at + 1 :]
    wait(files, lambda line: print(line, file=sys.stderr, flush=True))
    if command:
        os.execvp(command[0], command)
    return 0


if __name__ == "__main__":
    import signal

    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
