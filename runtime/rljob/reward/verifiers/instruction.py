"""Instructions that a program can check: lengths, sentences, commas, words that must occur."""

import re
from typing import Any

from rljob.api.verifiers import InstructionOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.words import even, occurs, words
from rljob.wire.reward import ScoreItem

_COMMAS = ",，、،"
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]”’»*_]*+(?=\s|$)")
"""Looks at every character once: an answer may be a hundred thousand points with no space behind them."""


def _judge(item: ScoreItem, options: InstructionOptions) -> Judgement:
    reason = broken(item.answer.strip(), options)
    return Judgement(reason is None, reason or "")


def broken(text: str, options: InstructionOptions) -> str | None:
    """The first instruction that the text does not follow; None if it follows all."""
    length, lower = len(words(text)), even(text.lower()) if options.mention or options.avoid else ""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    checks = (
        (length < options.min_words, f"{length} words, at least {options.min_words} asked"),
        (options.max_words is not None and length > options.max_words, f"{length} words, at most {options.max_words} asked"),
        (
            bool(options.mention) and not any(occurs(even(w.lower()), lower, longer=True) for w in options.mention),
            "does not mention the topic",
        ),
        (any(occurs(even(w.lower()), lower) for w in options.avoid), "uses a word to avoid"),
        (options.sentences is not None and len(ends) != options.sentences, f"{len(ends)} sentences, {options.sentences} asked"),
        (options.sentences is not None and ends[-1:] != [len(text)], "the last sentence does not end"),
        (options.no_commas and any(comma in text for comma in _COMMAS), "has a comma"),
        (options.begin is not None and not text.startswith(options.begin), "does not begin as asked"),
        (options.end is not None and not text.endswith(options.end), "does not end as asked"),
        (options.lowercase and text != text.lower(), "has capital letters"),
        (options.uppercase and text != text.upper(), "has small letters"),
    )
    return next((reason for failed, reason in checks if failed), None)


def _check_reference(reference: Any, options: InstructionOptions) -> None:
    if options == InstructionOptions():
        raise ValueError("no instruction is set, so every answer would be right; set options such as max_words")


VERIFIER = Verifier("instruction", InstructionOptions, _judge, _check_reference)
