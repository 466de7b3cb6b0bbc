"""What a person reads when a job file is wrong."""

from pathlib import Path
from typing import get_args

import pytest
from tests.api.jobs import as_yaml, minimal, out_of_a_cluster

from rljob.api import ConfigurationError, yaml_file
from rljob.api.load import load, parse
from rljob.api.metadata import Metadata
from rljob.api.verifiers import OPTIONS, VerifierName
from rljob.api.yaml_file import InvalidFile

GOOD = """\
apiVersion: rljob.dev/v1alpha1
kind: RLJob
metadata:
  name: tiny
spec:
  model:
    source: {path: model}
  data:
    train: {path: train.jsonl}
"""


def problems(extra: str, text: str = GOOD) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        parse(text + extra)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("  iteratons: 3\n", "line 10: spec.iteratons: is not a field; did you mean iterations?"),
        ("  warm_start: {}\n", "line 10: spec.warm_start: is not a field; did you mean warmStart?"),
        ("  maxTokens: 3\n", "line 10: spec.maxTokens: is not a field here; there is spec.rollout.maxTokens"),
        ("  iterations: 0\n", "line 10: spec.iterations: is 0; it must be at least 1"),
        ('  iterations: "3"\n', "line 10: spec.iterations: is '3'; it must be a whole number; remove the quotes"),
        (
            "  warmStart: {data: {path: ''}}\n",
            "line 10: spec.warmStart.data.path: is ''; it must not be empty (A `.jsonl` or `.parquet` file; relative to the folder of the "
            "job file)",
        ),
        ("  iterations: 2.5\n", "line 10: spec.iterations: is 2.5; it must be a whole number"),
        ("  iterations: 99999999999\n", "line 10: spec.iterations: is 99999999999; it must be at most 2147483647"),
        ("  activeDeadlineSeconds: 1h\n", "line 10: spec.activeDeadlineSeconds: is '1h'; it must be a whole number of seconds"),
        ("  switch: {deadlineSeconds: 5m}\n", "line 10: spec.switch.deadlineSeconds: is '5m'; it must be a number of seconds"),
        (
            "  switch: {memoryGate: {leakTolerance: 2GB}}\n",
            "line 10: spec.switch.memoryGate.leakTolerance: is '2GB'; it must be a size such as 512Mi or 2Gi (How much the rest that a "
            "sleeping owner keeps may grow over the first hand-over's; more is a leak and restarts that owner)",
        ),
        ("  trainer: 4\n", "line 10: spec.trainer: is 4, but has fields of its own; write them below it, indented"),
        ("  trainer: [4]\n", "line 10: spec.trainer: is [4], but has fields of its own; write them without a dash or bracket"),
        ("  accelerator: {type: gpu}\n", "line 10: spec.accelerator.type: is 'gpu'; it is one of cpu, nvidia"),
        (
            "  trainer:\n    precision: bf61\n",
            "line 11: spec.trainer.precision: is 'bf61'; it is one of auto, fp32, bf16; did you mean bf16?",
        ),
        ("  rollout: {temperature: 3}\n", "line 10: spec.rollout.temperature: is 3; it must be at most 2"),
        ("  data: {}\n", "line 10: spec.data: stands twice, first in line 8; remove one of the two"),
        ("  files: {}\n", "line 10: spec.files: needs exactly one of claim, configMap; none is set"),
        (
            "  rollout: {tensorParallel: 4}\n",
            "line 5: spec: rollout.tensorParallel (4) is more than accelerator.perNode (1); lower it or raise perNode",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_line_its_value_and_the_remedy(extra: str, problem: str) -> None:
    assert problems(extra) == [problem]


def test_of_what_can_be_but_one_thing_that_one_is_said() -> None:
    assert problems("", GOOD.replace("RLJob", "RlJob")) == ["line 2: kind: is 'RlJob'; it must be RLJob"]


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("  trainer: {learningRate: 1e-5}\n", "trainer.learningRate: is not a field here; there is spec.trainer.optimizer.learningRate"),
        (
            "  learningRate: 1e-5\n",
            "learningRate: is not a field here; there is spec.warmStart.learningRate and spec.rewardModel.learningRate and "
            "spec.trainer.optimizer.learningRate",
        ),
        (
            "  evaluation: {data: {path: h.jsonl}, path: h.jsonl}\n",
            "evaluation.path: is not a field here; there is spec.evaluation.data.path",
        ),
        ("  templates: {workers: {}}\n", "templates.workers: is not a field; did you mean worker?"),
        ("  queue: q\n", "queue: is not a field; did you mean queueName or spec.sandbox.queue?"),
        ("  algorithm: {steps: 4}\n", "algorithm.steps: is not a field; did you mean stepsPerIteration?"),
        (
            "  checkpoint: {maxTokens: 4}\n",
            "checkpoint.maxTokens: is not a field here; there is spec.rollout.maxTokens; spec.checkpoint has keep, keepEvery, volume",
        ),
    ],
)
def test_a_field_of_that_name_is_named_where_it_may_be_what_was_meant(extra: str, problem: str) -> None:
    assert problems(extra) == [f"line 10: spec.{problem}"]


