"""The reward service's process: `python -m rljob.reward`."""

import os
import sys

import uvicorn

from rljob.api import ConfigurationError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.api.verifiers import judges, named
from rljob.reward.app import create_app
from rljob.reward.outside import NoAnswerError
from rljob.reward.pool import WorkerPool
from rljob.reward.verifiers.language_model import api_key
from rljob.wire.environment import Environment


def main(environment: Environment) -> None:
    """Serve until told to stop."""
    reward = environment.job.spec.reward
    host, port = environment.listen("reward")
    for judge in judges(reward.verifier, reward.options):
        try:
            api_key(judge, os.environ)
        except NoAnswerError as error:
            raise ConfigurationError(f"spec.reward.options: {error}") from None
    pool = WorkerPool(reward.workers, dict(os.environ))
    targets = frozenset(named(reward.verifier, reward.options))
    app = create_app(pool, reward.timeout_seconds, warm=True, sandbox=environment.sandbox, named=targets)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    try:
        main(Environment.current())
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
