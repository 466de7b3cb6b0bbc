"""`python -m rljob.master`. Exit status 0: the job succeeded, 2: the user has to change something, 3: the
job has failed for good, 143 (130): stopped by SIGTERM (SIGINT), 1: anything else. A stopped master does not exit with 0, because that
would mean that the job is done."""

import asyncio
import logging
import signal
import sqlite3
import sys

from pydantic import ValidationError

from rljob.api import ConfigurationError, JobFailed, RLJobError
from rljob.api.errors import EXIT_CONFIGURATION, EXIT_FAILED, explained
from rljob.master.app import main
from rljob.wire.clock import steady_time
from rljob.wire.environment import Environment


def _line(error: BaseException) -> str:
    """One line for a person."""
    if isinstance(error, OSError) and error.errno is not None:
        return explained(error)
    if isinstance(error, sqlite3.OperationalError):
        return f"the state database cannot be opened or written ({error}): check space and permissions of the state volume, then resume"
    return str(error) if isinstance(error, RLJobError) else f"{type(error).__name__}: {error}"


async def _interruptible() -> signal.Signals | None:
    """Run until the job ends, or until a signal asks to stop: which. A stopped master has lost nothing but unfinished answers."""
    work = asyncio.create_task(main(Environment.current(), steady_time))
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        # Once: a second one would cut off what the first has begun to put in order.
        if not received:
            work.cancel()
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if not received:
            raise
        return received[0]
    return None


def run() -> int:
    """The process; this is the boundary where every error becomes an exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        stopped_by = asyncio.run(_interruptible())
    except BaseExceptionGroup as group:
        return _failed(group)
    except (RLJobError, ValidationError, OSError, sqlite3.Error) as error:
        return _failed(error)
    if stopped_by is not None:
        print("stopped; start again on the same state to go on", file=sys.stderr)
        return 128 + stopped_by
    return 0


def _failed(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"error: {' '.join(_line(error).split())}", file=sys.stderr)
    if isinstance(error, ConfigurationError | ValidationError):
        return EXIT_CONFIGURATION
    return EXIT_FAILED if isinstance(error, JobFailed) else 1


if __name__ == "__main__":
    sys.exit(run())
