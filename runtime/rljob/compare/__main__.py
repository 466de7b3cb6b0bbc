"""`python -m rljob.compare JSON OUT`: the process of `rljob reward compare`. JSON is a `rljob.api.comparison.Comparison`."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from rljob.api.comparison import Comparison
from rljob.api.errors import exit_status
from rljob.compare.page import comparison_page
from rljob.compare.records import read
from rljob.compare.run import HEADS, PAIR_HEADS, World, compare, pair_rows, pairs, record, rows, table, write
from rljob.reward.app import CONNECTIONS
from rljob.reward.pool import WorkerPool
from rljob.reward.scorers import Scorers
from rljob.wire.crowd import CrowdTransport
from rljob.wire.environment import Environment


async def main(spec: Comparison, out: Path) -> None:
    """Compare, print, write.

    Raises:
        ConfigurationError: the answers cannot be read or judged.
    """
    answers = read(Path(spec.data))
    async with AsyncExitStack() as stack:
        pool = WorkerPool(os.cpu_count() or 1, dict(os.environ))
        stack.push_async_callback(pool.stop)
        # As the reward service does it.
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=None, transport=CrowdTransport(most=CONNECTIONS), trust_env=False))
        scorers = Scorers(os.environ, Path(spec.data).parent)
        stack.push_async_callback(scorers.stop)
        world = World(pool, http, Environment.current().sandbox, os.environ, scorers)
        results = await compare(spec, answers, world, lambda line: print(line, flush=True))
    found = pairs(answers, results)
    for line in ["", *table(HEADS, rows(results)), *(["", *table(PAIR_HEADS, pair_rows(found))] if found else []), ""]:
        print(line)
    write(out, comparison_page(answers, results, found), record(spec, results, found))
    print(f"page: {out}")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: asyncio.run(main(Comparison.model_validate_json(sys.argv[1]), Path(sys.argv[2])))))
