"""What the streams and the operator's own writes have shown. An answer to a write is as good as an event, and mostly earlier: it goes in at
once, and an older event that comes later is passed over, so that a slow stream never lets a decision be taken twice."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from rljob.controller.kinds import Key
from rljob.controller.trim import child_of, job_key, job_of
from rljob.controller.world import Child, Job
from rljob.manifests import Manifest

_NONE: Mapping[tuple[str, str], Child] = {}


@dataclass
class Cache:
    """Jobs, and their children by kind and name."""

    jobs: dict[Key, Job] = field(default_factory=dict)
    _children: dict[Key, dict[tuple[str, str], Child]] = field(default_factory=dict)
    _trusted: dict[str, int] = field(default_factory=dict)
    """uid to fingerprint of the operator's fields as it wrote them."""

    def keys(self, namespace: str | None) -> set[Key]:
        """Jobs of a namespace (None: of all), and those that are gone and of which children are left."""
        return {key for key in (*self.jobs, *self._children) if namespace in (None, key.namespace)}

    def children(self, key: Key) -> Mapping[tuple[str, str], Child]:
        """Everything with the job's labels."""
        return self._children.get(key, _NONE)

    def drifted(self, key: Key) -> frozenset[tuple[str, str]]:
        """Children that somebody else changed since the operator wrote them."""
        return frozenset(at for at, child in self.children(key).items() if self._is_drifted(child))

    def fingerprint(self, key: Key, uid: str) -> str:
        """Of the job's children as the operator wrote them; equal after a restart, if nobody touched them meanwhile."""
        mine = sorted((c.kind, c.name, c.uid, self._trusted.get(c.uid, c.own)) for c in self.children(key).values() if c.owner == uid)
        return f"{crc32(repr(mine).encode()):08x}"

    def _is_drifted(self, child: Child) -> bool:
        trusted = self._trusted.get(child.uid)
        return child.edited if trusted is None else child.own != trusted

    def put_job(self, raw: Manifest) -> Key | None:
        """Take in an RLJob; None if a newer one is known."""
        job = job_of(raw)
        known = self.jobs.get(job.key)
        if known is not None and int(known.version) >= int(job.version):
            return None
        if known is not None and (known.uid, known.generation) == (job.uid, job.generation):
            # What it asks for is the same. Another text is what a newer definition has filled in meanwhile.
            job = replace(job, spec=known.spec)
        self.jobs[job.key] = job
        return job.key

    def drop_job(self, key: Key, uid: str) -> bool:
        """Forget a deleted RLJob; False if another one has its name by now."""
        if key in self.jobs and self.jobs[key].uid == uid:
            del self.jobs[key]
            return True
        return False

    def put_child(self, kind: str, raw: Manifest, written: bool = False) -> Key | None:
        """Take in a child; `written`: as the answer to a write of the operator. None if it tells nothing new."""
        key = job_key(raw)
        if key is None or (not written and self._is_known(key, kind, raw["metadata"])):
            return None
        child = child_of(kind, raw)
        if written:
            self._trusted[child.uid] = child.own
        there = self._children.setdefault(key, {})
        known = there.get((kind, child.name))
        if known is not None and known.version >= child.version:
            return None
        if known is not None and known.uid != child.uid:
            self._trusted.pop(known.uid, None)
        if not written and child.uid not in self._trusted and not child.edited:
            self._trusted[child.uid] = child.own
        there[kind, child.name] = child
        return key

    def _is_known(self, key: Key, kind: str, meta: Mapping[str, Any]) -> bool:
        """The stream brings back what the operator's own writes were answered with; most of the work of taking it in is saved."""
        known = self.children(key).get((kind, meta["name"]))
        return (
            known is not None and known.uid == meta["uid"] and known.uid in self._trusted and known.version >= int(meta["resourceVersion"])
        )

    def drop_child(self, key: Key, kind: str, name: str, uid: str) -> bool:
        """Forget a child that is gone; False if another one has its name by now."""
        there = self._children.get(key, {})
        known = there.get((kind, name))
        self._trusted.pop(uid, None)
        if known is None or known.uid != uid:
            return False
        del there[kind, name]
        if not there:
            del self._children[key]
        return True

    def sweep(self, kind: str, namespace: str | None, version: int, present: Collection[str]) -> Iterator[Key]:
        """After a complete list of `version`: forget children of that kind which it does not name. Yields their jobs."""
        gone = [
            (key, child)
            for key, there in self._children.items()
            if namespace in (None, key.namespace)
            for child in there.values()
            if child.kind == kind and child.version <= version and child.uid not in present
        ]
        for key, child in gone:
            self.drop_child(key, kind, child.name, child.uid)
            yield key

    def sweep_jobs(self, namespace: str | None, version: int, present: Collection[str]) -> Iterator[Key]:
        """The same for RLJobs."""
        for key, job in list(self.jobs.items()):
            if namespace in (None, key.namespace) and int(job.version) <= version and job.uid not in present:
                del self.jobs[key]
                yield key

    def count(self) -> int:
        """Children in all."""
        return sum(map(len, self._children.values()))