METADATA = GOOD.replace("  name: tiny\n", "  name: tiny\n  {}\n")
_NAMED = "at most 63 letters, digits, '-', '_' or '.', a letter or digit first and last"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("labls: {team: a}", "labls: is not a field; did you mean labels?"),
        ("iterations: 3", "iterations: is not a field here; there is spec.iterations; metadata has name, namespace, labels, annotations"),
        ("labels: {foo bar: x}", f"labels.foo bar: 'foo bar' is no name that Kubernetes takes: {_NAMED}, and before it a domain and"),
        ("labels: {Example.com/a: x}", "labels.Example.com/a: 'Example.com/a' is no name that Kubernetes takes: "),
        ("labels: {a/b/c: x}", "labels.a/b/c: 'a/b/c' is no name that Kubernetes takes: "),
        (f"labels: {{{'a' * 64}: x}}", f"labels.{'a' * 64}: '{'a' * 64}' is no name that Kubernetes takes: "),
        (f"labels: {{{'a' * 254}/b: x}}", f"labels.{'a' * 254}/b: '{'a' * 254}/b' is no name that Kubernetes takes: "),
        ("labels: {team: a b}", f"labels.team: is 'a b'; a label has {_NAMED}; shorten it, or put the text into an annotation"),
        ("labels: {team: true}", "labels.team: is true; it must be text; put it in quotes"),
        ("labels: team", "labels: is 'team', but has fields of its own; write them below it, indented"),
        ("labels: {a b: }", "labels.a b: 'a b' is no name that Kubernetes takes: "),
        ("annotations: {a/: x}", "annotations.a/: 'a/' is no name that Kubernetes takes: "),
        (f"annotations: {{a: {'ä' * (128 * 1024)}}}", "annotations: have 262145 bytes, the API server takes 262144; put the long ones"),
        ("namespace: Bad_NS", "namespace: is 'Bad_NS'; use lower-case letters, digits and dashes, at most 63, such as team-a"),
        ("finalizers: [a b]", "finalizers[0]: 'a b' is no name that Kubernetes takes: "),
        ("ownerReferences: [{apiVersion: v1, kind: Pod, name: x}]", "ownerReferences[0].uid: is missing (Its uid)"),
        ("uid: 3", "uid: is 3; it must be text; put it in quotes"),
        ("creationTimestamp: yesterday", "creationTimestamp: is 'yesterday'; it must match "),
    ],
    ids=lambda text: text[:40],
)
def test_metadata_that_no_cluster_takes_is_refused(line: str, problem: str) -> None:
    (found,) = problems("", METADATA.replace("{}", line))
    assert found.startswith(f"line 5: metadata.{problem}")


def test_metadata_that_a_cluster_and_its_tools_have_written_is_taken() -> None:
    job = parse(as_yaml(minimal(), metadata=out_of_a_cluster()))
    assert job.metadata.labels == {"app.kubernetes.io/name": "Tiny_1.0", "empty": ""}
    assert {str(field.alias) for field in Metadata.model_fields.values()} == {"name", "namespace", *out_of_a_cluster()}
    assert parse(METADATA.replace("{}", "creationTimestamp: null")) == parse(GOOD)


def test_what_only_the_cluster_writes_is_no_difference_between_two_jobs() -> None:
    kept = parse(as_yaml(minimal(), metadata=out_of_a_cluster())).model_dump()["metadata"]
    assert kept.keys() == {"name", "namespace", "labels", "annotations"}


