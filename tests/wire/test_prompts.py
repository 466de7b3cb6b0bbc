"""Prompts as they lie in memory and in files."""

import json
from array import array

from rljob.wire.data import PromptRecord


def test_tokens_are_packed_in_memory_and_plain_numbers_in_files() -> None:
    record = PromptRecord(id="a", question="b", tokens=(1, 151_935), verifier="exact", demonstration=[])
    assert (record.tokens, record.demonstration, record.chosen) == (array("i", [1, 151_935]), array("i"), None)
    text = record.model_dump_json()
    assert [json.loads(text)[name] for name in ("tokens", "demonstration", "chosen")] == [[1, 151_935], [], None]
    assert PromptRecord.model_validate_json(text) == record
    assert PromptRecord(id="a", question="b", tokens=record.tokens, verifier="exact", demonstration=[]) == record
