"""`spec.templates`: merged by name, refused with field and remedy."""

import re
from typing import Any

import pytest
from tests.manifests.jobs import PLAIN, container, find, nvidia, objects, pod, tiny, variables

from rljob.api import ConfigurationError
from rljob.manifests.merge import merge

WORKER = "spec.templates.worker"


def worker(*overrides: str) -> dict[str, Any]:
    return pod(objects(tiny(*overrides)), "tiny-worker-0")


def test_a_sidecar_is_found_by_its_name_wherever_it_stands() -> None:
    spec = worker(f"{WORKER}.spec.containers=[{{name: megatron, env: [{{name: OMP_NUM_THREADS, value: '4'}}, {{name: NEW, value: x}}]}}]")
    found = variables(spec, "megatron")
    assert (found["OMP_NUM_THREADS"], found["NEW"]) == ("4", "x")
    assert found["RLJOB_NODE"] == "worker-0"
    assert [c["name"] for c in spec["containers"]] == ["checkpoint-engine"]


def test_a_volume_is_replaced_by_removing_its_kind() -> None:
    spec = worker(f"{WORKER}.spec.volumes=[{{name: cache, emptyDir: null, persistentVolumeClaim: {{claimName: shared-cache}}}}]")
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "shared-cache"}} in spec["volumes"]


def test_volumes_mounts_and_containers_are_added() -> None:
    spec = worker(
        f"{WORKER}.spec={{volumes: [{{name: data, nfs: {{server: nas, path: /d}}}}], containers: [{{name: vllm, volumeMounts: "
        "[{name: data, mountPath: /data}]}, {name: watcher, image: watcher:1}]}"
    )
    assert {"name": "data", "mountPath": "/data"} in container(spec, "vllm")["volumeMounts"]
    assert container(spec, "watcher")["image"] == "watcher:1"


def test_node_selectors_merge_and_labels_that_find_pods_stay() -> None:
    manifests = objects(
        tiny(f"{WORKER}.metadata.labels={{team: a, rljob.dev/job: other, rljob.dev/role: x}}", f"{WORKER}.spec.nodeSelector.zone=z")
    )
    found = find(manifests, "Pod", "tiny-worker-0")
    assert found["metadata"]["labels"]["team"] == "a"
    assert (found["metadata"]["labels"]["rljob.dev/job"], found["metadata"]["labels"]["rljob.dev/role"]) == ("tiny", "worker")
    assert found["spec"]["nodeSelector"] == {"zone": "z"}


def test_the_deployments_pods_are_overridden_too() -> None:
    assert pod(objects(tiny("spec.templates.reward.spec.priorityClassName=low")), "tiny-reward")["priorityClassName"] == "low"


def test_tolerations_are_added_and_other_lists_are_replaced() -> None:
    assert merge([{"key": "a"}], [{"key": "b"}, {"key": "a"}], "x", "tolerations") == [{"key": "a"}, {"key": "b"}]
    assert merge({"labels": {}}, {"labels": {"env": "prod", "tolerations": "none"}}, "x")["labels"]["env"] == "prod", (
        "names of fields, no fields"
    )
    assert merge(["python"], ["sleep", "1"], "x", "command") == ["sleep", "1"]
    assert merge({"a": 1, "b": {"c": 2}}, {"a": None, "b": {"d": None}}, "x") == {"b": {"c": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("containers=[]", "spec.templates.worker.containers: is not part of a pod template; write it below `spec`"),
        ("spec=3", "spec.templates.worker.spec: is 3, but has fields of its own"),
        ("metadata.name=x", "spec.templates.worker.metadata.name: the operator sets it"),
        ("spec.containers=[{name: megatorn}]", "'megatorn' is none of this pod's containers (megatron, vllm, wait, checkpoint-engine)"),
        ("spec.containers=[{image: x}]", "spec.templates.worker.spec.containers: {'image': 'x'} has no name"),
        ("spec.containers={name: vllm}", "spec.templates.worker.spec.containers: is {'name': 'vllm'}; it must be a list"),
        ("spec.containers=[{name: vllm, env: [{value: x}]}]", ".env: {'value': 'x'} has no name"),
        ("spec.volumes=[tmp]", "spec.templates.worker.spec.volumes: 'tmp' has no name"),
        ("spec.volumes={name: x}", "spec.templates.worker.spec.volumes: is {'name': 'x'}; it must be a list"),
        ("metadata.labels=x", "spec.templates.worker.metadata.labels: is 'x', but has fields of its own"),
        ("spec.securityContext=3", "spec.templates.worker.spec.securityContext: is 3, but has fields of its own"),
    ],
)
def test_an_override_that_is_no_pod_template_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        worker(f"{WORKER}.{override}")


def test_where_all_run_in_one_container_the_refusal_says_why() -> None:
    with pytest.raises(ConfigurationError, match=r"'megatron' is none .*\(checkpoint-engine, because the cluster .* has no DeviceClass"):
        objects(nvidia(), cluster=PLAIN)
