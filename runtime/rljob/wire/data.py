"""Prepared prompts: what `rljob.prepare` writes and the master reads (`train.jsonl`, `heldout.jsonl`, `warmstart.jsonl`)."""

from array import array
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from rljob.wire.base import Message

Tokens = Annotated[
    Sequence[int],
    BeforeValidator(lambda ids: ids.tolist() if isinstance(ids, array) else ids),
    AfterValidator(lambda ids: array("i", ids)),
    PlainSerializer(list),
]
"""Token ids, packed: whoever holds all prompts would need ten times the memory for them as numbers of Python."""


class PromptRecord(Message):
    """One prompt, ready to generate from."""

    id: str
    question: str
    """What the verifier is shown: the last user message."""
    tokens: Tokens
    """The whole prompt through the chat template, generation prompt included."""
    verifier: str
    options: dict[str, Any] = Field(default_factory=dict)
    reference: Any = None
    family: str = ""
    difficulty: float = 0.0
    demonstration: Tokens | None = None
    """Tokens of an answer to imitate, end-of-turn token included."""
    chosen: Tokens | None = None
    """Tokens of the better answer of a pair, up to where its score stands."""
    rejected: Tokens | None = None
    """The same of the worse one."""


class Prepared(Message):
    """`prepared.json`: what was found out about model and data."""

    model_type: str
    """`llama`, `qwen2`, ..."""
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    context_length: int
    """Longest sequence the model was made for."""
    max_length: int
    """Longest sequence of this job: longest prompt + maxTokens, or spec.model.maxLength."""
    parameters: int
    train: int
    heldout: int
    warmstart: int
    """Numbers of records."""
    digest: str
    """xxh3-128 of the model's weights and the prepared data: a resumed job must find the same."""
