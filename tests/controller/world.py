"""A cluster in memory with an operator that can be started and killed at any moment."""

import asyncio
import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import kopf
from tests.controller.twin import Twin
from tests.master.virtual import clock

from rljob.api import InfrastructureError
from rljob.controller.client import ApiError
from rljob.controller.connection import Connection
from rljob.controller.kinds import RLJOB, Key, Ref
from rljob.controller.log import log
from rljob.controller.main import Operator
from rljob.controller.metrics import Metrics
from rljob.controller.progress import Poller, Target
from rljob.controller.trim import iso
from rljob.manifests import Manifest, Settings

SPEC: dict[str, Any] = {
    "model": {"source": {"path": "/models/small"}},
    "data": {"train": {"path": "/data/train.jsonl"}},
    "iterations": 10,
}


def rljob(name: str = "x", **spec: Any) -> Manifest:
    return {
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": copy.deepcopy(SPEC) | spec,
    }


class _Faults(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self, errors: list[BaseException | str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record.getMessage())


class World:
    """Twin, kubelet, master, operator."""

    def __init__(self, seed: int = 0, settings: Settings | None = None, start_seconds: float = 1.0) -> None:
        self.twin = Twin()
        self.settings = settings or Settings()
        self.start_seconds = start_seconds
        self.luck = random.Random(seed)
        self.starts: Callable[[Manifest], bool] = lambda pod: True
        """May this pod start?"""
        self.reports: dict[str, dict[str, Any]] = {}
        """Job to what its master says."""
        self.errors: list[BaseException | str] = []
        """What an operator must not meet: exceptions that ended it, and faults of its own that it has logged."""
        self._logged = _Faults(self.errors)
        log.addHandler(self._logged)
        self._operator: list[asyncio.Task[None]] = []
        self._tasks = [asyncio.create_task(self._kubelet())]
        self.operator: Operator | None = None

    # The operator's life

    def start(self) -> None:
        """Start an operator with an empty memory."""
        info = kopf.ConnectionInfo(server="http://twin")
        poller = Poller(self._fetch, lambda key: None, Metrics(), luck=random.Random(1))
        self.operator = operator = Operator(self.settings, Connection(info), self.twin, Metrics(), poller, clock)
        operator.queue.luck, operator.reconciler.luck = random.Random(2), random.Random(4)
        self._operator = [asyncio.create_task(self._run(operator))]

    async def _run(self, operator: Operator) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in operator.streams:
                stream.clock, stream.luck = clock, random.Random(3)
            await operator.look_around()
            operator.work(group)
            group.create_task(self._jobs(operator))

    async def _jobs(self, operator: Operator) -> None:
        """What kopf does: list, then watch, and list again without a word about what is gone."""
        while True:
            try:
                listing = await self.twin.list_objects(RLJOB, None)
                for item in listing.items:
                    operator.take({"type": None, "object": item})
                async with self.twin.watch(RLJOB, None, listing.version, "") as changes:
                    async for change in changes:
                        operator.take({"type": change.type, "object": change.object})
            except ApiError:
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """The operator dies between two instructions."""
        for task in self._operator:
            task.cancel()
        for result in await asyncio.gather(*self._operator, return_exceptions=True):
            if isinstance(result, BaseExceptionGroup | Exception):
                self.errors.append(result)
        self._operator = []

    async def end(self) -> None:
        await self.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        log.removeHandler(self._logged)
        assert not self.errors, self.errors

    # The cluster's life

    async def _kubelet(self) -> None:
        log = self.twin.log
        position = 0
        while True:
            async with self.twin.changed:
                await self.twin.changed.wait()
            for _, _, change, stored in log[position : (position := len(log))]:
                if stored["kind"] == "Pod" and change == "ADDED":
                    asyncio.get_running_loop().call_later(self.start_seconds, self._start, stored)
                if stored["kind"] == "Deployment" and change != "DELETED":
                    self._deployment(stored)

    def _start(self, pod: Manifest) -> None:
        ref = Ref("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
        now = self.twin.objects.get(ref)
        if now is not None and now["metadata"]["uid"] == pod["metadata"]["uid"] and self.starts(now):
            ready = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
            self.twin.set_status(ref, phase="Running", podIP="10.0.0.1", conditions=ready)

    def _deployment(self, stored: Manifest) -> None:
        ref = Ref("Deployment", stored["metadata"]["namespace"], stored["metadata"]["name"])
        now = self.twin.objects.get(ref)
        if now is not None and now.get("status", {}).get("observedGeneration") != now["metadata"]["generation"]:
            counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), now["spec"]["replicas"])
            self.twin.set_status(ref, observedGeneration=now["metadata"]["generation"], **counts)

    async def _fetch(self, target: Target) -> dict[str, Any]:
        if target.key.name not in self.reports:
            raise InfrastructureError("no answer")
        return dict(self.reports[target.key.name])

    # What a test asks and does

    def add(self, job: Manifest) -> None:
        self.twin.add(job)

    def job(self, name: str = "x") -> Manifest:
        return self.twin.objects[Ref("RLJob", "default", name)]

    def status(self, name: str = "x") -> dict[str, Any]:
        found: dict[str, Any] = self.job(name).get("status", {})
        return found

    def condition(self, kind: str, name: str = "x") -> dict[str, Any]:
        return next((c for c in self.status(name).get("conditions", ()) if c["type"] == kind), {})

    def holds(self, kind: str, name: str = "x") -> bool:
        return self.condition(kind, name).get("status") == "True"

    def pods(self) -> set[str]:
        return set(self.twin.of("Pod"))

    def events(self) -> list[str]:
        return [e["reason"] for e in self.twin.of("Event").values()]

    def spec(self, name: str = "x", **changes: Any) -> None:
        """Somebody applies a changed spec."""
        self.twin.edit(Ref("RLJob", "default", name), lambda job: job["spec"].update(copy.deepcopy(changes)), "kubectl")

    def container_ended(self, pod: str, container: str, code: int, message: str = "", restarts: int = 1) -> None:
        end = {"exitCode": code, "message": message, "reason": "Error", "finishedAt": iso(clock())}
        status = {"name": container, "restartCount": restarts, "state": {"running": {}}, "lastState": {"terminated": end}, "image": "i"}
        self.twin.set_status(Ref("Pod", "default", pod), containerStatuses=[status])

    def pod_ended(self, pod: str, phase: str = "Failed", reason: str = "", said: str = "") -> None:
        end = {"exitCode": 0 if phase == "Succeeded" else 1, "message": said, "reason": "Completed", "finishedAt": iso(clock())}
        containers = [{"name": "master", "restartCount": 0, "image": "i", "state": {"terminated": end}}] if said else []
        self.twin.set_status(
            Ref("Pod", "default", pod),
            phase=phase,
            reason=reason,
            conditions=[{"type": "Ready", "status": "False"}],
            containerStatuses=containers,
        )

    def pod_waits(self, pod: str, reason: str, message: str = "") -> None:
        waiting = {"name": "master", "restartCount": 0, "image": "i", "state": {"waiting": {"reason": reason, "message": message}}}
        scheduled = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": iso(clock())}]
        self.twin.set_status(Ref("Pod", "default", pod), phase="Pending", containerStatuses=[waiting], conditions=scheduled)

    def lose(self, pod: str, grace: float = 0.0) -> None:
        self.twin.erase(Ref("Pod", "default", pod), grace)


def report(iteration: int, phase: str = "Rollout", **more: Any) -> dict[str, Any]:
    """What a master says."""
    return {"phase": phase, "iteration": iteration, "iterations": 10, "policyVersion": iteration - 1, "updated": clock()} | more


JOB = Key("default", "x")
