"""NetworkPolicies: exactly the flows of the picture, played through."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.manifests.jobs import nvidia, objects, tiny

from rljob.manifests import Manifest, Settings
from rljob.manifests.types import LABEL_JOB, LABEL_ROLE, OPERATOR_LABELS

ROOT = Path(__file__).parents[2]
OPERATOR = ("rljob-system", OPERATOR_LABELS)
NODE_PORTS = (8000, 29500, 40001)


def member(role: str, job: str = "tiny") -> tuple[str, dict[str, str]]:
    return ("default", {LABEL_JOB: job, LABEL_ROLE: role})


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())
    return wanted and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


def admits(rules: list[Manifest], peers: str, other: tuple[str, dict[str, str]], port: int) -> bool:
    namespace, labels = other

    def is_peer(peer: Manifest) -> bool:
        if "ipBlock" in peer:
            return False  # outside the cluster
        names = {"kubernetes.io/metadata.name": namespace}
        here = selects(peer["namespaceSelector"], names) if "namespaceSelector" in peer else namespace == "default"
        return here and selects(peer["podSelector"], labels)

    return any(
        (peers not in rule or any(is_peer(p) for p in rule[peers])) and ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
        for rule in rules
    )


def flows(manifests: tuple[Manifest, ...], source: tuple[str, dict[str, str]], target: tuple[str, dict[str, str]], port: int) -> bool:
    """As a network plug-in decides: what no policy selects is free, what one selects needs a rule."""
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    leaving = [p for p in policies if source[0] == "default" and selects(p["podSelector"], source[1])]
    coming = [p for p in policies if target[0] == "default" and selects(p["podSelector"], target[1])]
    may_leave = not leaving or any(admits(p.get("egress", []), "to", target, port) for p in leaving)
    return may_leave and (not coming or any(admits(p["ingress"], "from", source, port) for p in coming))


TINY = objects(tiny())
ROLES = ("master", "worker", "rollout", "reward")
ALLOWED = {
    ("master", "worker", 8000),
    ("master", "rollout", 8000),
    ("master", "reward", 8081),
    ("worker", "master", 8080),
    ("rollout", "master", 8080),
}


@pytest.mark.parametrize("source", ROLES)
@pytest.mark.parametrize("target", ROLES)
@pytest.mark.parametrize("port", [8080, 8081, *NODE_PORTS])
def test_only_the_flows_of_the_picture_pass(source: str, target: str, port: int) -> None:
    nodes = {"worker", "rollout"}
    expected = (source, target, port) in ALLOWED or {source, target} <= nodes
    assert flows(TINY, member(source), member(target), port) == expected


WITH_SANDBOX = objects(tiny("spec.sandbox.enabled=true"))


@pytest.mark.parametrize("source", [*ROLES, "sandbox"])
@pytest.mark.parametrize("target", [*ROLES, "sandbox"])
@pytest.mark.parametrize("port", [8080, 8081, 8082, *NODE_PORTS])
def test_only_the_reward_service_reaches_the_sandbox_and_the_sandbox_reaches_nobody(source: str, target: str, port: int) -> None:
    expected = (source, target, port) in {*ALLOWED, ("reward", "sandbox", 8082)} or {source, target} <= {"worker", "rollout"}
    assert flows(WITH_SANDBOX, member(source), member(target), port) == expected


def test_the_sandbox_reaches_neither_names_nor_the_world() -> None:
    (policy,) = [m for m in WITH_SANDBOX if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "tiny-sandbox"]
    assert "Egress" in policy["spec"]["policyTypes"]
    assert "egress" not in policy["spec"]
    assert not flows(WITH_SANDBOX, member("sandbox"), ("kube-system", {"k8s-app": "kube-dns"}), 53)
    assert flows(WITH_SANDBOX, member("reward"), ("kube-system", {"k8s-app": "kube-dns"}), 53)


def test_the_operator_reaches_the_master_and_nothing_else() -> None:
    assert flows(TINY, OPERATOR, member("master"), 8080)
    assert not any(flows(TINY, OPERATOR, member(role), port) for role in ROLES[1:] for port in (8000, 8080, 8081))
    strict = objects(tiny(), Settings(operator_namespace="elsewhere"))
    assert not flows(strict, OPERATOR, member("master"), 8080)


def test_the_reward_pods_reach_others_only_if_the_job_names_a_judge_by_its_address() -> None:
    judge = ("team", {"app": "judge"})
    http = "{verifier: http, options: {url: 'http://judge.team:8000/'}}"
    weighted = f"{{verifier: weighted, options: {{terms: [{{verifier: exact}}, {http}]}}}}"
    assert not flows(TINY, member("reward"), judge, 8000)
    model = "{verifier: judge, options: {endpoint: 'http://judge.team:8000/v1', model: m}}"
    for reward in (http, weighted, model):
        manifests = objects(tiny(f"spec.reward={reward}"))
        assert flows(manifests, member("reward"), judge, 8000)
        assert not flows(manifests, member("reward"), member("master"), 8080)
        assert not flows(manifests, judge, member("reward"), 8081)


def test_two_jobs_do_not_hear_each_other() -> None:
    other = objects(tiny("metadata.name=other"))
    for source in ROLES:
        for target in ROLES:
            assert not any(flows(TINY + other, member(source), member(target, "other"), port) for port in (8080, 8081, *NODE_PORTS))


def test_only_a_job_that_downloads_reaches_the_world() -> None:
    def outside(manifests: tuple[Manifest, ...]) -> set[str]:
        return {
            m["metadata"]["name"]
            for m in manifests
            if m["kind"] == "NetworkPolicy"
            for r in m["spec"].get("egress", ())
            if "ipBlock" in str(r)
        }

    assert outside(TINY) == set()
    assert outside(objects(nvidia())) == {"math-7b-master"}


def test_what_a_job_downloads_can_be_a_service_of_the_cluster() -> None:
    store = ("storage", {"app": "minio"})
    manifests = objects(nvidia())
    assert flows(manifests, member("master", "math-7b"), store, 9000)
    assert not flows(manifests, member("worker", "math-7b"), store, 9000)
    assert not flows(TINY, member("master"), store, 9000)


def test_the_policy_that_the_docs_have_for_a_prometheus_lets_it_in_and_nobody_else() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    policy, monitor = yaml.safe_load_all(block)
    manifests, prometheus = (*WITH_SANDBOX, policy), ("monitoring", {"app": "prometheus"})
    ports = {"master": 8080, "reward": 8081, "sandbox": 8082}
    for role, port in ports.items():
        assert flows(manifests, prometheus, member(role), port)
        assert not flows(WITH_SANDBOX, prometheus, member(role), port)
        assert not flows(manifests, ("default", {}), member(role), port)
    assert not any(flows(manifests, prometheus, member("worker"), port) for port in (*ports.values(), *NODE_PORTS))
    assert selects(monitor["spec"]["selector"], member("sandbox")[1])
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == list(ports)
    assert all(f"'name': '{name}', 'containerPort': {port}" in str(WITH_SANDBOX) for name, port in ports.items())


def test_policies_can_be_turned_off() -> None:
    assert not [m for m in objects(tiny(), Settings(network_policies=False)) if m["kind"] == "NetworkPolicy"]
