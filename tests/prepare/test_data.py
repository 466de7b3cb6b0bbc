"""Prompts: formats, splits, and every way in which data can be wrong."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.prepare.support import Place, words
from transformers import AutoTokenizer

from rljob.api import ConfigurationError
from rljob.api.sources import DataSource, ReasoningGymSource
from rljob.prepare.data_sources import generated, load
from rljob.prepare.preparation import dropped

ROOMY = {"source": {"scratch": {"hiddenSize": 64, "ffnSize": 96, "layers": 1, "heads": 2, "kvHeads": 1, "contextLength": 256}}}
SUMS = {"dataset": "chain_sum", "size": 40, "parameters": {"min_terms": 2, "max_terms": 2}}


def test_a_record_becomes_tokens_through_the_chat_template(place: Place) -> None:
    prepared = place.prepare(data={"train": {"path": "train.jsonl"}, "system": "Be brief."})
    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    first = place.split("train")[0]
    assert tokenizer.decode(first.tokens) == "<|bos|><|system|>Be brief.<|end|><|user|>word0<|end|><|assistant|>"
    assert first.demonstration is not None
    assert tokenizer.decode(first.demonstration) == "0drow<|end|>"
    assert (first.id, first.question, first.reference, first.verifier) == ("train-000000", "word0", "0drow", "exact")
    assert prepared.max_length == len(first.tokens) + 8
    assert (prepared.train, prepared.heldout, prepared.warmstart) == (5, 0, 5)


def test_a_chat_keeps_its_own_system_message(place: Place) -> None:
    chat = [{"role": "system", "content": "Own."}, {"role": "user", "content": "a"}]
    chat += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    place.write("train.jsonl", [{"messages": chat, "reference": "d", "demonstration": "d"}])
    place.prepare(data={"train": {"path": "train.jsonl"}, "system": "Be brief."})
    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    text = tokenizer.decode(place.split("train")[0].tokens)
    assert text.startswith("<|bos|><|system|>Own.<|end|><|user|>a<|end|>")
    assert place.split("train")[0].question == "c"


def test_preparing_twice_does_nothing_and_a_changed_file_is_noticed(place: Place) -> None:
    first = place.prepare()
    weights = (place.folders.model / "model.safetensors").stat().st_mtime_ns
    assert place.prepare() == first
    assert place.said[-1].startswith("data: already in")
    place.write("train.jsonl", words(6))
    again = place.prepare()
    assert (again.train, first.train) == (6, 5)
    assert again.digest != first.digest
    assert (place.folders.model / "model.safetensors").stat().st_mtime_ns == weights


def test_a_file_that_is_only_written_anew_is_the_same_file(place: Place) -> None:
    """As a ConfigMap's are for every pod."""
    first = place.prepare()
    os.utime(place.folders.source / "train.jsonl", (1000, 1000))
    assert place.prepare() == first
    assert place.said[-1].startswith("data: already in")


def test_other_contents_of_the_same_size_and_time_are_noticed(place: Place) -> None:
    for start in (0, 5):
        place.write("train.jsonl", words(5, start))
        os.utime(place.folders.source / "train.jsonl", (1000, 1000))
        place.prepare()
        assert place.split("train")[0].question == f"word{start}"


def test_what_a_generator_or_the_hub_gave_is_not_asked_for_again_by_another_release(place: Place) -> None:
    """It may give something else by now; such a job has no files, and its mark says so as it always did."""
    source = {"dataset": "chain_sum", "size": 5, "demonstration": "{answer}"}
    place.prepare(data={"train": {"reasoningGym": source}}, model=ROOMY)
    assert json.loads((place.folders.data / ".source.json").read_text())["files"] == []


def test_two_folders_with_the_same_job_have_the_same_digest(place: Place, tmp_path: Path) -> None:
    from dataclasses import replace

    other = Place(replace(place.folders, model=tmp_path / "m2", data=tmp_path / "d2"), [])
    assert place.prepare().digest == other.prepare().digest


def test_an_interrupted_preparation_starts_over(place: Place) -> None:
    first = place.prepare()
    (place.folders.data / "prepared.json").unlink()
    (place.folders.model / ".source.json").unlink()
    (place.folders.model / ".partial").mkdir()
    assert place.prepare() == first


