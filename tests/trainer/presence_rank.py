"""A rank that only attends: `python -m tests.trainer.presence_rank RANK SIZE PORT` prints `begun` when all are there, then lives on."""

import signal
import sys

from rljob.trainer.presence import attend


def main() -> None:
    attend(int(sys.argv[1]), int(sys.argv[2]), "127.0.0.1", int(sys.argv[3]))
    print("begun", flush=True)
    while True:
        signal.pause()  # as in a collective: only the watching thread can end it


if __name__ == "__main__":
    main()
