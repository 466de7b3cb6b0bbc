"""For a reward model: records with a `chosen` and a `rejected` answer become tokens; the starting model gets its value head."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rljob.api import ConfigurationError
from rljob.api.families import is_scorer
from rljob.prepare.model_folder import INDEX, MODEL, tensor_shapes
from rljob.prepare.prompts import PromptTokenizer, open_tokenizer
from rljob.prepare.records import Located
from rljob.wire.data import PromptRecord
from rljob.wire.reward_model import reply_text

SCORE = "score.weight"


def paired(located: Located) -> Located:
    """The record, which has a pair.

    Raises:
        ConfigurationError: it has none.
    """
    if located.record.chosen is None or located.record.rejected is None:
        raise ConfigurationError(
            f"{located.where}: a reward model learns from pairs, and this record has no `chosen` and `rejected` answer; add them, "
            "or map the columns that hold them with `columns`"
        )
    return located


def pair_records(records: Sequence[Located], split: str, tokens: PromptTokenizer) -> list[PromptRecord]:
    """What the master reads.

    Raises:
        ConfigurationError: the two answers of a record are the same to the model.
    """
    made = []
    for number, (located, prompt) in enumerate(zip(records, tokens.prompts(records), strict=True)):
        record = located.record
        chosen, rejected = replies(located, (record.text("chosen"), record.text("rejected")), tokens)
        if chosen == rejected:
            raise ConfigurationError(f"{located.where}: `chosen` and `rejected` are the same answer; leave such records out")
        made.append(
            PromptRecord(
                id=record.id if record.id is not None else f"{split}-{number:06d}",
                question=record.question,
                tokens=prompt,
                verifier="",
                family=record.family,
                chosen=chosen,
                rejected=rejected,
            )
        )
    return made


def replies(
    located: Located, answers: Sequence[str], tokens: PromptTokenizer, remedy: str = "change its messages"
) -> list[tuple[int, ...]]:
    """Tokens of answers to a record, up to where their scores stand.

    Raises:
        ConfigurationError: the chat template refuses the chat, or begins it differently once it has an answer.
    """

    def render(answer: str) -> str:
        return tokens.rendered(located, lambda tokenizer, chat: reply_text(tokenizer, chat, answer), remedy)

    try:
        texts = [render(answer) for answer in answers]
    except ValueError as error:
        raise ConfigurationError(f"{located.where}: {error}") from None
    return [tuple(ids) for ids in tokens.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def check_pair_length(record: PromptRecord, context: int, context_name: str) -> int:
    """Longest sequence of a pair.

    Raises:
        ConfigurationError: it is more than `context`; the message names the record.
    """
    length = len(record.tokens) + max(len(record.chosen or ()), len(record.rejected or ()))
    if length > context:
        raise ConfigurationError(
            f"the longer answer of {record.id!r} makes {length} tokens with its prompt, {context_name} is {context}: shorten it, "
            "or set spec.data.tooLong: drop"
        )
    return length


def add_value_head(folder: Path, seed: int) -> None:
    """Make a language model's folder one that transformers loads as `AutoModelForSequenceClassification` with one label.

    The row is drawn with a standard deviation of 1/sqrt(H + 1), as OpenAI's reward models are begun (Huang et al. 2024, "The N+
    Implementation Details of RLHF with PPO", detail 11). A folder that is a reward model already keeps its own: training goes on.

    Raises:
        ConfigurationError: the folder's tokenizer cannot be used.
    """
    config = json.loads((folder / "config.json").read_text())
    hidden, shapes = config["hidden_size"], tensor_shapes(folder)
    if is_scorer(config):
        return
    _describe(folder, config)
    row = np.random.default_rng(seed).normal(0.0, (hidden + 1) ** -0.5, (1, hidden)).astype(np.float32)
    save_file({SCORE: row}, folder / "score.safetensors", metadata={"format": "pt"})
    index = folder / INDEX
    if index.exists():
        known = json.loads(index.read_text())["weight_map"]
    else:  # transformers does not read an index beside a file of this name
        (folder / MODEL).rename(folder / "transformer.safetensors")
        known = dict.fromkeys(shapes, "transformer.safetensors")
    kept = {name: file for name, file in known.items() if name != "lm_head.weight"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": kept | {SCORE: "score.safetensors"}}, indent=2) + "\n")


def _describe(folder: Path, config: dict[str, Any]) -> None:
    """`config.json` and the tokenizer's, which must agree on what is padding: transformers takes the last token that is not for the end."""
    pad, text = padding(open_tokenizer(folder, None).tokenizer)
    causal = (config.get("architectures") or [f"{str(config['model_type']).capitalize()}ForCausalLM"])[0]
    head = {
        "architectures": [causal.removesuffix("ForCausalLM") + "ForSequenceClassification"],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": pad,
    }
    _update(folder / "config.json", head)
    _update(folder / "tokenizer_config.json", {"pad_token": text})
    if (folder / "special_tokens_map.json").exists():
        _update(folder / "special_tokens_map.json", {"pad_token": text})


def padding(tokenizer: Any) -> tuple[int, str]:
    """A special token that ends no conversation, and its text. The tokenizer's own if it is such a one; often it is the end of a turn.

    Raises:
        ConfigurationError: there is none.
    """
    example = [{"role": "user", "content": "a"}]
    last = tokenizer(reply_text(tokenizer, example, "b"), add_special_tokens=False)["input_ids"][-1]
    named = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *sorted(tokenizer.added_tokens_decoder))
    found = next((token for token in named if token is not None and token != last), None)
    if found is None:
        raise ConfigurationError(
            "the tokenizer has no special token but the one that ends an answer; add a pad_token to tokenizer_config.json"
        )
    return found, str(tokenizer.convert_ids_to_tokens(found))


def _update(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")
