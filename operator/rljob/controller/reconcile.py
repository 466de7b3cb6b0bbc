"""One look at a job: observe, decide, act, write its status. All effects on the cluster are here; what they are is decided in `decide`."""

import asyncio
import json
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from zlib import crc32

from rljob.api import GROUP, KIND, VERSION
from rljob.controller.cache import Cache
from rljob.controller.client import Api, ApiError
from rljob.controller.conditions import Notice, notices
from rljob.controller.converge import QUEUE_FINALIZER, Action, Apply, Create, Delete, DeleteJob, held_by_queue, repair
from rljob.controller.decide import SILENT_SECONDS, Decision, Status, decide, difference, merge_patch, notices_of
from rljob.controller.definition import DOCUMENT, schema_of
from rljob.controller.desired import Renderer
from rljob.controller.kinds import Key, Ref
from rljob.controller.log import log
from rljob.controller.trim import iso, refusal, short, silence_of, unplaced
from rljob.controller.verdict import NEWER
from rljob.controller.workqueue import delay
from rljob.controller.world import Desired, Job, Observed, Trouble
from rljob.manifests import Manifest
from rljob.manifests.types import ANNOTATION_HASH, UPDATE

PATIENCE = 5
"""A refused object waits as if it had failed so many times more often: no moment cures a quota."""
RELEASE_SECONDS = 30.0
"""A finalizer that could not be taken off a pod is tried again after so long."""
DEFINITION_SECONDS = 10.0
"""What the installed definition says is not asked for more often."""


class Progress(Protocol):
    """What masters say."""

    def follow(self, key: Key, uid: str, address: str, pod: str) -> None:
        """Ask this master from now on."""

    def leave(self, key: Key) -> None:
        """There is no master to ask."""

    def report(self, key: Key, pods: Container[str]) -> dict[str, Any] | None:
        """The last word of a master, if it is the one of these pods (uids)."""


@dataclass
class Memory:
    """What is remembered of a job between looks. All of it can be lost: it only saves repeated work."""

    uid: str
    refused: dict[tuple[str, str], Trouble] = field(default_factory=dict)
    refusals: int = 0
    """Looks in a row in which the API server refused something."""
    silences: dict[str, Trouble] = field(default_factory=dict)
    listened: float = float("-inf")
    """When it was asked why pods wait."""
    verified: bool = False
    """The children were compared with what the status remembers of them."""
    written: float = 0.0
    """Time of the last status write."""
    removed: set[str] = field(default_factory=set)
    """uids that were deleted; the stream has not shown it yet."""


