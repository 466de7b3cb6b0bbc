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
_OPENING = r"[\s:=*_$(\[{\\\"'`]{0,16}"
_LETTER = r"(?:(?!I\s+[a-z])[A-Z]|[a-z](?=\)|\W*\Z))(?!-?\w|[+#])"
"""A small letter may be a word, unless a bracket or the end follows; `I` is one before a small letter; `C++` and `A-flat` are none."""
_LETTERS = rf"{_LETTER}(?:[^\w.]{{1,8}}(?:(?:or|and)[^\w.]{{1,8}})?{_LETTER}){{0,8}}"
_CHOSEN_TOO = r"(?:or|and|too|also)\b|(?:is|are)\s+(?:(?:also|both|all|equally)\s+)?(?:right|correct|true|possible)\b"
_EXPLAINED = rf"{_LETTERS}[).:*]{{0,4}}\s+(?!(?i:{_CHOSEN_TOO}))[A-Za-z]{{2}}"
"""One letter or several of which something is said, such as `A and C are wrong`, but not that they are right as well."""
_MORE = (
    rf"(?P<more>(?!\s*[,;]\s*and\s+{_EXPLAINED})"
    rf"(?:\W{{0,16}}\b(?:or|and)\b{_OPENING}{_LETTER}|[^\w.]{{1,16}}(?!{_EXPLAINED}){_LETTER}))?+"
)
"""Another letter, behind nothing but signs, `or` or `and`. `B, C is wrong` explains, and so do `B. C …` and a line `C: wrong`."""
_NAMED = rf"{_OPENING}(?P<letter>{_LETTER}){_MORE}"
_KIND = r"(?:(?:the\s+)?(?:option|choice|letter)\b)?"
_ANSWER = re.compile(
    rf"(?i:\banswer\b(?:\s+I\s+\w+)?[ \t*_]{{0,4}}(?:(?:is|(?:must|should|would) be)\b|[:=>\n])[\s:*_]{{0,8}}{_KIND}){_NAMED}"
)
"""`the answer is (B)`, `Answer: **B**`, `<answer>B</answer>`; the other letters of an explanation are not so introduced."""
_CHOSEN = re.compile(
    r"(?i:\b(?:choose|pick|select|with|is|be|so|thus|therefore|hence)\W{1,3}(?:the\s+)?(?:answer|choice|option)\b|"
    rf"\b(?:choice|option)\s*(?:is\b|:)){_NAMED}"
)
"""`I choose option B`, `my choice is B`."""
_LINE = re.compile(
    rf"^[\s>#*_-]{{0,8}}(?i:(?:final\s+)?(?:answer|choice|option))\b{_NAMED}"
    r"(?=[)*_\]}$]{0,8}(?:[.,;!]|\s*$|\s+is\s+(?:the\s+)?(?:correct|right|best)\b))",
    re.MULTILINE,
)
"""`Option B.`, but not `Option B has the wrong unit`."""
_LEADING = re.compile(rf"{_OPENING}(?P<letter>[A-Za-z])[*_}}\])]{{0,4}}(?:(?<=[)\]])|[).:])(?!\w)")
"""`B) Paris`, `**B.** Paris`."""
_ALONE = re.compile(r"(?<![\w'’-])(?![AI]\s+[a-z])[A-Z](?![\w'’+#-])")
"""A capital letter that is no word."""


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
        if found and None not in found:
            return frozenset(letter for letter in found if letter)
        return None if options.several else _leading(_TEXT.sub("", box), options)
    if options.several:
        return None
    alone = answer.strip(_AROUND) if len(answer) < 200 else ""
    if letter := _letter(alone, options):
        return frozenset(letter)
    text = _TEXT.sub("", answer)
    for marks in (_ANSWER, _CHOSEN, _LINE):
        if last := deque(marks.finditer(text), maxlen=1):
            letter = last[0]["letter"].upper()
            return frozenset(letter) if letter in options.choices and not last[0]["more"] else None
    return _leading(text, options)


def _leading(text: str, options: ChoiceOptions) -> frozenset[str] | None:
    """The letter that a text begins with, as options are written, if no other one stands in it: `B) Paris`."""
    found = _LEADING.match(text)
    letter = _letter(found["letter"], options) if found else None
    if found is None or letter is None:
        return None
    others = {other[0] for other in _ALONE.finditer(text, found.end()) if other[0] in options.choices}
    return frozenset(letter) if others <= {letter} else None


VERIFIER = Verifier("choice", ChoiceOptions, _judge, _check_reference)
