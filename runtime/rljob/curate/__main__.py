"""`python -m rljob.curate JSON`: the process of `rljob data curate`. JSON is a `rljob.api.curation.Curation`."""

import asyncio
import os
import sys
from pathlib import Path

import httpx

from rljob.api.curation import Curation
from rljob.api.errors import exit_status
from rljob.api.verifiers import reward_models
from rljob.curate.run import curate
from rljob.reward.outside import Outside
from rljob.reward.pool import WorkerPool
from rljob.reward.scorers import Scorers
from rljob.wire.crowd import CrowdTransport
from rljob.wire.environment import Environment


async def main(spec: Curation) -> None:
    """Curate, with as many judges as there are cores."""
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    pool = WorkerPool(os.cpu_count() or 1, dict(os.environ))
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(timeout=None, headers=headers, limits=limits) as policy,
        httpx.AsyncClient(timeout=None, transport=CrowdTransport(), trust_env=False) as others,
    ):
        scorers = Scorers(os.environ, Path())
        judges = Outside(others, Environment.current().sandbox, environment=os.environ, scorers=scorers)
        try:
            await scorers.start(list(reward_models(spec.verifier, spec.options)))
            await curate(spec, pool, Outside(policy), judges, lambda line: print(line, flush=True))
        finally:
            await scorers.stop()


if __name__ == "__main__":
    sys.exit(exit_status(lambda: asyncio.run(main(Curation.model_validate_json(sys.argv[1])))))
