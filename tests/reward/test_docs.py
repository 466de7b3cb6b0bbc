"""docs/reward.md: every verifier and every option is there, and what is written in it works."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.manifests.jobs import objects

from rljob.api import RLJob
from rljob.api.load import parse
from rljob.api.verifiers import OPTIONS, Term, named
from rljob.reward.registry import check
from rljob.wire.reward import Reply

PAGE = (Path(__file__).parents[2] / "docs" / "reward.md").read_text()
SECTIONS = {name: text for name, text in re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)}


def blocks(section: str, language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return found


def job(section: str) -> RLJob:
    """The job that a section's YAML is a part of."""
    (block,) = blocks(section, "yaml")
    spec = {"model": {"source": {"path": "m"}}, "data": {"train": {"path": "t"}}} | yaml.safe_load(block)
    return parse(yaml.safe_dump({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": spec}))


def test_every_verifier_has_a_section() -> None:
    assert list(SECTIONS) == list(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_explained_and_no_other(name: str) -> None:
    table = re.search(r"^\| option \|.*?(?=\n\n)", SECTIONS[name], re.MULTILINE | re.DOTALL)
    assert table is not None
    explained = [option for first in re.findall(r"^\| (`.*?) \|", table[0], re.MULTILINE) for option in re.findall(r"`(\w+)`", first)]
    terms = ["weight", "decides", "only_if_right"] if name == "weighted" else []
    assert explained == [*OPTIONS[name].model_fields, *terms]
    assert set(terms) < Term.model_fields.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_job_is_valid(name: str) -> None:
    assert job(name).spec.reward.verifier == name


@pytest.mark.parametrize("name", OPTIONS)
def test_every_record_can_be_judged(name: str) -> None:
    reward = job(name).spec.reward
    allowed = frozenset(named(reward.verifier, reward.options))
    for line in "".join(blocks(name, "json")).splitlines():
        record: dict[str, Any] = json.loads(line)
        check(name, reward.options | record.get("options", {}), record.get("reference"), allowed)


def test_the_secret_of_a_judge_reaches_the_reward_service_alone() -> None:
    (block,) = blocks("judge", "yml")
    base = job("judge").model_dump(mode="json", by_alias=True)
    given = RLJob.model_validate(base | {"spec": base["spec"] | {"files": {"claim": "files"}} | yaml.safe_load(block)})
    pods = [found for found in objects(given) if found["kind"] in ("Pod", "Deployment")]
    holders = [pod["metadata"]["name"] for pod in pods if "secretKeyRef" in json.dumps(pod)]
    assert holders == ["a-reward"]
    (deployment,) = [pod for pod in pods if pod["metadata"]["name"] == "a-reward"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (variable,) = [one for one in container["env"] if one["name"] == given.spec.reward.options["key_variable"]]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "judge", "key": "api-key"}}


def test_the_job_that_trains_a_reward_model_is_valid() -> None:
    (block,) = blocks("reward-model", "yml")
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": yaml.safe_load(block)}
    assert not parse(yaml.safe_dump(document)).spec.generates


def test_the_function_does_what_is_said() -> None:
    (block,) = blocks("import", "python")
    scope: dict[str, Any] = {}
    exec(block, scope)
    assert scope["judge"](prompt="", answer="a " * 160, reference=None, **job("import").spec.reward.options["options"]) == (
        0.5,
        "160 words",
    )


def test_the_reply_is_one() -> None:
    (block,) = blocks("http", "text")
    assert Reply.model_validate_json(block.split("200   ")[1]).reward == 0.5
