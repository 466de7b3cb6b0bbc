"""The init container's process. Exit status 0: done; 2: the user has to change something; 1: try again."""

import os
import signal
import sys

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from rljob.api import ConfigurationError, InfrastructureError
from rljob.api.errors import EXIT_CONFIGURATION, explained
from rljob.prepare.preparation import Folders, prepare
from rljob.wire.environment import Environment


def main(environment: Environment) -> None:
    """Prepare the job that the environment names."""
    # The image of this process has no torch. Where there is one, transformers would load it with every tokenizer: two thirds of the time.
    sys.modules["torch"] = None  # type: ignore[assignment]
    folders = Folders(
        model=environment.directory("model"),
        data=environment.directory("data"),
        cache=environment.directory("cache"),
        source=environment.source,
    )
    prepare(environment.job.spec, folders, lambda line: print(f"prepare: {line}", file=sys.stderr, flush=True))


if __name__ == "__main__":
    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(Environment.current())
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    except (InfrastructureError, OSError) as error:
        print(f"error: {explained(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        sys.exit(1)
