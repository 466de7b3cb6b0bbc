"""The CustomResourceDefinition: structural, complete, small, and the one that is committed."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from rljob.api import ConfigurationError, RLJob, RLJobSpec
from rljob.api.changes import CHANGEABLE, WHILE_SUSPENDED
from rljob.api.crd import crd_yaml, custom_resource_definition, job_schema, spec_schema
from rljob.api.explain import explain
from rljob.api.load import models_in, parse
from rljob.api.rules import RULES, fixed_fields, formatted
from rljob.api.verifiers import OPTIONS
from rljob.master.decisions.identity import FREE

ROOT = Path(__file__).parents[2]
SCHEMA = job_schema()
KNOWN = {
    "type", "description", "enum", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength",
    "maxLength", "items", "properties", "required", "additionalProperties", "default", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
}  # fmt: skip
"""Of OpenAPI v3 what a structural schema may hold and this one does."""


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from nodes(schema[inner], f"{path}[]")


ALL = list(nodes(SCHEMA))


def test_the_committed_definition_is_the_one_that_the_models_make() -> None:
    assert (ROOT / "crds" / "rljobs.rljob.dev.yaml").read_text() == crd_yaml(), "run `make crd`"


def test_it_is_small_enough_for_client_side_apply() -> None:
    assert len(crd_yaml().encode()) < 256 * 1024


def test_the_schema_is_structural() -> None:
    for path, node in ALL:
        assert node.keys() <= KNOWN, path
        assert "type" in node or node.get("x-kubernetes-preserve-unknown-fields"), path
        assert not ("properties" in node and "additionalProperties" in node), path
        if "default" in node:
            assert node["default"] is not None, path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert node.get(bound, True) is True, path


def test_every_field_is_described() -> None:
    undescribed = [
        path
        for path, node in ALL
        if not node.get("description") and not path.endswith("[]") and path not in ("", ".metadata", ".metadata.name")
    ]
    assert undescribed == []


def _filled(schema: dict[str, Any], value: Any) -> Any:
    """What the API server's defaulting makes of an object."""
    if isinstance(value, dict) and "properties" in schema:
        out = dict(value)
        for name, field in schema["properties"].items():
            if name not in out and "default" in field:
                out[name] = field["default"]
            if name in out:
                out[name] = _filled(field, out[name])
        return out
    return value


def test_the_cluster_fills_in_the_same_defaults_as_the_models() -> None:
    text = (
        "apiVersion: rljob.dev/v1alpha1\nkind: RLJob\nmetadata: {name: x}\n"
        "spec:\n  model: {source: {scratch: {}}}\n  data: {train: {path: a.jsonl}}\n  warmStart: {}\n"
    )
    document = yaml.safe_load(text)
    filled = _filled(spec_schema(), document["spec"])
    assert filled["algorithm"]["samplesPerPrompt"] == 8
    assert filled["model"]["source"]["scratch"]["hiddenSize"] == 128
    assert RLJob.model_validate(document | {"spec": filled}) == parse(text)


