"""The operator's process: kopf, and what runs beside it. All of kopf is in this file.

kopf brings the stream of RLJobs, signals, login and an ordered end. Its handlers here only take events in: no finalizer, no annotation, no
retries of its own, so that it never writes to an object. Children are followed by `watch.py`, work is done by `workqueue.py`.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from itertools import chain, repeat
from typing import Any

import aiohttp
import kopf

from rljob.api import GROUP, ConfigurationError
from rljob.controller.apiserver import ApiServer
from rljob.controller.cache import Cache
from rljob.controller.client import Api, ApiError
from rljob.controller.connection import Connection
from rljob.controller.desired import Renderer
from rljob.controller.kinds import CHILDREN, RLJOB, Key, Ref
from rljob.controller.leader import Leader
from rljob.controller.log import log
from rljob.controller.metrics import Metrics
from rljob.controller.progress import Poller, by_address, by_api_server
from rljob.controller.reconcile import Reconciler
from rljob.controller.resync import CLUSTER_SECONDS, Resync, discover, places
from rljob.controller.server import serve
from rljob.controller.watch import Stream
from rljob.controller.workqueue import WorkQueue
from rljob.manifests import Settings

_ENDING = (signal.SIGTERM, signal.SIGINT)
SILENT_SECONDS = 300.0
"""A stream that has been silent for so long, in spite of bookmarks each minute, makes the process unhealthy."""
MISSED = 2
"""So many comparisons in a row in which the stream of RLJobs had missed something do so as well."""


@dataclass
class Operator:
    """Everything that acts, put together."""

    settings: Settings
    connection: Connection
    api: Api
    metrics: Metrics
    poller: Poller
    clock: Callable[[], float] = time.time
    cache: Cache = field(default_factory=Cache)
    leading: bool = False

    def __post_init__(self) -> None:
        version = package_version("rljob")
        self.renderer = Renderer(self.settings, version)
        self.reconciler = Reconciler(self.api, self.cache, self.renderer, self.poller, self.clock, version)
        self.queue = WorkQueue(self._look, self.metrics)
        self.poller.tell = self.queue.add
        where = places(self.settings.namespaces)
        self.streams = [Stream(self.api, self.cache, kind, namespace, self.queue.add) for kind in CHILDREN for namespace in where]
        self.resync = Resync(self.api, self.cache, self.settings.namespaces, self._tell)

    def _tell(self, key: Key) -> None:
        if key not in self.cache.jobs:
            self.queue.forget(key)
        self.queue.add(key)

    async def _look(self, key: Key) -> float | None:
        """A job is looked at once all objects of its namespace are known; `_begin` names it then."""
        if all(stream.listed.is_set() for stream in self.streams if stream.namespace in (None, key.namespace)):
            return await self.reconciler.look(key)
        return None

    def denied(self) -> set[str | None]:
        """Namespaces of which the API server tells nothing: one is gone, its Role with it, or the Role lacks a right."""
        return {stream.namespace for stream in self.streams if stream.denied}

    def _telling(self) -> list[Stream]:
        """Streams that should show life: those of other namespaces, or all if there are none."""
        denied = self.denied()
        return [stream for stream in self.streams if stream.namespace not in denied] or self.streams

    def health(self) -> str:
        """Why this process should be started anew; empty if it should not."""
        dead = [stream.kind.plural for stream in self._telling() if self.leading and stream.silent > SILENT_SECONDS]
        if dead:
            return f"no sign of life for {SILENT_SECONDS:.0f} s from the watch of {', '.join(dead)}"
        if self.resync.missed >= MISSED:
            return "the watch of rljobs misses changes"
        return ""

    def ready(self) -> str:
        """Why this process is not ready yet; one that stands by is."""
        behind = [stream.kind.plural for stream in self._telling() if self.leading and not stream.listed.is_set()]
        return f"lists of {', '.join(behind)} are not complete" if behind else ""

    def take(self, event: Any) -> None:
        """One event of an RLJob, as kopf hands it over."""
        raw = event["object"]
        if event["type"] == "DELETED":
            key = Key(raw["metadata"]["namespace"], raw["metadata"]["name"])
            if self.cache.drop_job(key, raw["metadata"]["uid"]):
                self._tell(key)
        elif (taken := self.cache.put_job(raw)) is not None:
            self.queue.add(taken)

    async def act(self) -> None:
        """Everything, until kopf ends (a signal) or something fails that cannot be mended here."""
        self.leading = True
        self.metrics.leading.set(1)
        await self._check_crd()
        self.renderer.cluster = await discover(self.api, self.renderer.cluster)
        async with asyncio.TaskGroup() as group:
            tasks = self.work(group)
            await group.create_task(run_kopf(self))
            for task in tasks:
                task.cancel()

    def work(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Everything beside the stream of RLJobs."""
        tasks = [group.create_task(stream.run(), name=f"stream of {stream.kind.plural}") for stream in self.streams]
        tasks += [group.create_task(self._begin(namespace)) for namespace in places(self.settings.namespaces)]
        others = (self.queue.run(self.settings.workers), self.poller.run(), self.resync.run(), self._figures())
        return tasks + [group.create_task(other) for other in others]

    async def _begin(self, namespace: str | None) -> None:
        """Once all objects of a namespace are known, look at its jobs, and at what is left of those that are gone; another namespace,
        that may be gone, is not waited for."""
        started = time.monotonic()
        for stream in self.streams:
            if stream.namespace == namespace:
                await stream.listed.wait()
        log.info("%d objects of jobs are known after %.1f s", self.cache.count(), time.monotonic() - started)
        for key in self.cache.keys(namespace):
            self.queue.add(key)

    async def _check_crd(self) -> None:
        namespaces = places(self.settings.namespaces)
        for namespace in namespaces:
            try:
                await self.api.list_objects(RLJOB._replace(whole=False), namespace)
                return
            except ApiError as error:
                if error.missing:
                    remedy = f"apply crds/rljobs.{GROUP}.yaml, or let the chart do so"
                    raise ConfigurationError(f"the cluster has no CustomResourceDefinition rljobs.{GROUP}: {remedy}") from error
                if error.code != 403 or namespace == namespaces[-1]:
                    raise

    async def _figures(self) -> None:
        """What is counted now and then, and what the cluster offers."""
        looked, known = time.monotonic(), set[str | None]()
        while True:
            self.metrics.count_phases(self.reconciler.phases())
            denied = self.denied()
            self.metrics.denied.set(len(denied))
            for namespace in denied - known - {None}:
                log.warning("jobs of namespace %s are left alone: is it still there, and is the operator's Role in it whole?", namespace)
            known = denied
            await asyncio.sleep(15)
            if time.monotonic() - looked > CLUSTER_SECONDS:
                looked = time.monotonic()
                await self.look_around()

    async def look_around(self) -> None:
        """What the cluster offers may have changed; jobs that it concerns are looked at."""
        try:
            found = await discover(self.api, self.renderer.cluster)
        except ApiError as error:
            log.warning("what the cluster offers is not known anew: %s", error)
            return
        if found != self.renderer.cluster:
            self.renderer.cluster = found
            for key in self.cache.jobs:
                self.queue.add(key)


