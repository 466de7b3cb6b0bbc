"""The service with the real pool."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rljob.sandbox.pool import Pool, PoolSettings
from rljob.sandbox.queue import Place
from rljob.sandbox.service import Service
from rljob.wire.sandbox import JudgeRequest, JudgeResult


@asynccontextmanager
async def real_service(slots: int = 2) -> AsyncIterator[Service]:
    """A service that can judge; its slots are ended with the block."""
    pool = Pool(PoolSettings(slots=slots))
    await pool.start()
    try:
        yield Service(pool, capacity=100)
    finally:
        await pool.stop()


async def judged(service: Service, **request: Any) -> JudgeResult:
    """The verdict on a request, checked like one that came over HTTP."""
    asked = JudgeRequest.model_validate(request)
    service.check(asked)
    return await service.judge(asked, Place(1))
