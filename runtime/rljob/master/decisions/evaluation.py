"""When the held-out set is evaluated, and what its answers amount to."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rljob.api.algorithm import EvaluationSpec
from rljob.api.status import HeldOutStatus


def due(spec: EvaluationSpec | None, iteration: int, iterations: int) -> bool:
    """Whether the policy after `iteration` is evaluated: the one RL starts from (0), every N-th, and the last."""
    return spec is not None and (iteration % spec.every == 0 or iteration >= iterations)


@dataclass(frozen=True)
class HeldOutAnswer:
    """One judged held-out answer."""

    prompt: str
    """Id of the prompt."""
    family: str
    question: str
    answer: str
    length: int
    """Tokens."""
    right: bool
    reason: str = ""


def accuracy(iteration: int, answers: Sequence[HeldOutAnswer]) -> HeldOutStatus:
    """Share of right answers, in all and per family (families only if there are at least two)."""
    families: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        families[answer.family].append(answer.right)
    per_family = {name: _share(right) for name, right in sorted(families.items())} if len(families) > 1 else {}
    return HeldOutStatus(iteration=iteration, accuracy=_share([a.right for a in answers]), families=per_family, count=len(answers))


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0
