"""The sandbox's process: `python -m rljob.sandbox`. `rljob sandbox serve` starts it by itself, a job's plan as part of a job."""

import asyncio
import os
import sys
from collections.abc import Mapping

from rljob.api import ConfigurationError
from rljob.api.errors import EXIT_CONFIGURATION, RLJobError
from rljob.sandbox.pool import Pool, PoolSettings
from rljob.sandbox.server import serve
from rljob.wire.environment import Environment

_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "TZ")
_KEPT_PREFIXES = ("LC_", "PYTHON", "RLJOB_")
_CLEAN = "RLJOB_SANDBOX_CLEAN"


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that this process needs. Others may be tokens of whoever started it."""
    return {name: text for name, text in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


def main(environment: Environment) -> int:
    """Serve until told to stop. Returns the exit status."""
    spec = environment.sandbox_settings
    host, port = environment.listen("sandbox")
    pool = Pool(PoolSettings(slots=spec.slots, minimum=spec.minimum, backend=spec.backend, memory_mb=spec.memory_mb))
    return asyncio.run(serve(pool, host, port, spec.queue))


if __name__ == "__main__":
    if _CLEAN not in os.environ:
        # A new image of the process, because the old one's memory holds the variables it was started with, and slots are forked from it.
        os.execve(sys.executable, [sys.executable, "-m", "rljob.sandbox"], without_secrets(os.environ) | {_CLEAN: "1"})
    try:
        sys.exit(main(Environment.current()))
    except (RLJobError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1)
