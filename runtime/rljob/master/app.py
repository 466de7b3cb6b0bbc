"""Puts the master together and runs it: the loop, HTTP, engine polling, scoring, status files."""

import asyncio
import logging
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rljob.api import ConfigurationError, RLJob, RLJobError
from rljob.master.activity import Activity
from rljob.master.decisions.identity import differences, identity
from rljob.master.engines import Engine, EnginePool
from rljob.master.exchange import Exchange
from rljob.master.inputs import Inputs, read_inputs, read_tokenizer
from rljob.master.lastwords import leave
from rljob.master.loop import Loop
from rljob.master.nodes import Nodes
from rljob.master.outputs import Outputs
from rljob.master.parts import Folders, Parts, State
from rljob.master.scoring import Decode, HttpRewardService, RewardService, Scorer
from rljob.master.service import Service
from rljob.master.state import Buffer, Database, History, Versions
from rljob.master.status import job_status
from rljob.master.timing import Clock, Stopwatch
from rljob.master.watch import Watch
from rljob.rollout.client import EngineClient
from rljob.wire.connections import IDLE_SECONDS
from rljob.wire.crowd import CrowdTransport
from rljob.wire.environment import Environment

log = logging.getLogger(__name__)

REVISIONS_PER_START = 1 << 20
"""Each start of the master numbers its wishes from a multiple of this, so that no node mistakes a new wish for an old one."""


@dataclass(frozen=True)
class Outside:
    """The world as the master meets it; tests bring their own."""

    connect: Callable[[str], Engine]
    reward: RewardService
    clock: Clock


def open_state(database: Database, job: RLJob, inputs: Inputs, now: float) -> State:
    """The durable state, made at the job's first start.

    Raises:
        ConfigurationError: it belongs to another job.
    """
    state = State(database, Buffer(database, {p.id: p for p in inputs.train}), Versions(database), History(database))
    current, stored = identity(job, inputs.prepared.digest), database.get("identity")
    if stored is not None and (found := differences(stored, current)):
        raise ConfigurationError(
            f"the state in {database.path.parent} is of another job: {'; '.join(found)}. "
            "Undo these changes to go on, or start afresh in an empty folder"
        )
    with database.transaction("start"):
        if stored is None:
            database.put("started", now)
            state.versions.start(now)
        database.put("identity", current)
        database.put("starts", (database.get("starts") or 0) + 1)
    return state


def assemble(job: RLJob, folders: Folders, inputs: Inputs, decode: Decode, database: Database, outside: Outside) -> Parts:
    """All parts, wired; within a running event loop."""
    spec, clock = job.spec, outside.clock
    state = open_state(database, job, inputs, clock())
    starts = int(database.get("starts"))
    nodes, watch = Nodes(starts * REVISIONS_PER_START, clock), Watch(spec.backoff_limit)
    pool = EnginePool(
        outside.connect,
        watch,
        clock,
        max_sequences=spec.rollout.engine.max_sequences,
        stall_seconds=spec.switch.deadline_seconds,
        name=f"{job.metadata.name}-{starts}",
        vocabulary=inputs.prepared.vocab_size,
    )
    scorer = Scorer(outside.reward, watch, clock, spec.reward.replicas, spec.switch.deadline_seconds, spec.backoff_limit)
    nodes.observers += [lambda report: watch.reported(report, nodes.workers_away()), pool.observe]
    exchange = Exchange(nodes, clock)
    return Parts(job, folders, inputs, decode, state, nodes, exchange, pool, scorer, watch, Stopwatch(clock), Activity(clock), clock)


async def run_job(parts: Parts) -> None:
    """The loop and all that goes on beside it, until the job has ended.

    Raises:
        RLJobError: why it failed. Status and report are written in either case.
    """
    outputs = Outputs(parts)
    try:
        await _until_done(parts, outputs)
        parts.activity.begin("Succeeded")
        leave(job_status(parts))
    except RLJobError as error:
        parts.activity.begin("Failed")
        if not parts.watch.over:
            parts.watch.failed("master", "loop", type(error).__name__, str(error))
        raise
    finally:
        outputs.write()


async def _until_done(parts: Parts, outputs: Outputs) -> None:
    """Run everything; the end of the loop or the first error ends the rest."""
    beside = [parts.pool.poll(), parts.scorer.run(), parts.watch.ended(), outputs.keep()]
    tasks = [asyncio.create_task(work) for work in (Loop(parts).run(), *beside)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except BaseExceptionGroup as group:
        raise _first(group) from group
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person should see: ours if there is one among them."""
    ours, _ = group.split(RLJobError)
    inner: BaseException = ours or group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


async def main(environment: Environment, clock: Clock) -> None:
    """The master's process: from its environment to the end of the job.

    Raises:
        RLJobError: why there is no good end.
    """
    job = environment.job
    folders = Folders(**{name: environment.directory(name) for name in ("model", "data", "state", "output", "checkpoints")})
    with listening(environment.listen("master")) as listener:
        log.info("listening on %s:%d", *listener.getsockname()[:2])
        inputs, decode, database = read_inputs(folders.data), read_tokenizer(folders.model), open_database(folders.state)
        try:
            async with httpx.AsyncClient(transport=CrowdTransport(), timeout=30) as http:
                outside = Outside(lambda url: EngineClient(url, http), HttpRewardService(_reward(environment, job), http), clock)
                parts = assemble(job, folders, inputs, decode, database, outside)
                async with asyncio.TaskGroup() as tasks:
                    application = _quiet(Service(parts).application())
                    config = uvicorn.Config(
                        application, log_level="warning", lifespan="off", timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=1
                    )
                    server = _Server(config)
                    serving = tasks.create_task(server.serve(sockets=[listener]))
                    try:
                        await run_job(parts)
                    finally:
                        parts.nodes.close()
                        server.should_exit = True
                        await serving
        finally:
            database.close()


def _reward(environment: Environment, job: RLJob) -> str:
    """Address of the reward service; a job that trains a reward model has none, and asks none."""
    return environment.url("reward") if job.spec.generates else ""


def _quiet(application: ASGIApp) -> ASGIApp:
    """The application, where a request that is cut off at the end (its body never came, say) gets an answer instead of a traceback."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await application(scope, receive, send)
        except asyncio.CancelledError:
            await Response("the master has stopped\n", 503)(scope, receive, send)

    return answer


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the process's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def open_database(folder: Path) -> Database:
    """The database of the `state` volume.

    Raises:
        ConfigurationError: it is damaged, of another release, or in use.
        sqlite3.OperationalError: nothing is wrong with it: a disk that is full, say, or a missing permission.
    """
    try:
        return Database(folder)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"the state in {folder} cannot be read ({error}): restore it, or start afresh in an empty folder"
        ) from error


def listening(address: tuple[str, int]) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationError: the address is taken or not ours.
    """
    try:
        return socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {address[0]}:{address[1]} ({error.strerror}); free the port or choose another"
        ) from error
