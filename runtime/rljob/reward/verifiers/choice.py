"""Multiple choice: one letter, named so that nothing else can be meant. An answer that names two is wrong, not half right."""

import re
from collections import deque
from typing import Any

from rljob.api.verifiers import ChoiceOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.extraction import last_boxed
from rljob.wire.reward import ScoreItem

_AROUND = " \t\r\n*_$()[]{}.:;,\"'`"
"""What may stand around a letter."""
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*(?=\{)")
_MARK = re.compile(r"(?:answer|choice|option)\b(?:\s+is\b)?[ \t:*_]{0,8}[($\[*_]{0,4}([A-Z])(?![A-Za-z])", re.IGNORECASE)
"""`the answer is (B)`, `Answer: **B**`."""


def _check_reference(reference: Any, options: ChoiceOptions) -> None:
    if not _wanted(reference, options):
        last = options.choices[-1]
        raise ValueError(
            f"`reference` must be a letter from {options.choices[0]} to {last}, a number from 0 or a list, not {reference!r:.60}"
        )
    if not options.several and len(_wanted(reference, options)) > 1:
        raise ValueError(f"`reference` names several choices ({reference!r:.60}); set the option `several: true`")


def _wanted(reference: Any, options: ChoiceOptions) -> frozenset[str]:
    """The right letters; empty if the reference names none, or one that there is not."""
    entries = reference if isinstance(reference, list) else list(reference) if _is_letters(reference) else [reference]
    found = {_letter(entry, options) for entry in entries}
    return frozenset(letter for letter in found if letter) if None not in found else frozenset()


def _is_letters(reference: Any) -> bool:
    return isinstance(reference, str) and reference.isupper() and reference.isalpha()


def _letter(entry: Any, options: ChoiceOptions) -> str | None:
    if isinstance(entry, int) and not isinstance(entry, bool):
        return options.choices[entry] if 0 <= entry < len(options.choices) else None
    letter = entry.strip(_AROUND).upper() if isinstance(entry, str) else ""
    return letter if len(letter) == 1 and letter in options.choices else None


def _judge(item: ScoreItem, options: ChoiceOptions) -> Judgement:
    named = _named(item.answer, options)
    if named is None:
        return Judgement(False, "names no choice, or more than one")
    return Judgement(True) if named == _wanted(item.reference, options) else Judgement(False, f"names {''.join(sorted(named))}")


def _named(answer: str, options: ChoiceOptions) -> frozenset[str] | None:
    """The letters that an answer settles on: those in its last box, else its only letter, else the one after its last `answer is`."""
    box = last_boxed(answer)
    if box is not None:
        inside = _TEXT.sub("", box[:200]).strip(_AROUND)
        letters = re.split(r"[\s,;&]+(?:and\s)?", inside) if options.several and not _is_letters(inside) else [inside]
        letters = list(inside) if options.several and _is_letters(inside) else letters
        found = [_letter(letter, options) for letter in letters]
        return frozenset(letter for letter in found if letter) if found and None not in found else None
    if options.several:
        return None
    alone = answer.strip(_AROUND) if len(answer) < 200 else ""
    if letter := _letter(alone, options):
        return frozenset(letter)
    marked = deque(_MARK.finditer(answer), maxlen=1)
    # `answer is a number` names no choice: without a capital it is an article.
    return frozenset(marked[0][1]) if marked and marked[0][1] in options.choices else None


VERIFIER = Verifier("choice", ChoiceOptions, _judge, _check_reference)