def test_parquet_and_jsonl_hold_the_same_records(place: Place) -> None:
    rows = words(7)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place.folders.source / "train.parquet")
    place.write("train.jsonl", rows)
    place.prepare()
    from_jsonl = place.split("train")
    place.prepare(data={"train": {"path": "train.parquet"}})
    assert place.split("train") == from_jsonl


def test_what_only_other_rows_of_a_parquet_file_have_is_left_out(place: Place) -> None:
    column = pyarrow.struct([("max_words", pyarrow.int64()), ("min_words", pyarrow.int64())])
    chats = [[{"role": "user", "content": "a", "name": None}], [{"role": "user", "content": "b", "name": None}]]
    table = {"messages": chats, "options": pyarrow.array([{"max_words": 9}, {"min_words": 3}], column), "demonstration": ["a", "b"]}
    pyarrow.parquet.write_table(pyarrow.table(table), place.folders.source / "train.parquet")
    place.prepare(data={"train": {"path": "train.parquet"}}, reward={"verifier": "instruction"})
    assert [record.options for record in place.split("train")] == [{"max_words": 9}, {"min_words": 3}]
    table["options"] = pyarrow.array([[("max_words", 8)], [("min_words", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(pyarrow.table(table), place.folders.source / "train.parquet")
    place.prepare(data={"train": {"path": "train.parquet"}}, reward={"verifier": "instruction"})
    assert [record.options for record in place.split("train")] == [{"max_words": 8}, {"min_words": 2}]


def test_nulls_within_a_parquet_reference_stay(place: Place) -> None:
    reference = {"dataset": "chain_sum", "parameters": {}, "entry": {"question": "1+1", "answer": "2", "metadata": None}}
    pyarrow.parquet.write_table(pyarrow.table({"q": ["a"], "r": [reference | {"parameters": None}]}), place.folders.source / "t.parquet")
    source = DataSource.model_validate({"path": "t.parquet", "columns": {"prompt": "q", "reference": "r"}})
    (located,) = load(source, "spec.data.train", place.folders.source, place.folders.cache)
    assert located.record.reference == reference | {"parameters": None}


@pytest.mark.parametrize("value", [math.nan, {"x": math.inf}, b"\xff"], ids=repr)
def test_a_reference_that_json_cannot_hold_is_refused_and_not_lost(place: Place, value: object) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "reference": [value]}), place.folders.source / "t.parquet")
    with pytest.raises(ConfigurationError, match=r"^t.parquet row 0: `reference` is .*, which JSON cannot hold \(.*\); leave it out or"):
        place.prepare(data={"train": {"path": "t.parquet"}}, reward={"verifier": "http", "options": {"url": "http://judge"}})


def test_a_number_too_large_for_json_is_refused(place: Place) -> None:
    place.write("shown.jsonl", [{"prompt": "a", "demonstration": "b"}])
    (place.folders.source / "train.jsonl").write_text('{"prompt": "a", "reference": 1e400}\n')
    with pytest.raises(ConfigurationError, match=r"^train.jsonl line 1: `reference` is inf, which JSON cannot hold"):
        place.prepare(warmStart={"data": {"path": "shown.jsonl"}})


def test_columns_that_nobody_needs_are_not_read(place: Place) -> None:
    times = pyarrow.array([1], pyarrow.timestamp("ns"))  # one nanosecond, which no Python type holds
    table = pyarrow.table({"prompt": ["a"], "reference": ["b"], "when": times})
    pyarrow.parquet.write_table(table, place.folders.source / "t.parquet")
    columns = {"prompt": "prompt", "reference": "reference"}
    place.write("shown.jsonl", [{"prompt": "c", "demonstration": "d"}])
    shown = {"data": {"path": "shown.jsonl"}}
    assert place.prepare(data={"train": {"path": "t.parquet", "columns": columns}}, warmStart=shown).train == 1
    with pytest.raises(
        ConfigurationError, match=r"t.parquet cannot be read \(.*\); mend the file, or name in `columns` those that are needed"
    ):
        place.prepare(data={"train": {"path": "t.parquet"}}, warmStart=shown)


def test_a_damaged_page_of_a_parquet_file_is_named(place: Place) -> None:
    path = place.folders.source / "train.parquet"
    rows = [{"prompt": "abc" * 1000 + str(i), "reference": "x"} for i in range(1000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(2000) + whole[2200:])
    with pytest.raises(ConfigurationError, match=r"spec.data.train.path: .*train.parquet cannot be read \(.*\); mend the file"):
        place.prepare(data={"train": {"path": "train.parquet"}})


def test_columns_of_a_foreign_file_are_mapped_and_the_rest_ignored(place: Place) -> None:
    place.write("foreign.jsonl", [{"question": "1 + 1", "answer": "so #### 2", "source": "somewhere"}])
    data = {"train": {"path": "foreign.jsonl", "columns": {"prompt": "question", "reference": "answer"}}}
    place.prepare(data=data, reward={"verifier": "numeric"}, model=ROOMY, warmStart={"data": {"path": "train.jsonl"}})
    record = place.split("train")[0]
    assert (record.question, record.reference, record.verifier) == ("1 + 1", "so #### 2", "numeric")


def test_a_verifier_that_is_shown_the_last_message_alone_takes_no_chat_of_several_turns(place: Place) -> None:
    chat = [{"role": "user", "content": "Tell me of France."}, {"role": "assistant", "content": "Sure."}]
    chat += [{"role": "user", "content": "And its capital?"}]
    place.write("train.jsonl", [{"messages": chat, "reference": "Paris"}])
    reward = {"verifier": "judge", "options": {"endpoint": "http://judge/v1", "model": "m"}}
    for asked in (reward, {"verifier": "weighted", "options": {"terms": [reward]}}):
        with pytest.raises(
            ConfigurationError, match=r"line 1: verifier \w+: it is shown the last message alone, and `messages` has 3 turns"
        ):
            place.prepare(reward=asked)
    place.write("train.jsonl", [{"messages": [{"role": "system", "content": "Be brief."}, chat[-1]], "demonstration": "Paris"}])
    place.prepare(reward=reward)


def test_a_records_own_verifier_and_options_win(place: Place) -> None:
    rows = words(2)
    rows[1] |= {"verifier": "instruction", "options": {"max_words": 3}}
    rows[0] |= {"options": {"ignore_case": True}}
    place.write("train.jsonl", rows)
    place.prepare(reward={"verifier": "exact", "options": {"ignore_case": False}})
    found = [(r.verifier, r.options) for r in place.split("train")]
    assert found == [("exact", {"ignore_case": True}), ("instruction", {"max_words": 3})]


def test_held_out_questions_never_occur_in_training(place: Place) -> None:
    place.write("heldout.jsonl", [{"prompt": " WORD1 ", "reference": "x"}, {"prompt": "word3", "reference": "x"}])
    prepared = place.prepare(evaluation={"data": {"path": "heldout.jsonl"}})
    asked = {r.question for name in ("train", "warmstart") for r in place.split(name)}
    assert asked == {"word0", "word2", "word4"}
    assert (prepared.train, prepared.heldout, prepared.warmstart) == (3, 2, 3)
    (said,) = [line for line in place.said if "dropped" in line]
    assert said.startswith(
        "data: dropped 2 training prompts whose question is held out, 40% of all: what is trained on is no longer spread"
    )
    assert "use a smaller spec.evaluation.data" in said


def test_a_few_dropped_prompts_are_counted_without_advice() -> None:
    assert dropped(before=20, after=18) == "dropped 2 training prompts whose question is held out"
    assert "15% of all" in dropped(before=20, after=17)


def test_a_held_out_set_that_swallows_the_training_set_is_refused(place: Place) -> None:
    with pytest.raises(ConfigurationError, match=r"every question also stands in spec.evaluation.data"):
        place.prepare(evaluation={"data": {"path": "train.jsonl"}})


def test_generated_splits_of_neighbouring_seeds_are_not_the_same_list_shifted() -> None:
    def questions(seed: int) -> list[str]:
        source = ReasoningGymSource.model_validate(SUMS | {"seed": seed})
        return [row["prompt"] for _, row in generated(source, "spec.data.train")]

    first, second = questions(0), questions(1)
    assert len(set(first) & set(second)) < 5


def test_generated_questions_that_come_up_again_are_trained_on_again_but_measured_once(place: Place) -> None:
    one_digit = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    few = SUMS | {"size": 400, "parameters": one_digit, "demonstration": "{answer}"}
    place.prepare(
        data={"train": {"reasoningGym": few}},
        evaluation={"data": {"reasoningGym": few | {"size": 60, "seed": 7}}},
        model=ROOMY,
        rollout={"maxTokens": 4},
    )
    trained = [record.question for record in place.split("train")]
    measured = [record.question for record in place.split("heldout")]
    assert len(trained) > len(set(trained))
    assert len(measured) == len(set(measured)) < 60
    assert not set(trained) & set(measured)


def test_a_generators_prompts_are_judged_by_its_own_scorer_and_demonstrate_by_template(place: Place) -> None:
    source = {"reasoningGym": SUMS | {"demonstration": "\\boxed{{answer}}"}}
    place.prepare(data={"train": source}, model=ROOMY, rollout={"maxTokens": 4})
    record = place.split("train")[0]
    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    assert record.verifier == "reasoning-gym"
    assert record.demonstration is not None
    assert tokenizer.decode(record.demonstration) == f"\\boxed{{{record.reference['entry']['answer']}}}<|end|>"
    assert record.reference["dataset"] == "chain_sum"


def test_demonstrations_of_a_warm_start_need_no_reference_because_nothing_judges_them(place: Place) -> None:
    place.write("shown.jsonl", [{"prompt": "sft", "demonstration": "yes"}])
    assert place.prepare(warmStart={"data": {"path": "shown.jsonl"}}).warmstart == 1
    with pytest.raises(ConfigurationError, match=r"shown.jsonl line 1: verifier exact: `reference` must be a text"):
        place.prepare(data={"train": {"path": "shown.jsonl"}})


def test_a_generator_that_knows_no_answer_demonstrates_none() -> None:
    source = ReasoningGymSource(dataset="graph_color", size=2, demonstration="\\boxed{{answer}}")
    assert ["demonstration" in row for _, row in generated(source, "spec.data.train")] == [False, False]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dataset": "chainsum"}, r"no generator 'chainsum'; did you mean chain_sum"),
        ({"dataset": "chain_sum", "parameters": {"terms": 2}}, r"unexpected keyword argument 'terms'; chain_sum takes min_terms"),
        ({"dataset": "chain_sum", "parameters": {"min_terms": 5, "max_terms": 2}}, "chain_sum refuses .*max_terms must be"),
        ({"dataset": "spell_backward", "parameters": {"data_file": "x"}}, r"spell_backward refuses {'data_file': 'x'}: .*No such file"),
        ({"dataset": "chain_sum", "parameters": {"seed": 3}}, r"parameters holds seed \(3\), a field of its own; set reasoningGym.seed"),
        (
            {"dataset": "spell_backward", "parameters": {"min_word_len": 60, "max_word_len": 70}},
            r"^spec.data.train.reasoningGym.parameters: spell_backward cannot make item 0 with .* \(IndexError\(.*\); change them$",
        ),
        ({"dataset": "rearc"}, "rearc does not recognise its own answers"),
        ({"dataset": "coin_flip", "size": 50}, "the scorer of coin_flip takes '0' for right in 17 of 18 prompts with different answers"),
        ({"dataset": "complex_arithmetic", "size": 50}, "the scorer of complex_arithmetic takes 'nan' for right in 20 of 20"),
        ({"dataset": "game_of_life_halting", "size": 50}, "the scorer of game_of_life_halting takes '0' for right in 2 of 2"),
    ],
)
def test_a_generator_that_cannot_be_used_is_refused(place: Place, source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(data={"train": {"reasoningGym": source}})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"spec.data.train holds no records \(train.jsonl\)"),
        (["{}"], r"train.jsonl line 1: needs `prompt` \(a question\) or `messages`"),
        (['{"prompt": "a"}', "", "{oops"], "train.jsonl line 3: not JSON .*; one JSON object per line is expected"),
        (['{"prompt": "a"}', "[1]"], "train.jsonl line 2: a record is a JSON object, this is list"),
        (['{"prompt": "a", "referense": 1}'], "line 1: unknown field 'referense'; did you mean 'reference'?"),
        (['{"prompt": "a", "label": 1}'], "line 1: unknown field 'label'; fields are .* map other columns with `columns`"),
        (['{"prompt": 3}'], "line 1: `prompt`: Input should be a valid string"),
        (['{"prompt": "  "}'], "line 1: `prompt` is empty"),
        (['{"prompt": "a"}', '{"prompt": "a", "difficulty": NaN}'], r"line 2: not JSON \(expected value at column 31\)"),
        (['{"prompt": "a", "difficulty": 1e999}'], "line 1: `difficulty`: Input should be a finite number"),
        (['{"prompt": "a"}', r'{"prompt": "a\ud83d"}'], "line 2: not JSON .*hex escape at column 20"),
        (['{"prompt": "a", "reference": ' + "[" * 250 + "]" * 250 + "}"], "line 1: not JSON .*recursion limit"),
        (['{"prompt": "a", "demonstration": " "}'], "line 1: `demonstration` is empty; leave it out"),
        (['{"messages": [{"role": "user", "content": ""}]}'], "line 1: `messages`: the last message is empty"),
        (['{"messages": [{"role": "human", "content": "a"}]}'], "line 1: `messages.0.role`: Input should be 'system', .* 'user'"),
        (['{"prompt": "a", "messages": []}'], "line 1: needs `prompt` .*, not both"),
        (['{"messages": [{"role": "assistant", "content": "a"}]}'], "line 1: `messages` must end with a message of role `user`"),
        (['{"id": "x", "prompt": "a"}', '{"id": "x", "prompt": "b"}'], "train.jsonl line 2: id 'x' stands already in train.jsonl line 1"),
        (['{"prompt": "a", "reference": 3}'], "line 1: verifier exact: `reference` must be a text"),
        (['{"prompt": "a", "verifier": "exakt"}'], "line 1: no verifier 'exakt'; did you mean 'exact'?"),
        (
            ['{"prompt": "a", "verifier": "instruction", "options": {"maxwords": 3}}'],
            "line 1: verifier instruction: option `maxwords`: .*options are mention",
        ),
        (['{"prompt": "a", "verifier": "instruction"}'], "line 1: verifier instruction: no instruction is set"),
        (
            ['{"prompt": "a", "verifier": "import", "options": {"path": "os:system"}}'],
            "line 1: verifier import: 'import os:system' is not named in spec.reward of the job; only the job may name code",
        ),
        (
            ['{"prompt": "a", "verifier": "code", "reference": {"tests": [{"stdin": "", "expected": "1"}]}}'],
            "line 1: verifier code: programs run in the sandbox, which the job does not have; set spec.sandbox.enabled: true",
        ),
        (['{"prompt": "a", "reference": "b"}'], "spec.warmStart needs records with a `demonstration`"),
    ],
)
def test_bad_records_are_named_by_file_and_line(place: Place, lines: list[str], message: str) -> None:
    (place.folders.source / "train.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigurationError, match=message):
        place.prepare()


@pytest.mark.parametrize("line", ["{oops", '{"prompt": "a", "demonstration": "b"}', '{"prompt": "a", "reference": "b"}'])
def test_what_is_wrong_with_the_data_is_said_before_the_model_is_looked_for(place: Place, line: str) -> None:
    """A line, a reference, a warm start without demonstrations: to fetch and convert a model can take an hour."""
    (place.folders.source / "train.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigurationError, match=r"^train.jsonl line 1: |^spec.warmStart needs records .*train.jsonl line 1"):
        place.prepare(model={"source": {"path": "nowhere"}})
    assert place.said == ["data: reading spec.data.train"]


def test_of_two_files_with_one_name_it_is_said_which_is_meant(place: Place) -> None:
    for folder, text in (("a", json.dumps(words(1)[0])), ("b", "{oops")):
        (place.folders.source / folder).mkdir()
        (place.folders.source / folder / "data.jsonl").write_text(text + "\n")
    with pytest.raises(ConfigurationError, match=r"^b/data.jsonl line 1: not JSON"):
        place.prepare(data={"train": {"path": "a/data.jsonl"}}, evaluation={"data": {"path": "b/data.jsonl"}})


def test_a_record_whose_programs_may_have_more_than_the_sandbox_gives_is_refused(place: Place) -> None:
    record = {"prompt": "a", "verifier": "code", "reference": {"tests": [{"stdin": "", "expected": "1"}]}}
    place.write("train.jsonl", [record | {"options": {"memory_mb": 600}}])
    with pytest.raises(ConfigurationError, match=r"line 1: verifier code: memory_mb .*\(600\) is more than sandbox.memoryPerRun \(512Mi\)"):
        place.prepare(sandbox={"enabled": True, "memoryPerRun": "512Mi"})


@pytest.mark.parametrize(
    ("options", "sandbox", "message"),
    [
        (
            {"memory_mb": 600},
            {"enabled": True, "memoryPerRun": "512Mi"},
            r"memory_mb .*\(600\) is more than sandbox.memoryPerRun \(512Mi\)",
        ),
        ({}, {"enabled": True, "memoryPerRun": "128Mi"}, r"memory_mb .*\(256\) is more than sandbox.memoryPerRun \(128Mi\)"),
        ({}, {}, "the sandbox, which the job does not have; set spec.sandbox.enabled: true"),
    ],
)
def test_a_sandbox_that_gives_less_than_before_is_refused_if_prepared_prompts_want_more(
    place: Place, options: dict[str, int], sandbox: dict[str, Any], message: str
) -> None:
    code = {"verifier": "code", "reference": {"tests": [{"stdin": "", "expected": "1"}]}, "options": options}
    place.write("train.jsonl", [*words(1), {"prompt": "a", "id": "sum", "demonstration": "b"} | code])
    first = place.prepare(sandbox={"enabled": True})
    with pytest.raises(ConfigurationError, match=f"^prompt 'sum' \\(line 2 of the prepared train.jsonl\\): .*{message}"):
        place.prepare(sandbox=sandbox)
    assert place.prepare(sandbox={"enabled": True}) == first


def test_a_curriculum_without_difficulties_is_refused(place: Place) -> None:
    curriculum = {"sampling": {"strategy": "curriculum"}}
    with pytest.raises(ConfigurationError, match=r"strategy is curriculum, but all prompts of spec.data.train have the difficulty 0; give"):
        place.prepare(algorithm=curriculum)
    place.write("train.jsonl", [record | {"difficulty": number} for number, record in enumerate(words(3))])
    assert place.prepare(algorithm=curriculum).train == 3


def test_a_line_that_is_not_utf8_is_named(place: Place) -> None:
    (place.folders.source / "train.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ConfigurationError, match=r"train.jsonl line 2: not UTF-8"):
        place.prepare()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.jsonl", "gone.jsonl does not exist"),
        (".", "source is a folder; name a .jsonl or .parquet file"),
        ("data.csv", "neither .jsonl nor .parquet"),
        ("data.parquet", "data.parquet cannot be read"),
    ],
)
def test_a_file_that_is_missing_or_of_another_kind_is_named(place: Place, name: str, message: str) -> None:
    if name not in ("gone.jsonl", "."):
        (place.folders.source / name).write_text("prompt\na\n")
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(data={"train": {"path": name}})


def test_a_prompt_that_leaves_no_room_for_an_answer_is_named(place: Place) -> None:
    place.write("train.jsonl", [*words(2), {"id": "long-one", "prompt": "x" * 120, "reference": "x", "demonstration": "x"}])
    with pytest.raises(ConfigurationError, match=r"prompt 'long-one' has 124 tokens; with rollout.maxTokens \(8\) that is 132, more than"):
        place.prepare()


def test_a_demonstration_that_does_not_fit_is_named(place: Place) -> None:
    place.write("train.jsonl", [{"id": "a", "prompt": "x", "reference": "x", "demonstration": "y" * 200}])
    with pytest.raises(ConfigurationError, match=r"demonstration of 'a' has 201 tokens after a prompt of 5"):
        place.prepare()


def test_records_that_are_too_long_are_left_out_if_so_asked(place: Place) -> None:
    long = {"id": "long-one", "prompt": "x" * 120, "reference": "x", "demonstration": "x"}
    shown = {"id": "long-demonstration", "prompt": "x", "reference": "x", "demonstration": "y" * 200}
    place.write("train.jsonl", [*words(2), long, shown])
    prepared = place.prepare(data={"train": {"path": "train.jsonl"}, "tooLong": "drop"})
    assert (prepared.train, prepared.max_length <= prepared.context_length) == (2, True)
    assert "data: dropped 2 of 4 train records, which are too long" in place.said
    place.write("train.jsonl", [long])
    with pytest.raises(ConfigurationError, match=r"every train record is too long for the model's context \(128\); shorten them, or lower"):
        place.prepare(data={"train": {"path": "train.jsonl"}, "tooLong": "drop"})


def test_a_max_length_beyond_the_context_is_refused(place: Place) -> None:
    model = {"source": {"scratch": {"contextLength": 64}}, "maxLength": 65}
    with pytest.raises(ConfigurationError, match=r"spec.model.maxLength is 65, but the model's context is 64"):
        place.prepare(model=model)


def test_bad_data_leaves_no_half_prepared_job(place: Place) -> None:
    place.prepare()
    (place.folders.source / "train.jsonl").write_text("{oops\n")
    with pytest.raises(ConfigurationError):
        place.prepare()
    assert not (place.folders.data / "prepared.json").exists()
    assert json.loads((place.folders.model / "config.json").read_text())["model_type"] == "llama"
