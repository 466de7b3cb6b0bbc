"""From an RLJob's spec to the objects it asks for, or to why it asks in vain."""

import json
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from rljob.api import GROUP, KIND, VERSION, ConfigurationError, RLJob
from rljob.api.load import describe
from rljob.controller.definition import Path, Schema, pass_over
from rljob.controller.log import log
from rljob.controller.verdict import NEWER
from rljob.controller.world import Desired, Job, Terms, Trouble, Want
from rljob.manifests import Cluster, Manifest, Owner, Settings, SharingChoice, choose_sharing, render
from rljob.manifests.names import selector
from rljob.manifests.types import ANNOTATION_HASH, LABEL_POD, LABEL_ROLE
from rljob.plan import plan


def unknown(error: ValidationError) -> list[Path]:
    """Fields that this operator does not know."""
    return [problem["loc"] for problem in error.errors(include_url=False) if problem["type"] == "extra_forbidden"]


def refusal(error: ValidationError, version: str) -> Trouble:
    """Why a spec that the API server let in is no RLJob to this operator.

    The API server prunes what the installed CustomResourceDefinition does not know. A field that it knows and this operator does not comes
    from a newer version of both.
    """
    fields = [".".join(map(str, field)) for field in unknown(error)]
    if fields and len(fields) == error.error_count():
        return Trouble(
            NEWER,
            f"{', '.join(fields)}: not known to this operator ({version}), so the spec is not used (spec.suspend still works); run the "
            "operator that belongs to the installed CustomResourceDefinition, or remove the field",
        )
    return Trouble("InvalidSpec", "; ".join(str(problem) for problem in describe(error)))


def parse(job: Job, definition: Schema) -> RLJob:
    """The typed job, without what a newer `definition` fills in.

    Raises:
        ValidationError: the spec is none.
    """
    metadata: dict[str, Any] = {"name": job.key.name, "namespace": job.key.namespace}
    whole = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata, "spec": json.loads(job.spec)}
    try:
        return RLJob.model_validate(whole, by_alias=True, by_name=False)
    except ValidationError as error:
        if not pass_over(whole, unknown(error), definition):
            raise
    return RLJob.model_validate(whole, by_alias=True, by_name=False)


def terms_of(job: RLJob) -> Terms:
    """What the operator itself reads."""
    spec = job.spec
    return Terms(
        suspend=spec.suspend,
        backoff_limit=spec.backoff_limit,
        deadline=spec.active_deadline_seconds,
        ttl=spec.ttl_seconds_after_finished,
        iterations=spec.iterations,
        rollouts=spec.rollout.replicas,
    )


class _Known(NamedTuple):
    """What a job's spec came to in a cluster."""

    job: Job
    """Without its status."""
    cluster: Cluster
    desired: Desired


@dataclass
class Renderer:
    """Renders jobs. Of each, the hashes are kept; whole manifests only of those that are being worked on."""

    settings: Settings
    version: str
    cluster: Cluster = field(default_factory=Cluster)
    kept: int = 64
    definition: Schema = field(default_factory=dict)
    """Of RLJobs, as the API server publishes it; asked for once a spec has fields that this operator does not know."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _accepted: dict[str, _Known] = field(default_factory=dict)
    """The last of these that was not refused."""
    _manifests: OrderedDict[tuple[str, int], dict[tuple[str, str], Manifest]] = field(default_factory=OrderedDict)

    def desired(self, job: Job, running: bool) -> Desired:
        """What the spec comes to. As long as the job has pods (`running`), how they share accelerators stays, whatever the cluster offers
        by now."""
        known = self._known.get(job.uid)
        stands = running and known is not None and known.desired.refusal is None
        if known is None or known.job.generation != job.generation or not (stands or known.cluster == self.cluster):
            desired = self._desired(job, self._chosen(job) if running else None)
            before = self._accepted.get(job.uid)
            if desired.refusal is not None and before is not None:
                terms = replace(before.desired.terms, suspend=desired.terms.suspend)
                desired = replace(before.desired, terms=terms, refusal=desired.refusal)
            known = self._known[job.uid] = _Known(replace(job, status=b""), self.cluster, desired)
            if desired.refusal is None:
                self._accepted[job.uid] = known
        return known.desired

    def learn(self, definition: Schema) -> None:
        """What the installed definition says: if that is news, specs that were refused are read anew."""
        if definition == self.definition:
            return
        self.definition = definition
        self._known = {uid: known for uid, known in self._known.items() if known.desired.refusal is None}

    def _chosen(self, job: Job) -> SharingChoice | None:
        """How the job's pods share accelerators: as they were rendered last, or, after a restart, as the status has it."""
        known = self._accepted.get(job.uid)
        if known is not None:
            return SharingChoice(*known.desired.sharing)
        written = json.loads(job.status).get("sharing") or {}
        return SharingChoice(written["mode"], written.get("reason", "")) if "mode" in written else None

    def manifest(self, job: Job, kind: str, name: str) -> Manifest:
        """One object of what `desired` has last answered."""
        accepted, cluster, desired = self._accepted[job.uid]
        at = (job.uid, accepted.generation)
        if at not in self._manifests:
            self._render(accepted, parse(accepted, self.definition), cluster, SharingChoice(*desired.sharing))
        return self._manifests[at][kind, name]

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._known.pop(uid, None)
        self._accepted.pop(uid, None)
        for at in [at for at in self._manifests if at[0] == uid]:
            del self._manifests[at]

    def _render(self, job: Job, parsed: RLJob, cluster: Cluster, sharing: SharingChoice) -> tuple[Manifest, ...]:
        owner = Owner(job.key.name, job.key.namespace, job.uid)
        found = render(parsed, plan(parsed), owner, self.settings, cluster, sharing)
        self._manifests[job.uid, job.generation] = {(m["kind"], m["metadata"]["name"]): m for m in found}
        while len(self._manifests) > self.kept:
            self._manifests.popitem(last=False)
        return found

    def _desired(self, job: Job, chosen: SharingChoice | None) -> Desired:
        try:
            parsed = parse(job, self.definition)
        except ValidationError as error:
            # That it asks for a pause is not in doubt.
            terms = Terms(suspend=json.loads(job.spec).get("suspend") is True)
            return Desired(terms=terms, refusal=refusal(error, self.version))
        try:
            sharing = choose_sharing(parsed, self.settings, self.cluster, chosen)
            manifests = self._render(job, parsed, self.cluster, sharing)
        except ConfigurationError as error:
            return Desired(terms=terms_of(parsed), refusal=Trouble("InvalidSpec", str(error)))
        except Exception as error:  # noqa: BLE001 - `templates` may hold anything
            log.exception("%s cannot be rendered", job.key)
            why = f"cannot be made into pods ({type(error).__name__}: {error}); look at spec.templates, which nothing else checks"
            return Desired(terms=terms_of(parsed), refusal=Trouble("InvalidSpec", why))
        return Desired(
            terms=terms_of(parsed),
            wants=tuple(_want(manifest) for manifest in manifests),
            sharing=(sharing.mode, sharing.reason),
            selector=selector(job.key.name, "rollout"),
        )


def _want(manifest: Manifest) -> Want:
    meta = manifest["metadata"]
    labels = meta.get("labels", {})
    hashed = meta["annotations"][ANNOTATION_HASH]
    return Want(manifest["kind"], meta["name"], hashed, labels.get(LABEL_ROLE, ""), labels.get(LABEL_POD, ""))