@pytest.mark.parametrize(
    ("reward", "problem"),
    [
        ("{verifier: math, options: {plaec: boxed}}", "reward.options.plaec: is no option of math; did you mean place?"),
        ("{verifier: math, options: {tolerance: 1}}", "reward.options.tolerance: is no option of math; it has place"),
        ("{verifier: numeric, options: {tolerance: -1}}", "reward.options.tolerance: is -1; it must be at least 0"),
        ('{verifier: length, options: {zero_at: "3"}}', "reward.options.zero_at: is '3'; it must be a whole number; remove the quotes"),
        ("{options: {place: boxed}}", "reward.options: are set, but spec.reward.verifier is not; name the verifier that they are for"),
        (
            "{verifier: regex, options: {pattern: '(a'}}",
            "reward.options.pattern: '(a' is no regular expression: missing ), unterminated subpattern at position 0; "
            "escape special characters with \\",
        ),
        (
            "{verifier: weighted, options: {terms: [{verifier: math, options: {place: box}}]}}",
            "reward.options.terms[0].options.place: is 'box'; it is one of whole, boxed, auto; did you mean boxed?",
        ),
        (
            "{verifier: weighted, options: {terms: [{verifier: math, wieght: 2}]}}",
            "reward.options.terms[0].wieght: is no option of a term; did you mean weight?",
        ),
        (
            "{verifier: weighted, options: {terms: [{verifier: length}]}}",
            "reward.options: no term decides whether an answer is right; set `decides: true` for one, or add a verifier",
        ),
        ("{verifier: http, options: {url: judge}}", "reward.options.url: is 'judge'; it must match ^https?://[^\\s/@]+(/\\S*)?$"),
        (
            "{verifier: code, options: {language: pyhton}}",
            "reward.options.language: is 'pyhton'; it is one of python, c, cpp, bash, javascript, java, go, rust; did you mean python?",
        ),
        ("{verifier: code, options: {cpu_seconds: 1000.0}}", "reward.options.cpu_seconds: is 1000; it must be at most 120"),
        ("{verifier: code, options: {wall_seconds: 1000.0}}", "reward.options.wall_seconds: is 1000; it must be at most 300"),
    ],
)
def test_options_of_a_verifier_are_checked_with_the_job(reward: str, problem: str) -> None:
    assert problems(f"  reward: {reward}\n") == [f"line 10: spec.{problem}"]


def test_a_job_that_judges_programs_has_a_sandbox() -> None:
    code = ("{verifier: code}", "{verifier: weighted, options: {terms: [{verifier: code}]}}")
    assert all(parse(f"{GOOD}  reward: {reward}\n").spec.needs_sandbox for reward in code)
    assert parse(GOOD + "  sandbox: {enabled: true}\n").spec.needs_sandbox
    assert not parse(GOOD + "  reward: {verifier: math}\n").spec.needs_sandbox


@pytest.mark.parametrize(
    "reward",
    [
        "{verifier: code, options: {memory_mb: 2048}}",
        "{verifier: weighted, options: {terms: [{verifier: code, options: {memory_mb: 2048}}]}}",
    ],
)
def test_programs_that_may_have_more_memory_than_the_sandbox_gives_are_refused(reward: str) -> None:
    refusal = "line 5: spec: memory_mb of the verifier code (2048) is more than sandbox.memoryPerRun (1Gi); lower it or raise memoryPerRun"
    assert problems(f"  reward: {reward}\n") == [refusal]
    assert parse(f"{GOOD}  reward: {reward}\n  sandbox: {{memoryPerRun: 2Gi}}\n").spec.sandbox.memory_mb == 2048


def test_every_verifier_has_options_that_are_described() -> None:
    assert set(OPTIONS) == {name for choice in get_args(VerifierName) for name in (get_args(choice) or (choice,))}
    undescribed = [
        f"{name}.{field}" for name, model in OPTIONS.items() for field, info in model.model_fields.items() if not info.description
    ]
    assert undescribed == []


def test_parallel_sizes_that_do_not_fit_are_explained() -> None:
    (problem,) = problems("  accelerator: {perNode: 3}\n  trainer: {tensorParallel: 2}\n")
    assert "must divide trainer.nodes × accelerator.perNode = 3; set accelerator.perNode to a multiple of 2" in problem


