"""A real API server and `rljob validate` refuse the same jobs, for the same reasons, and fill in the same defaults."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.jobs import (
    FIELDS,
    JUNK,
    Doc,
    as_yaml,
    declared,
    full,
    minimal,
    out_of_a_cluster,
    paths,
    put,
    spoiled,
    spoiled_metadata,
    valid,
    without,
)
from tests.api.server import Judge, Verdict
from tests.cluster.handle import Cluster, KubectlError
from tests.controller.process import install_crd

from rljob.api import RLJob
from rljob.api.changes import WHILE_SUSPENDED, may_change
from rljob.api.crd import spec_schema
from rljob.api.kube_yaml import Loader
from rljob.api.load import parse
from rljob.api.yaml_file import InvalidFile

WORDS = {str(name) for path in FIELDS for name in path}


@pytest.fixture(scope="module")
def server(api_server: Cluster) -> Cluster:
    install_crd(api_server)
    return api_server


@pytest.fixture(scope="module")
def judge(server: Cluster) -> Iterator[Judge]:
    with server.namespace("judge") as namespace:
        yield Judge(server.kubeconfig, namespace)


def local(text: str) -> tuple[RLJob | None, InvalidFile | None]:
    """What `rljob validate` makes of a file."""
    try:
        return parse(text), None
    except InvalidFile as error:
        return None, error


def named(text: str) -> set[str]:
    """Field names in a text."""
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))


def without_options(text: str, refusal: InvalidFile) -> str | None:
    """The job without its verifier's options, if those are all that is wrong. No schema can say which options a verifier has: `rljob
    validate` refuses them, and the operator (InvalidSpec), but not the API server."""
    if not all(problem.path.startswith("spec.reward.options") for problem in refusal.problems):
        return None
    document = yaml.load(text, Loader=Loader)
    options = document["spec"]["reward"].pop("options")
    return yaml.safe_dump(document) if isinstance(options, dict) else None


def agree(text: str, verdict: Verdict) -> None:
    """Both accept a job, and read the same; or both refuse it, and name a field in common."""
    job, refusal = local(text)
    if refusal is not None and (rest := without_options(text, refusal)) is not None:
        job, refusal = local(rest)
        verdict = replace(verdict, stored=without(verdict.stored, ("spec", "reward", "options")) if verdict.accepted else {})
    assert verdict.accepted == (refusal is None), f"{text}\nAPI server: {verdict.message or 'accepted'}\nrljob: {refusal or 'accepted'}"
    if refusal is None:
        stored = {name: verdict.stored[name] for name in ("apiVersion", "kind", "metadata", "spec")}
        again = RLJob.model_validate_json(json.dumps(stored), strict=True, by_alias=True, by_name=False)
        assert job is not None
        assert again.spec == job.spec, text
        return
    if "unrecognized" in verdict.message or "strict decoding error: yaml" in verdict.message or "error converting YAML" in verdict.message:
        # Not even YAML, or nothing that JSON can say: the API server knows of no fields yet.
        return
    here = named(" ".join(f"{p.path} {p.message}" for p in refusal.problems))
    there = named(verdict.message + " " + " ".join(verdict.fields))
    common = (here & there) - {"spec", "is", "a", "must", "the", "of", "not", "be", "in", "it", "to", "and", "or", "than", "has", "needs"}
    assert common, f"{text}\nAPI server: {verdict.message}\nrljob: {refusal}"


def test_the_valid_jobs_set_every_field() -> None:
    said = {path for spec in valid() for path in paths(spec)}
    assert [path for path in FIELDS if path not in said] == []


@pytest.mark.parametrize("spec", valid(), ids=range(len(valid())))
def test_valid_jobs_are_accepted_and_read_the_same(judge: Judge, spec: Doc) -> None:
    verdict = judge.create(as_yaml(spec))
    assert verdict.accepted, verdict.message
    agree(as_yaml(spec), verdict)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(spec=spoiled())
def test_spoiled_jobs_get_the_same_answer(judge: Judge, spec: Doc) -> None:
    text = as_yaml(spec)
    agree(text, judge.create(text))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(FIELDS, key=str)), value=JUNK)
def test_one_wrong_value_gets_the_same_answer(judge: Judge, path: tuple[str, ...], value: Any) -> None:
    text = as_yaml(put(minimal(), path, value))
    agree(text, judge.create(text))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=spoiled_metadata())
def test_spoiled_metadata_gets_the_same_answer(judge: Judge, metadata: Doc) -> None:
    text = as_yaml(minimal(), metadata=metadata)
    agree(text, judge.create(text))


def test_metadata_that_a_cluster_and_its_tools_have_written_is_accepted(judge: Judge) -> None:
    text = as_yaml(minimal(), metadata=out_of_a_cluster() | {"namespace": judge.namespace})
    verdict = judge.create(text)
    assert verdict.accepted, verdict.message
    agree(text, verdict)


@pytest.mark.parametrize("bytes_", [256 * 1024, 256 * 1024 + 1])
def test_annotations_may_have_as_many_bytes_together(judge: Judge, bytes_: int) -> None:
    text = as_yaml(minimal(), metadata={"annotations": {"a": "x" * 1023, "b": "x" * (bytes_ - 1025)}})
    verdict = judge.create(text)
    assert verdict.accepted == (bytes_ == 256 * 1024)
    agree(text, verdict)


SCALARS = [
    "yes", "on", "y", "No", "off", "true", "True", "TRUE", "~", "null", "Null", "''", "'3'", "3", "3.0", "+3", "-3", "0x10",
    "0o17", "017", "08", "1_000", "1:30", "0b11", "1e3", "1.5e3", "1E-5", "1e-5", ".5", "5.", ".inf", "-.inf", ".nan",
    "2001-01-01", "1e400", "9223372036854775808", "!!str 3", "!!int '3'", "=", "<<", "0.1", "1_0.5", "-0", "0.0", "NaN",
    "Infinity", "1e", "0x", "00", "[]", "{}", "|\n  x", "'yes'",
]  # fmt: skip


@pytest.mark.parametrize("field", ["iterations", "suspend", "queueName"])
@pytest.mark.parametrize("scalar", SCALARS)
def test_words_and_numbers_are_read_alike_however_they_are_spelt(judge: Judge, field: str, scalar: str) -> None:
    text = f"{as_yaml(minimal())}  {field}: {scalar}\n"
    agree(text, judge.create(text))


@pytest.mark.parametrize("scalar", SCALARS)
def test_fractions_are_read_alike_however_they_are_spelt(judge: Judge, scalar: str) -> None:
    text = f"{as_yaml(minimal())}  algorithm:\n    tau: {scalar}\n"
    agree(text, judge.create(text))


@pytest.mark.parametrize(
    "text",
    [
        "  iterations: 1\n  iterations: 2\n",
        "  rollout: {maxTokens: 1, maxTokens: 2}\n",
        "  evaluation: {data: {reasoningGym: {dataset: a, parameters: {1: a, true: b}}}}\n",
        "  evaluation: {data: {reasoningGym: {dataset: a, parameters: {x: .nan}}}}\n",
        "  evaluation: {data: {reasoningGym: {dataset: a, parameters: {x: null, y: 3.0, z: [1.0, 2]}}}}\n",
        "  rollout: {engine: {extraArgs: {a: null}}}\n",
        "  rollout: {engine: {extraArgs: {1: a}}}\n",
        "  rollout: {engine: {extraArgs: {a: yes}}}\n",
        "  rollout: &x {maxTokens: 3}\n  algorithm: {}\n",
        "  templates: {worker: {spec: {containers: [{name: vllm, env: null}]}}}\n",
    ],
)
def test_odd_documents_get_the_same_answer(judge: Judge, text: str) -> None:
    whole = as_yaml(minimal()) + text
    agree(whole, judge.create(whole))


@pytest.mark.parametrize("name", ["x", "a-b", "A", "1a", "a.b", "a" * 52, "a" * 53, "a-", "-a", "ä", "a_b"])
def test_names_of_jobs_are_taken_alike(judge: Judge, name: str) -> None:
    text = as_yaml(minimal(), name)
    verdict = judge.create(text)
    assert verdict.accepted == (local(text)[0] is not None), verdict.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {("rollout", "weights"): {"protocol": "rdma"}},
            "protocol is rdma, which only transport mooncake has; set transport to mooncake or protocol to tcp",
        ),
        ({("rollout", "tokenBudget"): 600}, "tokenBudget (600) is more than maxTokens (512); leave tokenBudget out or lower it"),
        ({("rollout", "tensorParallel"): 4}, "rollout.tensorParallel (4) is more than accelerator.perNode (1); lower it or raise perNode"),
        ({("model", "maxLength"): 100}, "rollout.maxTokens (512) leaves no room for a prompt in model.maxLength (100)"),
        ({("algorithm", "stepsPerIteration"): 17}, "algorithm.stepsPerIteration (17) is more than promptsPerIteration (16)"),
        (
            {("trainer", "tensorParallel"): 2, ("accelerator", "perNode"): 3},
            "trainer.tensorParallel (2) × pipelineParallel (1) × contextParallel (1) = 2 must divide trainer.nodes × accelerator.perNode",
        ),
        (
            {("trainer", "expertParallel"): 7},
            "trainer.pipelineParallel (1) × expertParallel (7) = 7 must divide trainer.nodes × accelerator.perNode = 1, since the ranks of "
            "a stage share out its experts; lower expertParallel, or ",
        ),
        (
            {("trainer", "virtualPipelineParallel"): 2},
            "trainer.virtualPipelineParallel (2) needs stages to interleave, but trainer.pipelineParallel is 1; set it to 2 or more, or",
        ),
        (
            {("model", "source"): {"scratch": {}}},
            "model.source.scratch starts from random weights, which earn no reward: set spec.warmStart",
        ),
        ({("model", "source", "url"): "https://x/y"}, "needs exactly one of path, hub, package, url, scratch"),
        ({("data", "train"): {}}, "a data source needs exactly one of path, hub, reasoningGym"),
        ({("files",): {}}, "needs exactly one of claim, configMap"),
        (
            {("model", "source"): {"scratch": {"heads": 3}}, ("warmStart",): {}},
            "hiddenSize (128) must be a multiple of heads (3), and heads a multiple of kvHeads (2)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_same_words(judge: Judge, changes: dict[tuple[str, ...], Any], message: str) -> None:
    spec = minimal()
    for path, value in changes.items():
        spec = put(spec, path, value)
    _, refusal = local(as_yaml(spec))
    verdict = judge.create(as_yaml(spec))
    assert refusal is not None
    assert message in str(refusal)
    assert message in verdict.message


def test_what_a_verifier_asks_of_the_sandbox_only_validate_can_weigh(judge: Judge) -> None:
    """And the operator. docs/gitops.md says so; a definition that can say it should."""
    text = as_yaml(put(minimal(), ("reward",), {"verifier": "code", "options": {"memory_mb": 2048}}))
    _, refusal = local(text)
    assert "memory_mb of the verifier code (2048) is more than sandbox.memoryPerRun (1Gi)" in str(refusal)
    assert judge.create(text).accepted


OTHER: dict[str, Any] = {"string": "other", "integer": 3, "number": 0.25}
"""Another valid value of a type; where the field wants more, `ALTERNATIVES` has it."""
ALTERNATIVES: dict[str, Any] = {
    "model.maxLength": 700, "model.source.scratch.heads": 2, "model.source.scratch.hiddenSize": 256, "model.source.scratch.kvHeads": 4,
    "model.source.scratch.ffnSize": 512, "model.source.scratch.contextLength": 300, "model.source.scratch.extraTokens": ["a"],
    "data.order": "shuffled", "data.tooLong": "refuse", "evaluation.data.reasoningGym.parameters": {"min_terms": 3},
    "algorithm.sampling.strategy": "uniform",
    "trainer.precision": "fp32", "trainer.tensorParallel": 1, "trainer.nodes": 4, "trainer.pipelineParallel": 1,
    "trainer.microBatchTokens": 1024, "rollout.tensorParallel": 1, "rollout.engine.dtype": "float32", "rollout.engine.kvCacheMemory": "1Gi",
    "rollout.repetition.times": 4, "rollout.engine.extraArgs": {"x": "y"}, "rollout.maxTokens": 500, "switch.policy": "restart",
    "rollout.weights.transport": "http", "rollout.weights.protocol": "rdma",
    "switch.memoryGate.leakTolerance": "2Gi", "accelerator.type": "cpu", "accelerator.perNode": 4, "accelerator.sharing": "auto",
    "reward.verifier": "exact", "reward.options": {"tolerance": 0.2}, "algorithm.samplesPerPrompt": 5,
    "data.train.columns": {"prompt": "q"},
    "rollout.tokenBudget": 255, "checkpoint.keep": 4, "backoffLimit": 4, "templates.master": {"metadata": {"labels": {"team": "b"}}},
    "sandbox.memoryPerRun": "1Gi", "sandbox.minimum": "namespaces", "sandbox.backend": "namespaces",
    "templates.worker": {}, "templates.rollout": {}, "templates.reward": {}, "templates.sandbox": {},
}  # fmt: skip


def _changed() -> list[tuple[str, ...]]:
    """Every field of the full job that holds a value rather than fields, apart from those that cannot change alone."""
    spec = full()
    leaves = [p for p, schema in FIELDS.items() if not schema.get("properties") and p in set(paths(spec))]
    return [tuple(map(str, p)) for p in leaves if ".".join(map(str, p)) != "algorithm.objective"]


@pytest.fixture(scope="module")
def running(judge: Judge) -> str:
    """The full job, which is not suspended."""
    made = judge.create(as_yaml(full() | {"suspend": False}, "running"), dry_run=False)
    assert made.accepted, made.message
    return "running"


def _nested(path: tuple[str, ...], value: Any) -> Any:
    return value if not path else {path[0]: _nested(path[1:], value)}


def _value(path: tuple[str, ...]) -> Any:
    here: Any = full()
    for name in path:
        here = here[name]
    return here


@pytest.mark.parametrize("path", _changed(), ids=".".join)
def test_a_fixed_field_of_a_job_that_exists_cannot_change_and_the_others_can(judge: Judge, running: str, path: tuple[str, ...]) -> None:
    dotted, old = ".".join(path), _value(path)
    new = ALTERNATIVES.get(dotted, not old if isinstance(old, bool) else OTHER.get(str(FIELDS[path].get("type"))))
    if dotted == "suspend":
        new = True
    verdict = judge.change(running, {"spec": _nested(path, new)})
    assert verdict.accepted == may_change(dotted), verdict.message
    if not verdict.accepted:
        assert "while the job" in verdict.message, verdict.message


@pytest.mark.parametrize(
    "field", ["warmStart", "evaluation", "files", "queueName", "checkpoint.volume", "rollout.tokenBudget", "data.system"]
)
def test_a_fixed_field_can_be_neither_added_nor_removed(judge: Judge, running: str, field: str) -> None:
    path = tuple(field.split("."))
    removed = judge.change(running, {"spec": _nested(path, None)})
    assert not removed.accepted
    assert f"spec.{field.partition('.')[0]}" in removed.message
    name = f"bare-{field.lower().replace('.', '-')}"
    bare = without(without(full(), ("warmStart",)), ("model", "source")) if field == "warmStart" else without(full(), path)
    if field == "warmStart":
        bare["model"]["source"] = {"path": "m"}
    made = judge.create(as_yaml(bare | {"suspend": False}, name), dry_run=False)
    assert made.accepted, made.message
    assert not judge.change(name, {"spec": _nested(path, _value(path))}).accepted


def test_a_renamed_parameter_is_a_change(judge: Judge) -> None:
    spec = put(minimal(), ("data", "train"), {"reasoningGym": {"dataset": "chain_sum", "parameters": {"min_terms": 2}}})
    assert judge.create(as_yaml(spec, "gym"), dry_run=False).accepted
    renamed = {"spec": {"data": {"train": {"reasoningGym": {"parameters": {"min_terms": None, "max_terms": 2}}}}}}
    assert not judge.change("gym", renamed).accepted


def test_the_queue_may_change_while_the_job_is_suspended(judge: Judge) -> None:
    assert WHILE_SUSPENDED == ("queueName",)
    assert judge.create(as_yaml(full(), "waiting"), dry_run=False).accepted
    assert judge.change("waiting", {"spec": {"queueName": "other"}}).accepted
    refused = judge.change("waiting", {"spec": {"seed": 8}})
    assert "spec.seed" in refused.fields
    assert "spec.seed cannot change while the job exists" in refused.message


def test_rollout_pods_are_scaled_by_the_scale_subresource(server: Cluster, judge: Judge, running: str) -> None:
    server.kubectl("scale", f"rljob/{running}", "--replicas=3", "-n", judge.namespace)
    assert server.get(f"rlj/{running}", namespace=judge.namespace)["spec"]["rollout"]["replicas"] == 3


def test_status_is_a_subresource_and_columns_show_it(server: Cluster, judge: Judge, running: str) -> None:
    status = {"phase": "Rollout", "iteration": 3, "reward": 0.5, "rollout": {"replicas": 2, "readyReplicas": 1}}
    assert judge.change(running, {"status": status, "spec": {"iterations": 99}}, dry_run=False, below="/status").accepted
    assert judge.change(running, {"status": {"iteration": 9}}, dry_run=False).accepted, "status outside the subresource is left alone"
    stored = server.get(f"rljob/{running}", namespace=judge.namespace)
    assert (stored["spec"]["iterations"], stored["status"]["iteration"]) == (20, 3)
    head, *lines = server.kubectl("get", "all", "-n", judge.namespace).splitlines()
    assert head.split() == ["NAME", "PHASE", "ITERATION", "REWARD", "ROLLOUTS", "AGE"]
    line = next(line for line in lines if f"/{running} " in line)
    assert line.split()[:5] == [f"rljob.rljob.dev/{running}", "Rollout", "3", "0.5", "1"]


def test_kubectl_explains_every_field(server: Cluster) -> None:
    text = server.kubectl("explain", "rljob.spec", "--recursive")
    assert {str(path[-1]) for path, _ in declared(spec_schema())} <= named(text)
    assert "Tokens that one answer may grow by" in server.kubectl("explain", "rljob.spec.rollout.tokenBudget")


def test_kubectl_refuses_an_unknown_field_by_itself(server: Cluster, judge: Judge) -> None:
    with pytest.raises(KubectlError) as caught:
        server.kubectl("apply", "-n", judge.namespace, "-f", "-", stdin=as_yaml(minimal() | {"iteratons": 3}))
    assert 'unknown field "spec.iteratons"' in caught.value.stderr
