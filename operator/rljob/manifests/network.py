"""NetworkPolicies: a job's pods hear and say only what the picture shows.

    operator ─► master ─► worker, rollout (engine)     worker, rollout ─► master
                master ─► reward ─► sandbox             worker, rollout ◄─► each other (collectives, weights)
                prepare ─► anywhere, if the job downloads something
                reward ─► anywhere, if the job names a judge by its address

The sandbox reaches nothing at all: not even names are looked up.

A pod's node may always reach it (probes, `kubectl port-forward`). What else a site needs, such as a Prometheus that reads the master's
`/metrics`, is a policy of its own: policies add up.
"""

from collections.abc import Sequence

from rljob.api import RLJob
from rljob.api.verifiers import uses
from rljob.manifests.context import Context
from rljob.manifests.environment import port_number
from rljob.manifests.names import child, match, metadata
from rljob.manifests.types import LABEL_ROLE, OPERATOR_LABELS, Manifest
from rljob.plan import Pod

NODES = ["rollout", "worker"]
_DNS = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
_ANYWHERE = [{"namespaceSelector": {}, "podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
"""A judge, a mirror of the hub or an S3 store can be a Service of any namespace, which no block of addresses covers."""


def network_policies(context: Context) -> list[Manifest]:
    """One policy per kind of pod; what it does not name is denied."""
    master = _port(context, "master")
    worker = next(pod for pod in context.plan.pods if pod.role in NODES)
    engine = [{"protocol": "TCP", "port": port_number(worker, "engine")}]
    anywhere: list[Manifest] = [{"to": _ANYWHERE}] if downloads(context.job) else []
    nodes, alone = _pods(context, NODES), _pods(context, ["master"])
    asked: list[Manifest] = _judges(context.job)
    sandboxes: list[Manifest] = []
    if any(service.name == "sandbox" for service in context.plan.services):
        port = _port(context, "sandbox")
        asked = [*(asked or [_DNS]), {"to": [_pods(context, ["sandbox"])], "ports": port}]
        sandboxes = [_policy(context, "sandbox", ["sandbox"], [{"from": [_pods(context, ["reward"])], "ports": port}], [])]
    judging: list[Manifest] = []
    rewards: list[Manifest] = []
    if any(service.name == "reward" for service in context.plan.services):
        reward = _port(context, "reward")
        judging = [{"to": [_pods(context, ["reward"])], "ports": reward}]
        rewards = [_policy(context, "reward", ["reward"], [{"from": [alone], "ports": reward}], asked)]
    return [
        _policy(
            context,
            "master",
            ["master"],
            [{"from": [nodes, _operator(context)], "ports": master}],
            [_DNS, {"to": [nodes], "ports": engine}, *judging, *anywhere],
        ),
        _policy(
            context,
            "nodes",
            NODES,
            [{"from": [alone], "ports": engine}, {"from": [nodes]}],
            [_DNS, {"to": [alone], "ports": master}, {"to": [nodes]}],
        ),
        *rewards,
        *sandboxes,
    ]


def downloads(job: RLJob) -> bool:
    """Does `prepare` fetch something over the network?"""
    spec = job.spec
    data = [spec.data.train, spec.evaluation and spec.evaluation.data, spec.warm_start and spec.warm_start.data]
    source = spec.model.source
    return bool(source.hub or source.url or any(d.hub for d in data if d))


def _judges(job: RLJob) -> list[Manifest]:
    """Where the reward service asks others."""
    if not uses(job.spec.reward.verifier, job.spec.reward.options) & {"http", "judge", "reward-model"}:
        return []
    return [_DNS, {"to": _ANYWHERE}]


def _port(context: Context, service: str) -> list[Manifest]:
    found = next(s for s in context.plan.services if s.name == service)
    pod: Pod = context.plan.pod(found.pod)
    return [{"protocol": "TCP", "port": port_number(pod, found.port)}]


def _pods(context: Context, roles: Sequence[str]) -> Manifest:
    return {"podSelector": _selector(context, roles)}


def _selector(context: Context, roles: Sequence[str]) -> Manifest:
    if len(roles) == 1:
        return {"matchLabels": match(context.name, roles[0])}
    return {"matchLabels": match(context.name), "matchExpressions": [{"key": LABEL_ROLE, "operator": "In", "values": list(roles)}]}


def _operator(context: Context) -> Manifest:
    namespace = context.settings.operator_namespace
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}} if namespace else {}
    return {"namespaceSelector": where, "podSelector": {"matchLabels": OPERATOR_LABELS}}


def _policy(context: Context, name: str, roles: Sequence[str], ingress: list[Manifest], egress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(context.owner, child(context.name, name), roles[0] if len(roles) == 1 else None),
        "spec": {
            "podSelector": _selector(context, roles),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            # An empty list is the same as none, and the API server keeps none: with it every apply would be a change.
            **({"egress": egress} if egress else {}),
        },
    }