@dataclass
class Reconciler:
    """Looks at jobs."""

    api: Api
    cache: Cache
    renderer: Renderer
    progress: Progress
    clock: Callable[[], float]
    """Unix time."""
    version: str
    luck: random.Random = field(default_factory=random.Random)
    _memory: dict[Key, Memory] = field(default_factory=dict)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asked: float = float("-inf")
    """When the installed definition was asked for."""

    async def look(self, key: Key) -> float | None:
        """One look. Answers after how many seconds the next is due, if nothing happens before.

        Raises:
            ApiError: the API server could not be used; what was done is done, and the next look goes on from there.
        """
        held = await self._let_go(key)
        job = self.cache.jobs.get(key)
        if job is None:
            self._forget(key)
            return held
        memory = self._remembered(job)
        if self._is_strange(job):
            await self._understand(job)
        first = self._decide(job, memory)
        # What needs nothing done any more has got over its refusal.
        stale = memory.refused.keys() - {_target(job, action) for action in first.actions}
        for at in stale:
            del memory.refused[at]
        done, failure = await self._act(job, first, memory)
        # At once, and not after the status write: a conflict there decides anew, for a world in which this is done and told of nowhere.
        for notice in notices_of(done, first.making):
            await self._tell(job, notice)
        memory.verified = memory.verified or failure is None
        await self._listen(job, first, memory)
        # What was done shows in the cache: the status tells of the world after it.
        second = self._decide(job, memory) if first.actions or first.silent or stale else first
        self._follow(job, second)
        again = await self._write(job, second, memory)
        if failure is not None:
            raise failure
        waits = [again, second.again, held, self._retry(memory)]
        return min((wait for wait in waits if wait is not None), default=None)

    def phases(self) -> list[str]:
        """Phase of each job."""
        return [str(json.loads(job.status).get("phase") or "") for job in self.cache.jobs.values()]

    async def _let_go(self, key: Key) -> float | None:
        """Take the queue's finalizer off pods that are over, also of a job that is gone. Answers when to try again, if that failed."""
        again = None
        for child in held_by_queue(self.cache.children(key).values()):
            try:
                await self.api.release(Ref(child.kind, key.namespace, child.name), child.uid, QUEUE_FINALIZER)
            except ApiError as error:
                log.warning("%s: %s could not be taken off pod %s: %s", key, QUEUE_FINALIZER, child.name, error)
                again = RELEASE_SECONDS
        return again

    def _remembered(self, job: Job) -> Memory:
        """What is remembered of this job; nothing of one before it that had its name."""
        memory = self._memory.get(job.key)
        if memory is None or memory.uid != job.uid:
            self._forget(job.key)
            memory = self._memory[job.key] = Memory(job.uid)
        return memory

    def _forget(self, key: Key) -> None:
        """The job is gone, however that became known."""
        memory = self._memory.pop(key, None)
        if memory is not None:
            self.renderer.forget(memory.uid)
        self.progress.leave(key)

    def _desired(self, job: Job) -> Desired:
        children = self.cache.children(job.key).values()
        return self.renderer.desired(job, any(child.kind == "Pod" and child.owner == job.uid for child in children))

    def _is_strange(self, job: Job) -> bool:
        refusal = self._desired(job).refusal
        return refusal is not None and refusal.reason == NEWER

    async def _understand(self, job: Job) -> None:
        """A spec has fields that this operator does not know: they may be what a newer definition fills in."""
        async with self._asking:
            if not self._is_strange(job) or self.clock() < self._asked + DEFINITION_SECONDS:
                return
            try:
                self.renderer.learn(schema_of(await self.api.raw(DOCUMENT)))
            except ApiError as error:
                if error.temporary:
                    raise
                log.warning("what the installed CustomResourceDefinition fills in is not known: %s", error)
            self._asked = self.clock()

    def _decide(self, job: Job, memory: Memory) -> Decision:
        children = self.cache.children(job.key)
        desired = self._desired(job)
        status = json.loads(job.status)
        drifted = self.cache.drifted(job.key)
        fingerprint = self.cache.fingerprint(job.key, job.uid)
        if not memory.verified and status.get("fingerprint", fingerprint) != fingerprint:
            # Somebody may have changed any of them while no operator was there to see it.
            drifted = frozenset(at for at, child in children.items() if child.owner == job.uid)
        seen = Observed(
            uid=job.uid,
            generation=job.generation,
            status=status,
            deleting=job.deleting,
            operator=job.operator,
            children=children,
            drifted=drifted,
            fingerprint=fingerprint,
            troubles={f"{kind} {name}": trouble for (kind, name), trouble in memory.refused.items()},
            report=self.progress.report(job.key, {child.uid for child in children.values() if child.owner == job.uid}),
            silences=memory.silences,
        )
        return decide(desired, seen, self.clock(), self.version)

    async def _act(self, job: Job, decision: Decision, memory: Memory) -> tuple[list[Action], ApiError | None]:
        """Do everything that can be done; what pods need before pods. Answers what took effect, and the first failure that may pass."""
        pods = [a for a in decision.actions if not isinstance(a, DeleteJob) and a.kind == "Pod"]
        others = [a for a in decision.actions if a not in pods]
        failures: list[ApiError] = []
        done: list[Action] = []
        for group in (others, pods):
            results = await asyncio.gather(*(self._do(job, action, memory) for action in group))
            failures += [result for result in results if isinstance(result, ApiError)]
            done += [result for result in results if result is not None and not isinstance(result, ApiError)]
        memory.refusals = memory.refusals + 1 if memory.refused else 0
        if done:
            log.info("%s: %s", job.key, _summary(done))
        return done, failures[0] if failures else None

    async def _do(self, job: Job, action: Action, memory: Memory) -> Action | ApiError | None:
        """What took effect, if anything did; a failure that time may cure."""
        at = _target(job, action)
        done: Action | None
        try:
            match action:
                case Create():
                    done = await self._create(job, action)
                case Apply():
                    done = action if await self._apply(job, action) else None
                case Delete():
                    done = await self._delete(job, action, memory)
                case DeleteJob():
                    await self.api.delete(Ref(KIND, job.key.namespace, job.key.name), action.uid)
                    done = action
        except ApiError as error:
            passes = error.temporary or error.missing or error.conflict
            if error.webhook or not passes:
                memory.refused[at] = _refused(action, at, error)
            return error if passes else None
        memory.refused.pop(at, None)
        return done

    def _ref(self, job: Job, kind: str, name: str) -> Ref:
        return Ref(kind, job.key.namespace, name)

    async def _delete(self, job: Job, action: Delete, memory: Memory) -> Delete | None:
        await self.api.delete(self._ref(job, action.kind, action.name), action.uid)
        memory.removed &= {child.uid for child in self.cache.children(job.key).values()}
        again = action.uid in memory.removed
        memory.removed.add(action.uid)
        return None if again else action

    async def _create(self, job: Job, action: Create) -> Action | None:
        manifest = self.renderer.manifest(job, action.kind, action.name)
        try:
            self.cache.put_child(action.kind, await self.api.create(manifest), written=True)
        except ApiError as error:
            if not error.conflict:
                raise
            # It exists: made a moment ago by a try whose answer was lost, or by another operator, or it lost its labels, or it is not ours.
            return await self._take_in(job, action)
        return action

    async def _take_in(self, job: Job, action: Create) -> Action | None:
        there = await self.api.get(self._ref(job, action.kind, action.name))
        meta = there["metadata"]
        ours = any(owner.get("uid") == job.uid for owner in meta.get("ownerReferences", ()))
        if ours and "deletionTimestamp" not in meta:
            mend = repair(action.kind, action.name, meta["uid"])
            return mend if await self._apply(job, mend) else action
        if self.cache.put_child(action.kind, there) is None and (action.kind, action.name) not in self.cache.children(job.key):
            why = "is being deleted; it is made again when it is gone" if ours else "exists and does not belong to this RLJob"
            remedy = "" if ours else "; delete it, or give the RLJob another name"
            raise ApiError(422, "NameTaken", f"it {why}{remedy}")
        return None

    async def _apply(self, job: Job, action: Apply) -> bool:
        """Answers whether that changed anything."""
        manifest = self.renderer.manifest(job, action.kind, action.name)
        kept = UPDATE.get(action.kind) == "keep"
        try:
            if kept:
                manifest = _as_made(manifest, await self.api.get(self._ref(job, action.kind, action.name)))
            applied = await self.api.apply(manifest, action.uid)
        except ApiError as error:
            if error.missing or error.conflict:
                await self._look_again(job, action)
                raise
            # What was good once is refused now: somebody made something of it that an apply cannot mend, such as a second port of the
            # same name. It is made anew; what is kept is not, because it holds the state.
            known = self.cache.children(job.key).get((action.kind, action.name))
            spoilt = known is not None and known.hash == manifest["metadata"]["annotations"][ANNOTATION_HASH]
            if not kept and (_is_fixed(error) or (spoilt and error.code == 422)):
                await self.api.delete(self._ref(job, action.kind, action.name), action.uid)
                return True
            raise
        self.cache.put_child(action.kind, applied.object, written=True)
        return applied.changed

    async def _look_again(self, job: Job, action: Apply) -> None:
        """The cache has an object that is gone, or an old version of it."""
        try:
            there = await self.api.get(self._ref(job, action.kind, action.name))
        except ApiError as error:
            if not error.missing:
                raise
        else:
            if there["metadata"]["uid"] == action.uid:
                self.cache.put_child(action.kind, there)
                return
        self.cache.drop_child(job.key, action.kind, action.name, action.uid)

    async def _listen(self, job: Job, decision: Decision, memory: Memory) -> None:
        """Ask now and then why pods wait that do not say so themselves, until one is explained: no more are told of."""
        explained = memory.silences
        memory.silences = {name: trouble for name, trouble in explained.items() if name in decision.silent}
        if not decision.silent or (memory.silences == explained and self.clock() < memory.listened + SILENT_SECONDS / 3):
            return
        memory.listened = self.clock()
        try:
            memory.silences = await self._explained(job, decision.silent)
        except ApiError as error:
            log.warning("%s: why pods wait is not known: %s", job.key, error)

    async def _explained(self, job: Job, silent: Sequence[str]) -> dict[str, Trouble]:
        for name in silent:
            child = self.cache.children(job.key).get(("Pod", name))
            if child is None or child.pod is None:
                continue
            said, pod = await self.api.events(job.key.namespace, child.uid), child.pod
            if pod.unseen is None:
                trouble = silence_of(name, said)
            else:
                claims = await self._unbound(job.key.namespace, pod.unseen.claims)
                trouble = unplaced(name, pod.role, pod.unseen.scheduler, said, claims)
            if trouble is not None:
                return {name: trouble}
        return {}

    async def _unbound(self, namespace: str, names: Sequence[str]) -> list[tuple[Manifest, list[Manifest]]]:
        """Those of the claims that have no volume, each with its events."""
        found = []
        for name in names:
            try:
                claim = await self.api.get(Ref("PersistentVolumeClaim", namespace, name))
            except ApiError as error:
                if not error.missing:
                    raise
                continue
            if claim.get("status", {}).get("phase") != "Bound":
                found.append((claim, await self.api.events(namespace, claim["metadata"]["uid"])))
        return found

    def _follow(self, job: Job, decision: Decision) -> None:
        for child in self.cache.children(job.key).values():
            pod = child.pod
            if pod is not None and pod.plan_name == "master" and child.owner == job.uid and child.deleting is None:
                if pod.phase == "Running" and pod.ip:
                    self.progress.follow(job.key, child.uid, pod.ip, child.name)
                    return
        self.progress.leave(job.key)

    def _retry(self, memory: Memory) -> float | None:
        return delay(memory.refusals + PATIENCE, self.luck.random()) if memory.refused else None

    def _small_talk_seconds(self) -> float:
        """A thousand jobs must not fill the API server with what changes by itself."""
        return max(15.0, 0.2 * len(self.cache.jobs))

    async def _write(self, job: Job, decision: Decision, memory: Memory) -> float | None:
        """Write the status if it has changed, then tell people."""
        if decision.status is None:
            return None
        old = json.loads(job.status)
        kind = difference(old, decision.status)
        wait = memory.written + self._small_talk_seconds() - self.clock()
        if kind == "small talk" and wait > 0:
            return wait
        if kind != "none":
            await self._patch(job, old, decision.status)
            memory.written = self.clock()
            for notice in notices(old, decision.status):
                await self._tell(job, notice)
        return None

    async def _patch(self, job: Job, old: Status, new: Status) -> None:
        ref = Ref(KIND, job.key.namespace, job.key.name)
        try:
            self.cache.put_job(await self.api.patch_status(ref, merge_patch(old, new), job.version))
        except ApiError as error:
            if error.missing:
                self.cache.drop_job(job.key, job.uid)
                return
            if error.conflict:
                # Somebody wrote to the job meanwhile: what was decided for the old one is decided anew for this one. Unless it was this
                # patch: a first try that got through, and its answer did not.
                there = await self.api.get(ref)
                self.cache.put_job(there)
                if difference(there.get("status") or {}, new) == "none":
                    return
            raise

    async def _tell(self, job: Job, notice: Notice) -> None:
        """An event for people. It is no state: one that cannot be written is left out."""
        log.info("%s: %s: %s", job.key, notice.reason, notice.message)
        try:
            await self.api.create(event(job, notice, self.clock()))
        except ApiError as error:
            if not error.conflict:
                log.warning("%s: event %s was not written: %s", job.key, notice.reason, error)


