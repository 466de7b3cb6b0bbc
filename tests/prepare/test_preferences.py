"""What becomes of preference pairs and of the model that is to score them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.prepare.support import Place, words

from rljob.api import ConfigurationError
from rljob.prepare.model_folder import inspect
from rljob.wire.reward_model import broken_up

PAIR: dict[str, Any] = {"warmStart": None, "rewardModel": {}}


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"word{i}", "chosen": f"{i} good", "rejected": f"{i} bad"} for i in range(start, start + count)]


def test_a_pair_becomes_two_answers_to_one_prompt_as_the_chat_template_ends_them(place: Place) -> None:
    place.write("train.jsonl", pairs(3))
    prepared = place.prepare(**PAIR)
    assert (prepared.train, prepared.heldout) == (3, 0)
    record = place.split("train")[0]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    chat = [{"role": "user", "content": "word0"}, {"role": "assistant", "content": "0 good"}]
    whole = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
    assert record.chosen is not None
    assert [*record.tokens, *record.chosen] == whole
    assert record.chosen != record.rejected
    longest = max(len(r.tokens) + max(len(r.chosen or ()), len(r.rejected or ())) for r in place.split("train"))
    assert prepared.max_length == longest


def test_the_starting_model_is_one_that_transformers_loads_with_one_score(place: Place) -> None:
    place.write("train.jsonl", pairs(3))
    place.prepare(**PAIR)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, info = AutoModelForSequenceClassification.from_pretrained(place.folders.model, output_loading_info=True)
    assert not info["missing_keys"]
    assert tuple(model.score.weight.shape) == (1, 64)
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert inspect(place.folders.model).architecture.scored


def test_chat_lists_and_other_columns_are_read(place: Place) -> None:
    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    place.write("train.jsonl", [{"question": "q", "better": said("yes"), "worse": said("no"), "other": 1}])
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    place.prepare(**PAIR, data={"train": {"path": "train.jsonl", "columns": columns}})
    (record,) = place.split("train")
    assert len(record.chosen or ()) == len("yes") + 1


def test_questions_that_are_held_out_are_not_trained_on(place: Place) -> None:
    place.write("train.jsonl", pairs(5))
    place.write("heldout.jsonl", pairs(2, start=3))
    prepared = place.prepare(**PAIR, evaluation={"data": {"path": "heldout.jsonl"}})
    assert (prepared.train, prepared.heldout) == (3, 2)
    assert "data: dropped 2 training pairs whose question is held out" in place.said


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a"}, "train.jsonl line 1: a reward model learns from pairs, and this record has no `chosen` and `rejected` answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "train.jsonl line 1: `chosen` and `rejected` are the same answer"),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, "`chosen`: a list of messages must end with one of role `assistant`"),
        ({"prompt": "a", "chosen": "b" * 200, "rejected": "b"}, "the longer answer of 'train-000000' makes 206 tokens with its prompt"),
    ],
)
def test_records_that_are_no_pairs_are_refused(place: Place, record: dict[str, Any], message: str) -> None:
    place.write("train.jsonl", [record])
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        place.prepare(**PAIR)


def test_pairs_that_are_too_long_are_left_out_if_so_asked(place: Place) -> None:
    long = {"prompt": "a", "chosen": "b" * 200, "rejected": "b"}
    place.write("train.jsonl", [*pairs(2), long])
    asked = PAIR | {"data": {"train": {"path": "train.jsonl"}, "tooLong": "drop"}}
    assert place.prepare(**asked).train == 2
    place.write("train.jsonl", [long])
    with pytest.raises(ConfigurationError, match=r"^every train record is too long for the model's context \(128\); shorten them$"):
        place.prepare(**asked)


def test_a_reward_model_is_no_policy(place: Place) -> None:
    place.write("train.jsonl", pairs(2))
    place.prepare(**PAIR)
    place.folders.model.rename(place.folders.source / "scorer")
    place.write("train.jsonl", words(2))
    with pytest.raises(ConfigurationError, match="scorer is a reward model, which writes no answers"):
        place.prepare(model={"source": {"path": "scorer"}})


def test_training_goes_on_from_a_reward_model_with_its_own_head(place: Place) -> None:
    place.write("train.jsonl", pairs(2))
    place.prepare(**PAIR)
    given = place.folders.source / "scorer"
    place.folders.model.rename(given)
    place.prepare(**PAIR, model={"source": {"path": "scorer"}})
    assert (place.folders.model / "score.safetensors").read_bytes() == (given / "score.safetensors").read_bytes()


def test_a_head_with_several_labels_is_refused(place: Place) -> None:
    from safetensors.numpy import load_file, save_file

    place.write("train.jsonl", pairs(2))
    place.prepare(**PAIR)
    given = place.folders.source / "scorer"
    place.folders.model.rename(given)
    row = load_file(given / "score.safetensors")["score.weight"]
    save_file({"score.weight": row.repeat(2, axis=0)}, given / "score.safetensors")
    with pytest.raises(ConfigurationError, match=r"score\.weight is \[2, 64\], a reward model has \[1, 64\]"):
        place.prepare(**PAIR, model={"source": {"path": "scorer"}})


def test_another_seed_draws_another_head(place: Place) -> None:
    place.write("train.jsonl", pairs(2))
    place.prepare(**PAIR)
    first = (place.folders.model / "score.safetensors").read_bytes()
    place.prepare(**PAIR, seed=1)
    assert (place.folders.model / "score.safetensors").read_bytes() != first


def test_an_answer_cannot_spell_out_the_end_of_its_turn() -> None:
    assert broken_up("good<|im_end|>\n<|im_start|>user", ["<|im_end|>", "<|im_start|>"]) == "good< |im_end|>\n< |im_start|>user"


def test_the_index_names_every_tensor_that_is_needed_and_no_other_head(place: Place) -> None:
    place.write("train.jsonl", pairs(2))
    place.prepare(**PAIR)
    index: dict[str, str] = json.loads((Path(place.folders.model) / "model.safetensors.index.json").read_text())["weight_map"]
    assert "lm_head.weight" not in index
    assert index["score.weight"] == "score.safetensors"
