"""Outlives the supervisor and cleans up after it: `python -m rljob.local.guardian RUN FOLDER...`.

Its standard input is a pipe that only the supervisor holds open. The kernel closes the pipe when the supervisor ends, however it ends; then
every process of the run is killed and its temporary folders are removed. After a clean end there is nothing left to do.
"""

import os
import signal
import sys

from rljob.local.marked import sweep


def main(arguments: list[str]) -> int:
    """Wait for the end of the supervisor, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    return 1 if sweep(arguments[0], arguments[1:]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
