"""Instructions that a program can check: lengths, sentences, commas, words that must occur."""

import re
from typing import Any

from rljob.api.verifiers import InstructionOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.wire.reward import ScoreItem

_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]]*+(?=\s|$)")
"""Looks at every character once: an answer may be a hundred thousand points with no space behind them."""


def _judge(item: ScoreItem, options: InstructionOptions) -> Judgement:
    reason = broken(item.answer.strip(), options)
    return Judgement(reason is None, reason or "")


def broken(text: str, options: InstructionOptions) -> str | None:
    """The first instruction that the text does not follow; None if it follows all."""
    words, lower = len(text.split()), text.lower()
    sentences = len(_SENTENCE_END.findall(text))
    checks = (
        (words < options.min_words, f"{words} words, at least {options.min_words} asked"),
        (options.max_words is not None and words > options.max_words, f"{words} words, at most {options.max_words} asked"),
        (bool(options.mention) and not any(_occurs(w, lower, longer=True) for w in options.mention), "does not mention the topic"),
        (any(_occurs(w, lower, longer=False) for w in options.avoid), "uses a word to avoid"),
        (options.sentences is not None and sentences != options.sentences, f"{sentences} sentences, {options.sentences} asked"),
        (options.sentences is not None and not _SENTENCE_END.search(text[-3:]), "the last sentence does not end"),
        (options.no_commas and "," in text, "has a comma"),
        (options.begin is not None and not text.startswith(options.begin), "does not begin as asked"),
        (options.end is not None and not text.endswith(options.end), "does not end as asked"),
        (options.lowercase and text != lower, "has capital letters"),
        (options.uppercase and text != text.upper(), "has small letters"),
    )
    return next((reason for failed, reason in checks if failed), None)


def _occurs(word: str, lower: str, longer: bool) -> bool:
    """Whether a word stands in a lower-case text; with `longer` also as the beginning of one."""
    return re.search(rf"\b{re.escape(word.lower())}{'' if longer else r'\b'}", lower) is not None


def _check_reference(reference: Any, options: InstructionOptions) -> None:
    if options == InstructionOptions():
        raise ValueError("no instruction is set, so every answer would be right; set options such as max_words")


VERIFIER = Verifier("instruction", InstructionOptions, _judge, _check_reference)
