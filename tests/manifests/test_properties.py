"""What holds for every job."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.manifests.jobs import DRA, PLAIN, UID, objects

from rljob.api import RLJob
from rljob.manifests import Cluster, Manifest, Settings
from rljob.manifests.jobfile import job_files
from rljob.manifests.names import LONGEST, match
from rljob.manifests.types import LABEL_JOB, MANAGED_BY

Changes = dict[str, Any]

names = st.from_regex(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", fullmatch=True)


@st.composite
def jobs(draw: st.DrawFn) -> RLJob:
    """Valid jobs of all shapes."""
    per_node = draw(st.sampled_from([1, 2, 4, 8]))
    sizes = [size for size in (1, 2, 4, 8) if size <= per_node]
    spec: Changes = {
        "model": {"source": draw(st.sampled_from([{"hub": {"repo": "a/b"}}, {"path": "m"}, {"scratch": {}}]))},
        "data": {"train": draw(st.sampled_from([{"path": "t.jsonl"}, {"reasoningGym": {"dataset": "chain_sum"}}]))},
        "warmStart": {"steps": 2},
        "files": draw(st.sampled_from([{"claim": "f"}, {"configMap": "f"}])),
        "iterations": draw(st.integers(1, 1000)),
        "accelerator": {"type": draw(st.sampled_from(["cpu", "nvidia"])), "perNode": per_node},
        "trainer": {"nodes": draw(st.integers(1, 4)), "tensorParallel": draw(st.sampled_from(sizes))},
        "rollout": {
            "replicas": draw(st.integers(0, 9)),
            "tensorParallel": draw(st.sampled_from(sizes)),
            "maxTokens": draw(st.integers(1, 64)),
        },
        "reward": {"replicas": draw(st.integers(1, 4))},
        "suspend": draw(st.booleans()),
    }
    if draw(st.booleans()):
        spec["sandbox"] = {"enabled": True, "replicas": draw(st.integers(1, 4)), "slots": draw(st.integers(1, 64))}
    if draw(st.booleans()):
        spec["queueName"] = "q"
    if draw(st.booleans()):
        spec["credentials"] = "token"
    if draw(st.booleans()):
        spec["model"]["maxLength"] = spec["rollout"]["maxTokens"] + 16
    if draw(st.booleans()):
        spec["checkpoint"] = {"volume": "mine"}
    return RLJob.model_validate(
        {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": draw(names)}, "spec": spec}, by_alias=True
    )


sites = st.builds(
    Settings,
    access_mode=st.sampled_from(["ReadWriteMany", "ReadWriteOnce"]),
    network_policies=st.booleans(),
)
clusters = st.sampled_from([DRA, PLAIN])


def templates(manifests: tuple[Manifest, ...]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and spec of everything that becomes pods."""
    found = [(m["metadata"]["labels"], m["spec"]) for m in manifests if m["kind"] == "Pod"]
    deployed = [m["spec"]["template"] for m in manifests if m["kind"] == "Deployment"]
    return found + [(t["metadata"]["labels"], t["spec"]) for t in deployed]


@settings(max_examples=60, deadline=None)
@given(jobs(), sites, clusters)
def test_objects_are_named_owned_and_labelled(job: RLJob, site: Settings, offer: Cluster) -> None:
    manifests = objects(job, site, offer)
    keys = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(keys) == len(set(keys))
    for manifest in manifests:
        meta = manifest["metadata"]
        assert len(meta["name"]) <= LONGEST
        assert meta["labels"].items() >= (MANAGED_BY | {LABEL_JOB: job.metadata.name}).items()
        (owner,) = meta["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("RLJob", job.metadata.name, UID, True)
        assert all(len(value) <= LONGEST for value in meta["labels"].values())
        json.dumps(manifest, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(jobs(), sites, clusters)
def test_whatever_is_referred_to_exists(job: RLJob, site: Settings, offer: Cluster) -> None:
    manifests = objects(job, site, offer)
    there = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    for labels, spec in templates(manifests):
        assert ("ServiceAccount", spec["serviceAccountName"]) in there
        volumes = {v["name"]: v for v in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"])
        containers = [*spec.get("initContainers", ()), *spec["containers"]]
        assert len({c["name"] for c in containers}) == len(containers)
        for c in containers:
            assert {m["name"] for m in c["volumeMounts"]} <= volumes.keys()
            assert len({m["mountPath"] for m in c["volumeMounts"]}) == len(c["volumeMounts"])
            assert len({e["name"] for e in c["env"]}) == len(c["env"])
            ports = {p["name"] for p in c.get("ports", ())}
            assert c.get("livenessProbe", {}).get("httpGet", {}).get("port") in {None, *ports}
        for reference in spec.get("resourceClaims", ()):
            assert ("ResourceClaimTemplate", reference["resourceClaimTemplateName"]) in there
        if "job" in volumes:
            config = volumes["job"]["configMap"]
            assert config["items"][0]["key"] in there["ConfigMap", config["name"]]["data"]
        assert labels.items() >= match(job.metadata.name).items()


@settings(max_examples=60, deadline=None)
@given(jobs(), sites, clusters)
def test_every_selector_finds_pods(job: RLJob, site: Settings, offer: Cluster) -> None:
    manifests = objects(job, site, offer)
    found = [labels for labels, _ in templates(manifests)]
    for manifest in manifests:
        if manifest["kind"] in ("Service", "Deployment", "PodDisruptionBudget"):
            selector = manifest["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert any(labels.items() >= wanted.items() for labels in found), manifest["metadata"]["name"]


@settings(max_examples=60, deadline=None)
@given(jobs(), sites, clusters, st.integers(0, 9))
def test_the_number_of_rollout_pods_changes_no_other_object(job: RLJob, site: Settings, offer: Cluster, replicas: int) -> None:
    spec = job.spec.model_copy(update={"rollout": job.spec.rollout.model_copy(update={"replicas": replicas})})
    scaled = job.model_copy(update={"spec": spec})

    def others(manifests: tuple[Manifest, ...]) -> list[Manifest]:
        return [m for m in manifests if m["metadata"]["labels"].get("rljob.dev/role") != "rollout"]

    before, after = objects(job, site, offer), objects(scaled, site, offer)
    assert others(before) == others(after)
    common = {m["metadata"]["name"] for m in before} & {m["metadata"]["name"] for m in after}
    assert [m for m in before if m["metadata"]["name"] in common] == [m for m in after if m["metadata"]["name"] in common]


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_what_a_role_is_told_is_a_valid_job(job: RLJob) -> None:
    for key, text in job_files(job).values():
        assert RLJob.model_validate_json(text).metadata.name == job.metadata.name
        assert key.endswith(".json")


def empties(value: Any, path: str = "") -> list[str]:
    """Places of empty lists: the API server drops them, and each apply would then be a change."""
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in empties(part, f"{path}.{name}")]
    if isinstance(value, list):
        return [path] * (not value) + [found for part in value for found in empties(part, path)]
    return []


@settings(max_examples=60, deadline=None)
@given(jobs(), sites, clusters)
def test_no_list_is_empty(job: RLJob, site: Settings, offer: Cluster) -> None:
    assert [found for manifest in objects(job, site, offer) for found in empties(manifest)] == []
