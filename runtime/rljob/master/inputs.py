"""What `rljob.prepare` has left for the master: prompts, facts about the model, the tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from tokenizers import Tokenizer

from rljob.api import ConfigurationError
from rljob.master.scoring import Decode
from rljob.wire.data import Prepared, PromptRecord


@dataclass(frozen=True)
class Inputs:
    """Prompts by split, in file order."""

    prepared: Prepared
    train: tuple[PromptRecord, ...]
    heldout: tuple[PromptRecord, ...]
    warmstart: tuple[PromptRecord, ...]


def read_inputs(data: Path) -> Inputs:
    """Read the `data` volume.

    Raises:
        ConfigurationError: it is missing or not what `rljob.prepare` writes.
    """
    try:
        prepared = Prepared.model_validate_json((data / "prepared.json").read_bytes())
        splits = [_records(data / f"{name}.jsonl") for name in ("train", "heldout", "warmstart")]
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ConfigurationError(f"the prepared data in {data} cannot be read ({said}); run the preparation again") from error
    if not splits[0]:
        raise ConfigurationError(f"{data / 'train.jsonl'} holds no prompts: check spec.data.train")
    return Inputs(prepared, *splits)


def _records(path: Path) -> tuple[PromptRecord, ...]:
    if not path.exists():
        return ()
    with path.open() as lines:
        return tuple(PromptRecord.model_validate_json(line) for line in lines if line.strip())


def read_tokenizer(model: Path) -> Decode:
    """How the model's answers are turned into text: special tokens left out.

    The tokenizer file is read directly, because importing transformers costs seconds of the cores that trainer and engine start on.

    Raises:
        ConfigurationError: the model folder has no tokenizer.
    """
    path = model / "tokenizer.json"
    if not path.exists():
        raise ConfigurationError(
            f"{path} is missing: a model folder needs its tokenizer in this form (`save_pretrained` of transformers writes it)"
        )
    tokenizer = Tokenizer.from_file(str(path))
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