@pytest.mark.parametrize(("nodes", "stages", "works"), [(2, 4, 2), (3, 4, 4), (4, 6, 3)])
def test_ranks_for_stages_on_several_nodes_are_said_for_each_node(nodes: int, stages: int, works: int) -> None:
    (problem,) = problems(f"  trainer: {{nodes: {nodes}, pipelineParallel: {stages}}}\n")
    assert problem.endswith(f"set accelerator.perNode to a multiple of {works}")
    assert parse(f"{GOOD}  accelerator: {{perNode: {works}}}\n  trainer: {{nodes: {nodes}, pipelineParallel: {stages}}}\n")


@pytest.mark.parametrize(
    ("trainer", "per_node", "works"),
    [("{expertParallel: 7}", 1, 7), ("{expertParallel: 2, pipelineParallel: 2}", 2, 4), ("{expertParallel: 3, tensorParallel: 2}", 2, 6)],
)
def test_experts_are_shared_out_among_the_ranks_of_a_stage(trainer: str, per_node: int, works: int) -> None:
    (problem,) = problems(f"  accelerator: {{perNode: {per_node}}}\n  trainer: {trainer}\n")
    assert f"must divide trainer.nodes × accelerator.perNode = {per_node}, since the ranks of a stage share out its experts" in problem
    assert problem.endswith(f"; lower expertParallel, or set accelerator.perNode to a multiple of {works}")
    assert parse(f"{GOOD}  accelerator: {{perNode: {works}}}\n  trainer: {trainer}\n")


@pytest.mark.parametrize(
    ("field", "extra"),
    [("checkpoint.volume", "  checkpoint: {{volume: {}}}\n"), ("queueName", "  queueName: {}\n"), ("credentials", "  credentials: {}\n")],
)
@pytest.mark.parametrize("name", ["a b", "A", "-a"])
def test_a_name_that_no_object_can_have_is_refused(field: str, extra: str, name: str) -> None:
    (problem,) = problems(extra.format(name))
    assert problem.startswith(f"line 10: spec.{field}: is {name.strip(chr(34))!r}; it must match ")


@pytest.mark.parametrize("extra", ['checkpoint: {volume: ""}', 'credentials: ""'])
def test_an_object_has_a_name(extra: str) -> None:
    assert "is ''; it must match " in problems(f"  {extra}\n")[0]


def test_a_queue_has_a_name_that_a_label_can_hold_or_none() -> None:
    assert parse(f'{GOOD}  queueName: ""\n')
    assert parse(f"{GOOD}  queueName: {'q' * 63}\n")
    assert "spec.queueName: is" in problems(f"  queueName: {'q' * 64}\n")[0]


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    found = problems("  iterations: 0\n  trainer:\n    nodes: none\n  seeds: 1\n")
    assert [p.partition(":")[0] for p in found] == ["line 10", "line 12", "line 13"]
    with pytest.raises(InvalidFile, match=r"rljob\.yaml: 2 problems\n  line 10: .*\n  line 11: "):
        parse(GOOD + "  iterations: 0\n  seeds: 1\n")


def test_what_is_missing_is_described() -> None:
    text = GOOD.replace("  data:\n    train: {path: train.jsonl}\n", "")
    assert problems("", text) == ["line 5: spec.data: is missing (The prompts to train on)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no RLJob"),
        ("- a\n", "holds no RLJob"),
        ("a: [1\n", "is not YAML"),
        ("a: b: c\n", "line 1: is not YAML: mapping values are not allowed here"),
        ("a: 1\nb 2\nc: 3\n", "line 2: is not YAML: could not find expected ':'"),
        ("a: 1\nb:2\nc: 3\n", "line 2: is not YAML: could not find expected ':'"),
        ("a: &t {b: *t}\n", "stand for more than 100000 values, or for themselves"),
        ("a: " + "[" * 3000 + "]" * 3000, "is nested too deeply"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
            "stand for more than 100000 values",
        ),
    ],
    ids=["nothing", "a list", "a bracket", "two colons", "no colon", "no space", "an alias of itself", "too deep", "a billion laughs"],
)
def test_what_is_no_job_at_all_is_said_in_one_line(text: str, message: str) -> None:
    (problem,) = problems("", text)
    assert message in problem


