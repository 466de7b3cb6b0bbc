"""An API server in memory, in virtual time: resource versions, server-side apply with field ownership, garbage collection by owner, watches
that lag, and faults on demand. Pods live as a kubelet would have them live, unless a test says otherwise."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from kubernetes.client.models.v1_pod_spec import V1PodSpec
from tests.master.virtual import clock

from rljob.controller.client import ApiError, Applied, Change, Listing
from rljob.controller.kinds import KINDS, Kind, Ref
from rljob.controller.trim import iso
from rljob.manifests import Manifest
from rljob.manifests.types import FIELD_MANAGER

Fault = ApiError | Literal["lost"] | None
"""What happens to a request: refused before it has an effect, or done and its answer `lost`."""
Path = tuple[str, ...]


def not_found(ref: Ref) -> ApiError:
    return ApiError(404, "NotFound", f"{ref} not found")


def leaves(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Paths of an object's values; lists count as one."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from leaves(below, (*at, name))
    else:
        yield at, value


def put(target: Manifest, path: Path, value: Any) -> None:
    for name in path[:-1]:
        target = target.setdefault(name, {})
    target[path[-1]] = copy.deepcopy(value)


def remove(target: Manifest, path: Path) -> None:
    for name in path[:-1]:
        target = target.get(name, {})
    target.pop(path[-1], None)


_SYSTEM = frozenset(
    {
        ("metadata", n)
        for n in ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "deletionTimestamp", "name", "namespace")
    }
)


def _owned(manifest: Manifest) -> dict[Path, Any]:
    return {p: v for p, v in leaves(manifest) if p[:2] not in _SYSTEM and p[0] not in ("apiVersion", "kind", "status")}


@dataclass
class Twin:
    """Implements `rljob.controller.client.Api`."""

    fault: Callable[[str, str], Fault] = lambda verb, kind: None
    webhook: Callable[[Manifest], None] = lambda manifest: None
    """What admission adds to a new object; it belongs to nobody."""
    lag: float = 0.01
    """Seconds by which watches trail."""
    latency: float = 0.001
    objects: dict[Ref, Manifest] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    log: list[tuple[int, float, str, Manifest]] = field(default_factory=list)
    """Every change: version, time, type, object."""
    _before: dict[int, Manifest] = field(default_factory=dict)
    """Version to the object as it was until then."""
    documents: dict[str, Manifest] = field(default_factory=dict)
    """By path."""
    forbidden: set[str | None] = field(default_factory=set)
    """Namespaces in which nothing may be listed."""
    compacted: int = 0
    silent: set[str] = field(default_factory=set)
    """Kinds whose watches have died without a word."""
    _version: int = 0
    _owners: dict[Ref, dict[str, dict[Path, str]]] = field(default_factory=dict)
    """manager → path → time."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    # What a test does

    def of(self, kind: str, namespace: str | None = None) -> dict[str, Manifest]:
        return {ref.name: o for ref, o in self.objects.items() if ref.kind == kind and namespace in (None, ref.namespace)}

    def add(self, manifest: Manifest, manager: str = "kubectl") -> Manifest:
        """Somebody creates an object."""
        ref = self._ref(manifest)
        assert ref not in self.objects
        self._version += 1
        stored = copy.deepcopy(manifest)
        stored["metadata"] |= {"uid": f"uid-{self._version}", "generation": 1, "creationTimestamp": iso(clock())}
        stored["metadata"].setdefault("namespace", "default")
        if ref.kind == "RLJob":
            stored.setdefault("status", {"observedGeneration": -1})
        self._owners[ref] = {manager: {path: iso(clock()) for path in _owned(stored)}}
        self.webhook(stored)
        self._store(ref, stored, "ADDED")
        return stored

    def edit(self, ref: Ref, change: Callable[[Manifest], None], manager: str = "kubectl-edit") -> None:
        """Somebody changes an object by hand."""
        edited = copy.deepcopy(self.objects[ref])
        change(edited)
        self._update(ref, edited, manager)

    def set_status(self, ref: Ref, **status: Any) -> None:
        """Another controller writes a status."""
        changed = copy.deepcopy(self.objects[ref])
        changed["status"] = changed.get("status", {}) | status
        self._store(ref, changed, "MODIFIED")

    def erase(self, ref: Ref, grace: float = 0.0) -> None:
        """Somebody deletes an object; what it owns follows."""
        stored = self.objects[ref]
        if grace and "deletionTimestamp" not in stored["metadata"]:
            marked = copy.deepcopy(stored)
            marked["metadata"]["deletionTimestamp"] = iso(clock() + grace)
            self._store(ref, marked, "MODIFIED")
            asyncio.get_running_loop().call_later(grace, self._finish, ref, stored["metadata"]["uid"])
        elif not grace:
            self._finish(ref, stored["metadata"]["uid"])

    def _finish(self, ref: Ref, uid: str) -> None:
        stored = self.objects.get(ref)
        if stored is None or stored["metadata"]["uid"] != uid:
            return
        if stored["metadata"].get("finalizers"):
            held = copy.deepcopy(stored)
            held["metadata"].setdefault("deletionTimestamp", iso(clock()))
            if held.get("status", {}).get("phase") == "Running":
                held["status"]["phase"] = "Failed"
            self._store(ref, held, "MODIFIED")
            return
        del self.objects[ref]
        self._owners.pop(ref, None)
        self._version += 1
        gone = copy.deepcopy(stored)
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._append("DELETED", gone)
        asyncio.get_running_loop().call_later(0.05, self._collect, uid)

    def _collect(self, uid: str) -> None:
        for ref, child in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in child["metadata"].get("ownerReferences", ())):
                self.erase(ref, 0.5 if ref.kind == "Pod" else 0.0)

    # What the API is

    async def get(self, ref: Ref) -> Manifest:
        async with self._call("get", ref.kind):
            if ref not in self.objects:
                raise not_found(ref)
            return copy.deepcopy(self.objects[ref])

    async def create(self, manifest: Manifest) -> Manifest:
        ref = self._ref(manifest)
        async with self._call("create", ref.kind):
            strict(manifest)
            if ref in self.objects:
                raise ApiError(409, "AlreadyExists", f"{ref} already exists")
            return copy.deepcopy(self.add(manifest, FIELD_MANAGER))

    async def apply(self, manifest: Manifest, uid: str) -> Applied:
        ref = self._ref(manifest)
        async with self._call("apply", ref.kind):
            strict(manifest)
            stored = self.objects.get(ref)
            if stored is None or stored["metadata"]["uid"] != uid:
                raise ApiError(409, "Conflict", f"{ref}: uid {uid} is not that of the object")
            if "resourceVersion" in manifest["metadata"]:
                self._must_be_newest(ref, manifest["metadata"]["resourceVersion"])
            new, wanted = copy.deepcopy(stored), _owned(manifest)
            for path in self._owners[ref].get(FIELD_MANAGER, {}):
                if path not in wanted:
                    remove(new, path)
            for path, value in wanted.items():
                put(new, path, value)
            self._update(ref, new, FIELD_MANAGER, frozenset(wanted))
            return Applied(copy.deepcopy(self.objects[ref]), _owned(stored) != _owned(self.objects[ref]))

    async def delete(self, ref: Ref, uid: str) -> None:
        async with self._call("delete", ref.kind):
            stored = self.objects.get(ref)
            if stored is not None and stored["metadata"]["uid"] == uid:
                self.erase(ref, 0.5 if ref.kind == "Pod" else 0.0)

    async def release(self, ref: Ref, uid: str, finalizer: str) -> None:
        async with self._call("release", ref.kind):
            stored = self.objects.get(ref)
            if stored is None or stored["metadata"]["uid"] != uid:
                return
            freed = copy.deepcopy(stored)
            freed["metadata"]["finalizers"] = [name for name in freed["metadata"].get("finalizers", ()) if name != finalizer]
            self._store(ref, freed, "MODIFIED")
            if "deletionTimestamp" in freed["metadata"]:
                self._finish(ref, uid)

    async def replace(self, manifest: Manifest) -> Manifest:
        ref = self._ref(manifest)
        async with self._call("replace", ref.kind):
            self._must_be_newest(ref, manifest["metadata"]["resourceVersion"])
            self._store(ref, copy.deepcopy(manifest), "MODIFIED")
            return copy.deepcopy(self.objects[ref])

    async def patch_status(self, ref: Ref, status: Mapping[str, Any], version: str) -> Manifest:
        async with self._call("patch_status", ref.kind):
            self._must_be_newest(ref, version)
            changed = copy.deepcopy(self.objects[ref])
            merge(changed.setdefault("status", {}), status)
            if changed["status"] != self.objects[ref].get("status"):
                self._store(ref, changed, "MODIFIED")
            return copy.deepcopy(self.objects[ref])

    async def list_objects(self, kind: Kind, namespace: str | None, more: str = "", selector: str = "") -> Listing:
        async with self._call("list", kind.kind):
            self._must_be_allowed(kind, namespace)
            found = [copy.deepcopy(o) for r, o in self.objects.items() if r.kind == kind.kind and namespace in (None, r.namespace)]
            return Listing([o for o in found if selected(o, selector)], str(self._version))

    async def events(self, namespace: str, uid: str) -> list[Manifest]:
        async with self._call("list", "Event"):
            return [e for e in self.of("Event", namespace).values() if e["involvedObject"]["uid"] == uid]

    async def raw(self, path: str, once: bool = False) -> Manifest:
        async with self._call("get", path):
            return copy.deepcopy(self.documents.get(path, {"major": "1", "minor": "36"}))

    @asynccontextmanager
    async def watch(self, kind: Kind, namespace: str | None, version: str, selector: str) -> AsyncIterator[AsyncIterator[Change]]:
        async with self._call("watch", kind.kind):
            self._must_be_allowed(kind, namespace)
            if int(version) < self.compacted:
                raise ApiError(410, "Expired", "too old resource version")
        yield self._stream(kind, namespace, int(version), selector)

    async def _stream(self, kind: Kind, namespace: str | None, since: int, selector: str) -> AsyncIterator[Change]:
        position = next((i for i, entry in enumerate(self.log) if entry[0] > since), len(self.log))
        while True:
            while position == len(self.log) or kind.kind in self.silent:
                async with self.changed:
                    await self.changed.wait()
            _, when, change, stored = self.log[position]
            position += 1
            wait = when + self.lag - clock()
            if wait > 0:
                await asyncio.sleep(wait)
            if self.fault("stream", kind.kind) is not None:
                raise ApiError(410, "Expired", "too old resource version")
            same = KINDS.get(stored["kind"]) == kind and namespace in (None, stored["metadata"]["namespace"])
            if same and selected(stored, selector):
                yield Change(change, copy.deepcopy(stored))  # type: ignore[arg-type]
            elif same and (before := self._before.get(self.log[position - 1][0])) and selected(before, selector):
                # Who leaves the selection is gone, as far as this watch is concerned.
                yield Change(
                    "DELETED", before | {"metadata": before["metadata"] | {"resourceVersion": stored["metadata"]["resourceVersion"]}}
                )

    # How it works

    def _ref(self, manifest: Manifest) -> Ref:
        return Ref(manifest["kind"], manifest["metadata"].get("namespace", "default"), manifest["metadata"]["name"])

    @asynccontextmanager
    async def _call(self, verb: str, kind: str) -> AsyncIterator[None]:
        self.requests.append((verb, kind))
        await asyncio.sleep(self.latency)
        fault = self.fault(verb, kind)
        if isinstance(fault, ApiError):
            raise fault
        yield
        if fault == "lost":
            raise ApiError(0, "Unreachable", f"{verb} {kind}: the answer was lost")

    def _must_be_allowed(self, kind: Kind, namespace: str | None) -> None:
        if namespace in self.forbidden:
            raise ApiError(403, "Forbidden", f'{kind.plural} is forbidden in the namespace "{namespace}"')

    def _must_be_newest(self, ref: Ref, version: str) -> None:
        if ref not in self.objects:
            raise not_found(ref)
        if self.objects[ref]["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", f"{ref}: the object has been modified")

    def _update(self, ref: Ref, new: Manifest, manager: str, applied: frozenset[Path] = frozenset()) -> None:
        old, owners = self.objects[ref], self._owners[ref]
        before, after = _owned(old), _owned(new)
        changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        mine = {p: t for p, t in owners.get(manager, {}).items() if not applied}
        for paths in owners.values():
            for path in changed:
                paths.pop(path, None)
        mine = {p: t for p, t in mine.items() if p in after} | dict.fromkeys((changed & after.keys()) | applied, iso(clock()))
        if not changed and (not applied or mine.keys() == owners.get(manager, {}).keys()):
            return
        owners[manager] = mine
        if before.items() != after.items() and any(p[0] == "spec" for p in changed):
            new["metadata"]["generation"] += 1
        self._store(ref, new, "MODIFIED")

    def _store(self, ref: Ref, stored: Manifest, change: str) -> None:
        self._version += 1
        stored["metadata"]["resourceVersion"] = str(self._version)
        stored["metadata"]["managedFields"] = [
            {
                "manager": manager,
                "operation": "Update",
                "time": max(paths.values()),
                "fieldsV1": {"/".join(path): {} for path in sorted(paths)},
            }
            for manager, paths in self._owners[ref].items()
            if paths
        ]
        if ref in self.objects:
            self._before[self._version] = self.objects[ref]
        self.objects[ref] = stored
        self._append(change, stored)

    def _append(self, change: str, stored: Manifest) -> None:
        self.log.append((self._version, clock(), change, copy.deepcopy(stored)))
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def strict(manifest: Manifest) -> None:
    """Refuses fields of a pod that no API server knows."""
    spec, path = manifest.get("spec") or {}, "spec"
    if manifest["kind"] == "Deployment":
        spec, path = spec["template"]["spec"], "spec.template.spec"
    if manifest["kind"] in ("Pod", "Deployment") and (unknown := sorted(spec.keys() - V1PodSpec.attribute_map.values())):
        fields = ", ".join(f'unknown field "{path}.{name}"' for name in unknown)
        raise ApiError(400, "BadRequest", f"{manifest['kind']} cannot be handled as a {manifest['kind']}: strict decoding error: {fields}")


def merge(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """RFC 7386."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(target.get(name), dict):
            merge(target[name], value)
        else:
            target[name] = copy.deepcopy(value)


def selected(manifest: Manifest, selector: str) -> bool:
    labels = manifest["metadata"].get("labels", {})
    return all(labels.get(name) == value for name, _, value in (part.partition("=") for part in selector.split(",") if part))