async def run_kopf(operator: Operator) -> None:
    """kopf until a signal comes."""
    registry, namespaces = kopf.OperatorRegistry(), operator.settings.namespaces

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return operator.connection.login()

    @kopf.on.startup(registry=registry)
    def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings, several=len(namespaces) > 1)

    @kopf.on.event(GROUP, "rljobs", registry=registry)
    async def on_rljob(event: Any, **_: Any) -> None:
        operator.take(event)

    await kopf.operator(registry=registry, clusterwide=not namespaces, namespaces=namespaces, standalone=True)


class NoDifference(kopf.DiffBaseStorage):
    """Nothing is compared with what an object was before: what is to be done follows from what is."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class Endless:
    """Seconds between kopf's tries of a request that the API server forbids or cannot answer."""

    def __iter__(self) -> Iterator[float]:
        return chain((1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0), repeat(30.0))


def configure(settings: kopf.OperatorSettings, several: bool) -> None:
    """kopf for a thousand jobs. Each line says what the default would do."""
    settings.persistence.diffbase_storage = NoDifference()  # else: copies the whole object twice for each event, half of kopf's time
    settings.posting.enabled = False  # else: an event for each log line of a handler
    settings.scanning.disabled = True  # else: watches CRDs and namespaces, for which an installation in some namespaces has no right
    settings.queueing.idle_timeout = 0.05  # else: a task and the whole object are held for 5 s after each event
    settings.queueing.exit_timeout = 0.5
    settings.watching.chunk_size = 250  # else: all RLJobs in one answer, several times their size in memory
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.process.ultimate_exiting_timeout = 20
    if several:
        settings.networking.error_backoffs = Endless()  # else: the stream of a namespace that is gone ends all others after a minute


async def run(settings: Settings, connection: Connection, dev: bool = False) -> None:
    """The whole process.

    Raises:
        ConfigurationError: the cluster lacks something that a person must add.
        InfrastructureError: the API server or the Lease was lost; started again, it goes on.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer(connection, metrics))
        timeout = aiohttp.ClientTimeout(total=5, sock_connect=2)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), timeout=timeout))
        fetch = by_api_server(api) if dev else by_address(session)
        operator = Operator(settings, connection, api, metrics, Poller(fetch, lambda key: None, metrics, settings.progress_seconds))
        port = await stack.enter_async_context(serve(settings.metrics_port, metrics, operator.health, operator.ready))
        log.info("rljob operator %s; metrics and probes on port %d", package_version("rljob"), port)
        await _lead(operator, settings, connection)


async def _stand_by(leader: Leader) -> bool:
    """Wait for the Lease; False if a signal said to end instead. Until kopf runs, nobody else listens to signals, and the first process of
    a container is not ended by one that it does not handle."""
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(leader.acquire())
    for number in _ENDING:
        loop.add_signal_handler(number, waiting.cancel)
    try:
        await asyncio.wait({waiting})
        if waiting.cancelled():
            await leader.release()
            return False
        waiting.result()
        return True
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
        waiting.cancel()


async def _lead(operator: Operator, settings: Settings, connection: Connection) -> None:
    """Act while holding the Lease."""
    election = settings.leader_election
    if not election.enabled:
        await operator.act()
        return
    ref = Ref("Lease", connection.namespace, election.lease)
    me = f"{os.environ.get('HOSTNAME') or socket.gethostname()}-{secrets.token_hex(4)}"
    leader = Leader(operator.api, ref, me, election.seconds, time.time)
    if not await _stand_by(leader):
        return
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(leader.keep())
        await operator.act()
        keeping.cancel()
    await leader.release()


@contextmanager
def first_cause() -> Iterator[None]:
    """A group of errors counts as its first one: the others follow from it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
