"""What counts as a word: what stands between spaces, and each character of the scripts that write without them (Chinese, Japanese)."""

import re
import unicodedata

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[^\\w\\s]*+[{_UNSPACED}][^\\w\\s]*+|[^\\s{_UNSPACED}]+")
_JOINS = re.compile(f"(?![{_UNSPACED}])\\w")
"""A character that would make another word of the one it stands beside."""
_MARK = "".join(mark for mark in map(chr, range(0x300, 0x20000)) if unicodedata.combining(unicodedata.normalize("NFD", mark)[0]))
"""Accents and other marks that are put in order among each other; a letter or a symbol before them ends that."""
_MARKS = re.compile(f"([{_MARK}]{{30}})")


def words(text: str) -> list[str]:
    """The words of a text; punctuation stays with its word."""
    return _WORD.findall(text)


def even(text: str) -> str:
    """The same text in one form: letters composed with their accents, the typewriter's apostrophe."""
    return composed(text).replace("\u2019", "'")


def composed(text: str) -> str:
    """The same text with letters composed with their accents (NFC), wherever fewer than 30 marks follow each other.

    Putting n marks on one letter in order takes n² steps, so longer runs of them are composed piece by piece: the limit of Unicode's
    stream-safe format (UAX 15, section 13), without the characters that it puts in.
    """
    return text if text.isascii() else "".join(unicodedata.normalize("NFC", part) for part in _MARKS.split(text))


def occurs(word: str, text: str, longer: bool = False) -> bool:
    """Whether a word stands in a text by itself; with `longer` also as the beginning of one."""
    begin = r"(?<!\w)" if _JOINS.match(word) else ""
    end = r"(?!\w)" if not longer and _JOINS.match(word[-1:]) else ""
    return re.search(begin + re.escape(word) + end, text) is not None
