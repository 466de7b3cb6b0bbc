"""Which answers the report shows: the same prompts before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from rljob.master.decisions.evaluation import HeldOutAnswer


@dataclass(frozen=True)
class Pair:
    """One held-out prompt, answered by the first and by the newest evaluated policy."""

    before: HeldOutAnswer
    after: HeldOutAnswer


def pairs(before: Sequence[HeldOutAnswer], after: Sequence[HeldOutAnswer], count: int) -> tuple[Pair, ...]:
    """The first prompts of the held-out set, taken in turn from each family: chosen by position, never by how well they went."""
    newest = {a.prompt: a for a in after}
    families: dict[str, list[Pair]] = {}
    for answer in before:
        if answer.prompt in newest:
            families.setdefault(answer.family, []).append(Pair(answer, newest[answer.prompt]))
    turns = [pair for turn in range(count) for members in families.values() for pair in members[turn : turn + 1]]
    return tuple(turns[:count])