def test_values_that_are_written_out_may_be_as_many_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_file, "MOST_NODES", 3)
    assert parse(GOOD)
    assert "its aliases stand for more than 3 values" in problems("  templates: {master: &a {x: [1, 2, 3]}, worker: *a}\n")[0]


@pytest.mark.parametrize("text", [f"---\n{GOOD}---\n", f"# A job.\n---\n{GOOD}...\n---\n# The end.\n"])
def test_documents_that_hold_nothing_are_passed_over(text: str) -> None:
    assert parse(text) == parse(GOOD)


def test_lines_are_those_of_the_file_also_behind_an_empty_document() -> None:
    assert problems("  iteratons: 3\n---\n", "---\n" + GOOD) == ["line 11: spec.iteratons: is not a field; did you mean iterations?"]


def test_an_object_beside_the_job_is_put_into_a_file_of_its_own() -> None:
    assert problems("---\nkind: ConfigMap\n") == ["line 11: begins a second document; put it into a file of its own"]


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="there is no such file; give the path of an RLJob in YAML"):
        load(tmp_path / "nowhere.yaml")


def test_a_number_of_thousands_of_digits_is_no_number() -> None:
    (problem,) = problems(f"  iterations: {'1' * 5000}\n")
    assert problem.startswith("line 10: spec.iterations: is '111")


def test_a_number_where_text_belongs_is_put_in_quotes() -> None:
    assert problems("  queueName: 3\n") == ["line 10: spec.queueName: is 3; it must be text; put it in quotes"]


def test_what_no_cluster_can_store_is_refused_wherever_it_stands() -> None:
    assert problems("  reward: {options: {x: .nan}}\n") == ["line 10: .nan is no number that JSON has; leave it out"]


def test_a_field_without_a_value_is_one_that_is_not_there() -> None:
    assert parse(GOOD + "  iterations:\n  warmStart:\n") == parse(GOOD)
    assert problems("  iteratons:\n") == ["line 10: spec.iteratons: is not a field; did you mean iterations?"]


def test_a_job_out_of_a_cluster_can_be_used_again() -> None:
    assert parse(GOOD + "status: {phase: Rollout}\n") == parse(GOOD)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("yes", True), ("off", False), ("017", 15), ("0o17", 15), ("08", 8), ("1_000", 1000), ("1e3", 1000), ("1000.0", 1000), ("1.5", 1.5),
        ("1:30", "1:30"), ("2001-01-01", "2001-01-01"), ("1e400", "1e400"), ("=", "="), ("<<", "<<"), ("~", None), ("tRue", "tRue"),
    ],
)  # fmt: skip
def test_plain_words_are_what_kubectl_takes_them_for(word: str, value: object) -> None:
    job = parse(f"{GOOD}  templates: {{master: {{x: {word}}}}}\n")
    found = job.spec.templates.master["x"]
    assert (type(found), found) == (type(value), value)


def test_numbers_are_read_as_a_cluster_reads_them() -> None:
    job = parse(GOOD + "  trainer: {optimizer: {learningRate: 1e-5, clipGrad: 1}}\n")
    assert job.spec.trainer.optimizer.learning_rate == 1e-5
    assert job.spec.trainer.optimizer.clip_grad == 1.0


def test_overrides_are_yaml_and_reach_any_depth() -> None:
    job = parse(GOOD, overrides=["spec.iterations=3", "spec.trainer.optimizer.learningRate=2e-5", "spec.warmStart={steps: 5}"])
    assert (job.spec.iterations, job.spec.trainer.optimizer.learning_rate) == (3, 2e-5)
    assert job.spec.warm_start is not None
    assert job.spec.warm_start.steps == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("spec.iterations", "expected FIELD=VALUE, such as --set spec.iterations=3"),
        ("iterations=3", "a field begins with `spec.` or `metadata.`; try --set spec.iterations=3"),
        ("spec.iteratons=3", "spec.iteratons: is not a field; did you mean iterations?"),
        ("spec.model.source.path.x=3", "path is 'model', which has no fields"),
        ("spec.iterations=[", "the value is not YAML"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(GOOD, overrides=[override])
    assert message in str(caught.value)