def _target(job: Job, action: Action) -> tuple[str, str]:
    return (KIND, job.key.name) if isinstance(action, DeleteJob) else (action.kind, action.name)


def event(job: Job, notice: Notice, now: float) -> dict[str, Any]:
    """A Kubernetes event. Its name follows from what it says and when: said twice, it is there once."""
    mark = crc32(f"{job.uid}{notice.reason}{notice.message}{iso(now)}".encode())
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.key.name}.{mark:08x}", "namespace": job.key.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": job.key.name,
            "namespace": job.key.namespace,
            "uid": job.uid,
            "resourceVersion": job.version,
        },
        "type": notice.type,
        "reason": notice.reason,
        "message": notice.message[:1000],
        "source": {"component": "rljob"},
        "reportingComponent": "rljob.dev/operator",
        "reportingInstance": "rljob-operator",
        "firstTimestamp": iso(now),
        "lastTimestamp": iso(now),
        "count": 1,
    }


def _as_made(manifest: Manifest, there: Manifest) -> Manifest:
    """What to apply to an object that is kept, if nobody changes it meanwhile: labels and owner as rendered, the rest as it is there. A
    claim that somebody has grown can hardly shrink again, and most of its spec cannot change at all."""
    meta = there["metadata"]
    made = meta.get("annotations", {}).get(ANNOTATION_HASH)
    annotations = manifest["metadata"]["annotations"] | ({ANNOTATION_HASH: made} if made else {})
    kept = {"annotations": annotations, "resourceVersion": meta["resourceVersion"]}
    return manifest | {"metadata": manifest["metadata"] | kept, "spec": there["spec"]}


def _is_fixed(error: ApiError) -> bool:
    """Was an apply refused because a field of the existing object cannot be changed? The API server says so with 422, a webhook with 403:
    Kueue's lets nobody take its queue's label off a Deployment."""
    words = ("immutable", "may not change", "may not be changed", "field is not mutable")
    return error.code in (403, 422) and any(each in str(error) for each in words)


def _refused(action: Action, at: tuple[str, str], error: ApiError) -> Trouble:
    kind, name = at
    what = f"{kind} {name} cannot be {'removed' if isinstance(action, Delete | DeleteJob) else 'made'}: {short(str(error))}"
    if error.reason == "NameTaken":
        return Trouble("NameTaken", what)
    reason, remedy = refusal(str(error), error.code)
    return Trouble(reason, f"{what}; {remedy}; the operator tries again")


def _summary(actions: Sequence[Action]) -> str:
    words = []
    for kind, verb in ((Create, "made"), (Apply, "applied"), (Delete, "removed"), (DeleteJob, "removed")):
        found = [f"{a.kind} {a.name}" if not isinstance(a, DeleteJob) else "the RLJob" for a in actions if isinstance(a, kind)]
        if found:
            words.append(f"{verb} {', '.join(found)}")
    return "; ".join(words)