def test_status_and_scale_are_subresources_and_columns_show_the_job() -> None:
    definition = custom_resource_definition()
    (version,) = definition["spec"]["versions"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.rollout.replicas"
    assert version["subresources"]["status"] == {}
    assert [c["name"] for c in version["additionalPrinterColumns"]] == ["Phase", "Iteration", "Reward", "Rollouts", "Age"]
    assert definition["spec"]["names"]["shortNames"] == ["rlj"]
    assert definition["spec"]["names"]["categories"] == ["all"]
    paths = dict(ALL)
    for column in version["additionalPrinterColumns"][:-1]:
        assert paths[column["jsonPath"]]["type"] == column["type"]
    for name in ("specReplicasPath", "statusReplicasPath", "labelSelectorPath"):
        assert version["subresources"]["scale"][name] in paths


def test_rules_stand_where_they_belong() -> None:
    paths = dict(ALL)
    for path, rules in RULES.items():
        written = [entry["rule"] for entry in paths[f".{path}"]["x-kubernetes-validations"]]
        assert written[: len(rules)] == [rule.rule for rule in rules]


def test_a_message_is_a_text_with_values() -> None:
    assert formatted("{self.a}% of ({self.b}) isn't {self.c * 2}") == r"'%d%% of (%d) isn\'t %d'.format([self.a, self.b, self.c * 2])"
    (entry,) = [rule.entry() for rule in RULES["spec.rollout"]]
    assert entry["message"] == "tokenBudget is more than maxTokens; leave tokenBudget out or lower it"
    assert "contextParallel must divide trainer.nodes × accelerator.perNode" in RULES["spec"][0].entry()["message"]
    assert "messageExpression" not in RULES["spec.files"][0].entry()


def test_every_field_is_fixed_or_changeable_and_a_changeable_one_exists() -> None:
    fixed = {f"{place}.{rule.field}".removeprefix(".") for place, rule in fixed_fields(spec_schema())}
    paths = {path.removeprefix(".spec.") for path, _ in ALL}
    for field in (*CHANGEABLE, *WHILE_SUSPENDED):
        assert field in paths
        assert field not in fixed - set(WHILE_SUSPENDED)
    for field in ("model", "data", "seed", "algorithm", "trainer", "accelerator", "checkpoint.volume", "evaluation.data", "warmStart"):
        assert field in fixed


def test_what_may_change_in_a_cluster_may_change_for_the_state_too() -> None:
    for field in (*CHANGEABLE, *WHILE_SUSPENDED):
        # Credentials and files say how something is fetched; the digest of what was fetched is compared.
        assert any(field == free or field.startswith(f"{free}.") for free in FREE), field


def test_explain_knows_the_options_of_every_verifier() -> None:
    names = [name for depth, name, kind, _ in explain("spec.reward.options") if (depth, kind) == (1, "options")]
    assert names == list(OPTIONS)
    for name, model in OPTIONS.items():
        assert [option for depth, option, _, _ in explain(f"spec.reward.options.{name}") if depth == 1] == list(model.model_fields)
    rows = {option: (kind, text) for _, option, kind, text in explain("spec.reward.options.numeric")}
    assert rows["pick"][0] == "only|last, default last"
    assert (2, "weight", "number > 0, default 1.0") in [row[:3] for row in explain("spec.reward.options.weighted")]
    with pytest.raises(ConfigurationError, match=r"no verifier 'maths'; did you mean spec\.reward\.options\.math\?"):
        explain("spec.reward.options.maths")


def test_explain_shows_a_field_and_what_is_below_it() -> None:
    rows = explain("spec.rollout")
    assert rows[0] == (0, "spec.rollout", "object", "Generation with vLLM.")
    by_name = {name: (kind, text) for _, name, kind, text in rows[1:]}
    assert by_name["temperature"] == ("number > 0 <= 2, default 1.0", "Sampling temperature of training answers.")
    assert by_name["tokenBudget"][0] == "integer >= 1"
    assert dict((name, kind) for _, name, kind, _ in explain("spec"))["model"] == "object, required"
    assert explain("spec.rollout.engine.extraArgs")[0][2] == "map[string]string"
    assert explain("spec.switch.policy")[0][2] == "auto|restart|sleep, default auto"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("spec.rolout", "spec has no field 'rolout'; did you mean spec.rollout?"),
        ("spec.iterations.x", "spec.iterations has no field 'x'"),
        ("specc", "RLJob has no field 'specc'; did you mean spec?"),
    ],
)
def test_explain_knows_the_near_name(path: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        explain(path)
    assert message in str(caught.value)


WITHOUT_A_RULE = {"spec": {"_programs_fit"}}
"""Place to checks that a schema cannot make: to a rule, the options of a verifier have no type. docs/gitops.md names them."""


def _checks(model: type[BaseModel], path: str) -> Iterator[tuple[str, str, int]]:
    """(Place, validator, how many checks it makes) of whatever a model checks beyond its fields."""
    for name, validator in model.__pydantic_decorators__.model_validators.items():
        if validator.info.mode == "after":
            nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(validator.func))))
            called = (node.func for node in nodes if isinstance(node, ast.Call))
            yield path, name, sum(isinstance(func, ast.Name) and func.id in ("ValueError", "exactly_one") for func in called)
    for field in model.model_fields.values():
        for below in models_in(field.annotation):
            yield from _checks(below, f"{path}.{field.alias}")


def test_everything_that_a_model_checks_is_a_rule_for_the_api_server() -> None:
    found = [check for check in _checks(RLJobSpec, "spec") if check[1] not in WITHOUT_A_RULE.get(check[0], ())]
    assert [check for check in found if not check[2]] == [], "a check that this test does not see"
    assert {path: sum(count for at, _, count in found if at == path) for path, _, _ in found} == {
        path: len(rules) for path, rules in RULES.items()
    }


def test_no_model_checks_a_single_field_in_a_way_that_the_schema_cannot_say() -> None:
    models: set[type[BaseModel]] = {RLJobSpec, *_models(RLJobSpec)}
    # But for the options of a verifier, which no schema can tell from those of another; the operator refuses them with the same words.
    assert [m.__name__ for m in models if m.__pydantic_decorators__.field_validators] == ["RewardSpec"]


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        for below in models_in(field.annotation):
            yield below
            yield from _models(below)
