"""The reward service's process: `python -m rljob.reward`."""

import asyncio
import os
import sys

import uvicorn

from rljob.api import ConfigurationError, RLJobError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.api.verifiers import JudgeOptions, RewardModelOptions, judges, named, reward_models
from rljob.reward.app import create_app
from rljob.reward.outside import NoAnswerError
from rljob.reward.pool import WorkerPool
from rljob.reward.scorers import Scorers
from rljob.reward.verifiers.language_model import api_key
from rljob.wire.connections import IDLE_SECONDS
from rljob.wire.environment import Environment


async def serve(environment: Environment) -> bool:
    """Start what judges, then answer until told to stop; whether it came to answering.

    Raises:
        ConfigurationError: a key is missing, a reward model cannot be loaded, or no worker process can start.
    """
    reward = environment.job.spec.reward
    host, port = environment.listen("reward")
    models = list(reward_models(reward.verifier, reward.options))
    asked: list[JudgeOptions | RewardModelOptions] = [*judges(reward.verifier, reward.options), *models]
    for judge in asked:
        try:
            api_key(judge, os.environ)
        except NoAnswerError as error:
            raise ConfigurationError(f"spec.reward.options: {error}") from None
    pool, scorers = WorkerPool(reward.workers, dict(os.environ)), Scorers(dict(os.environ), environment.source)
    try:
        await scorers.start(models)
        await pool.start()
    except BaseException:
        await asyncio.gather(pool.stop(), scorers.stop())
        raise
    targets = frozenset(named(reward.verifier, reward.options))
    app = create_app(pool, reward.timeout_seconds, warm=False, sandbox=environment.sandbox, named=targets, scorers=scorers)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    await server.serve()
    return server.started


if __name__ == "__main__":
    try:
        answered = asyncio.run(serve(Environment.current()))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    except RLJobError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0 if answered else 3)
