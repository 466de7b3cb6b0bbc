"""Every example is a valid job, and its data is what its script makes."""

import asyncio
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.sandbox.real import judged, real_service

from rljob.api import RLJob
from rljob.api.comparison import load_comparison
from rljob.api.verifiers import InstructionOptions
from rljob.prepare.data_sources import load
from rljob.prepare.preparation import Folders, make_splits, read_splits
from rljob.prepare.prompts import PromptTokenizer
from rljob.reward.verifiers.code import last_block
from rljob.reward.verifiers.instruction import broken
from rljob.sandbox.service import Service

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = sorted(EXAMPLES.glob("*/rljob.yaml"))
POLICIES = [file for file in JOBS if file.parent.name != "reward-model"] + [EXAMPLES / "reward-model" / "policy.yaml"]


def _job(file: Path) -> RLJob:
    return RLJob.model_validate(yaml.safe_load(file.read_text()))


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Letters:
    """A twin of a tokenizer: a token is a character."""

    eos_token_id = 0

    def apply_chat_template(self, chat: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        return "".join(m["content"] for m in chat)

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def test_there_are_the_examples_that_the_readme_names() -> None:
    assert [f.parent.name for f in JOBS] == ["arithmetic", "code", "reward-model", "smollm2", "tiny"]


@pytest.mark.parametrize("file", POLICIES, ids=lambda f: f.parent.name)
def test_an_example_is_a_valid_job_with_data_that_passes_every_check(file: Path, tmp_path: Path) -> None:
    spec = _job(file).spec
    assert spec.evaluation is not None
    folders = Folders(tmp_path, tmp_path, tmp_path, file.parent)
    splits = make_splits(spec, read_splits(spec, folders, lambda line: None), PromptTokenizer(Letters(), spec.data.system))
    assert len(splits["heldout"]) >= 256
    assert len(splits["train"]) >= spec.iterations * spec.algorithm.prompts_per_iteration
    assert bool(splits["warmstart"]) == (spec.warm_start is not None)


@pytest.mark.parametrize("file", JOBS, ids=lambda f: f.parent.name)
def test_an_example_says_what_it_shows(file: Path) -> None:
    text = (file.parent / "README.md").read_text()
    assert "make run" in text or "rljob run" in text


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*/make_data.py")), ids=lambda f: f.parent.name)
def test_the_committed_data_is_what_the_script_makes(script: Path, tmp_path: Path) -> None:
    copy = tmp_path / script.name
    copy.write_text(script.read_text())
    runpy.run_path(str(copy), run_name="__main__")
    names = sorted(file.name for file in script.parent.glob("*.jsonl"))
    assert names == sorted(file.name for file in tmp_path.glob("*.jsonl"))
    for name in names:
        assert (tmp_path / name).read_text() == (script.parent / name).read_text()


def test_no_word_of_the_reward_model_stands_in_two_files_and_every_mistake_is_one() -> None:
    names = ("train", "heldout", "words", "questions")
    files = [_rows(EXAMPLES / "reward-model" / f"{name}.jsonl") for name in names]
    words = [row["prompt"] for rows in files for row in rows] + [r["prompt"] for r in _rows(EXAMPLES / "reward-model/labelled.jsonl")[::2]]
    assert len(set(words)) == len(words)
    assert all(r["chosen"] == r["prompt"][::-1] != r["rejected"] for r in files[0] + files[1])
    assert len({r["family"] for r in files[1]}) == 5
    spec = _job(EXAMPLES / "reward-model" / "rljob.yaml").spec
    assert spec.reward_model is not None
    load_comparison(EXAMPLES / "reward-model" / "comparison.yaml")


def test_held_out_topics_of_smollm2_do_not_occur_in_training() -> None:
    train, heldout = (_rows(EXAMPLES / "smollm2" / f"{name}.jsonl") for name in ("train", "heldout"))
    topics = {stem for r in heldout for stem in r["options"]["mention"]}
    assert not topics & {stem for r in train for stem in r["options"]["mention"]}
    assert not any(f" {stem}" in r["prompt"] for stem in topics for r in train)


def test_every_instruction_of_smollm2_can_be_followed_and_broken() -> None:
    for row in _rows(EXAMPLES / "smollm2" / "heldout.jsonl"):
        options = InstructionOptions.model_validate(row["options"])
        topic = row["options"]["mention"][0]
        assert broken(f"Many people really do like {topic}.".ljust(1), options) in (None, "6 words, at least 8 asked")
        assert broken(f"Yes, really, {topic}! " * 9, options) is not None


def test_demonstrations_of_tiny_are_half_right_and_half_copies() -> None:
    rows = _rows(EXAMPLES / "tiny" / "train.jsonl")
    reversed_share = sum(r["demonstration"] == r["reference"] for r in rows) / len(rows)
    assert all(r["demonstration"] in (r["prompt"], r["reference"]) for r in rows)
    assert 0.45 < reversed_share < 0.55


def test_held_out_combinations_of_code_occur_neither_in_training_nor_in_demonstrations() -> None:
    train, heldout, shown = (
        {re.sub(r"\d+", "n", row["prompt"]) for row in _rows(EXAMPLES / "code" / f"{name}.jsonl")}
        for name in ("train", "heldout", "warmstart")
    )
    assert shown <= train
    assert not heldout & train
    assert len(heldout) > 30


def test_demonstrations_of_code_pass_their_tests_and_those_of_other_tasks_do_not() -> None:
    rows = _rows(EXAMPLES / "code" / "warmstart.jsonl")[:40]

    async def passed(service: Service, row: dict[str, Any], answer: str) -> bool:
        return (await judged(service, language="python", code=last_block(answer), tests=row["reference"]["tests"])).verdict == "passed"

    async def go() -> list[tuple[bool, bool]]:
        pairs = zip(rows, [*rows[1:], rows[0]], strict=True)
        async with real_service() as service:
            return [
                (await passed(service, row, row["demonstration"]), await passed(service, row, other["demonstration"]))
                for row, other in pairs
                if row["prompt"] != other["prompt"]
            ]

    found = asyncio.run(go())
    assert len(found) > 30
    assert all(own for own, _ in found)
    assert sum(other for _, other in found) <= 2, "some tasks mean the same, such as the largest number and the largest greater than 3"


def test_sources_of_an_example_are_all_loaded_by_name(tmp_path: Path) -> None:
    spec = _job(EXAMPLES / "arithmetic" / "rljob.yaml").spec
    assert spec.warm_start is not None
    assert spec.warm_start.data is not None
    records = load(spec.warm_start.data, "spec.warmStart.data", EXAMPLES / "arithmetic", tmp_path)
    first = records[0].record
    assert first.demonstration == f"\\boxed{{{first.reference['entry']['answer']}}}"
