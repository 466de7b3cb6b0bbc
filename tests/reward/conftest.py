"""What the tests of the reward service share."""

import os
from collections.abc import AsyncIterator

import pytest_asyncio

from rljob.reward.pool import WorkerPool


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """One warm worker."""
    made = WorkerPool(1, dict(os.environ))
    yield made
    await made.stop()
