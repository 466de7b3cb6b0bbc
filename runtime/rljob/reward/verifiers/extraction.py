"""Which part of an answer is the result. Linear in the answer's length, whatever it holds."""

from rljob.api.verifiers import Place

_BOX = "\\boxed{"


def extract(answer: str, place: Place) -> str | None:
    """The part to judge; None if the answer has no such part."""
    if place == "whole":
        return answer.strip()
    boxed = last_boxed(answer)
    return answer.strip() if boxed is None and place == "auto" else boxed


def last_boxed(answer: str) -> str | None:
    r"""Content of the last `\boxed{…}`, braces balanced; None if there is none or it is not closed."""
    start = answer.rfind(_BOX)
    if start < 0:
        return None
    depth = 1
    for at in range(start + len(_BOX), len(answer)):
        character = answer[at]
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return answer[start + len(_BOX) : at].strip()
    return None
