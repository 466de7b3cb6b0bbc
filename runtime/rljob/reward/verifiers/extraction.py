"""Which part of an answer is the result. Linear in the answer's length, whatever it holds."""

import re
from collections import deque

from rljob.api.verifiers import Place

_BOX = re.compile(r"\\boxed ?\{")


def without_thoughts(answer: str) -> str | None:
    """What stands behind a model's thoughts, `<think>…</think>`; None if they have no end, so that there is no answer.

    A chat template may open them itself: then the answer only closes them. Tags behind the first end belong to the answer, which may be a
    program that reads them.
    """
    begin, end, behind = answer.partition("</think>")
    if end:
        return behind
    return None if begin.lstrip().startswith("<think>") else answer


def extract(answer: str, place: Place) -> str | None:
    """The part to judge; None if the answer has no such part."""
    if place == "whole":
        return answer.strip()
    boxed = last_boxed(answer)
    return answer.strip() if boxed is None and place == "auto" else boxed


def has_box(text: str) -> bool:
    """Whether a box begins somewhere, closed or not."""
    return _BOX.search(text) is not None


def last_boxed(answer: str) -> str | None:
    r"""Content of the last `\boxed{…}`, braces balanced; None if there is none or it is not closed."""
    last = deque(_BOX.finditer(answer), maxlen=1)
    if not last:
        return None
    start, depth = last[0].end(), 1
    for at in range(start, len(answer)):
        character = answer[at]
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return answer[start:at].strip()
    return None
