"""The scorer of the reasoning-gym data set that the prompt came from.

The reference is `{"dataset": name, "parameters": {...}, "entry": {...}}`, as `rljob.prepare` writes it. Some scorers evaluate parts of the
answer as code or search without bounds, which is why each judgement runs in a process of its own.
"""

import json
from functools import lru_cache
from typing import Any

from rljob.api.verifiers import ReasoningGymOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.extraction import extract, last_boxed
from rljob.wire.reward import ScoreItem


def _check_reference(reference: Any, options: ReasoningGymOptions) -> None:
    if not isinstance(reference, dict) or not isinstance(reference.get("dataset"), str) or not isinstance(reference.get("entry"), dict):
        raise ValueError(f"`reference` must hold the generator's `dataset` and `entry`, not {reference!r:.60}; use a reasoningGym source")


@lru_cache(maxsize=16)
def _dataset(name: str, parameters: str) -> Any:
    from reasoning_gym.factory import create_dataset

    return create_dataset(name, size=1, seed=0, **json.loads(parameters))


def _of(item: ScoreItem) -> Any:
    return _dataset(item.reference["dataset"], json.dumps(item.reference.get("parameters", {}), sort_keys=True))


def _judge(item: ScoreItem, options: ReasoningGymOptions) -> Judgement:
    place = extract(item.answer, options.place)
    if place is None:
        return Judgement(False, "no \\boxed{} in the answer")
    score = float(_of(item).score_answer(place, item.reference["entry"]))
    return Judgement(True) if score >= options.threshold else Judgement(False, f"score {score:.3g}")


def _warm(item: ScoreItem, options: ReasoningGymOptions) -> None:
    _of(item)


def _probe(item: ScoreItem) -> str:
    """The generator's answer where it is looked for; nothing if it knows none, or one that no box can hold."""
    answer = item.reference["entry"].get("answer")
    if not isinstance(answer, str):
        return ""
    if item.options.get("place") != "boxed":
        return answer
    return boxed if last_boxed(boxed := f"\\boxed{{{answer}}}") == answer.strip() else ""


VERIFIER = Verifier("reasoning-gym", ReasoningGymOptions, _judge, _check_reference, killable=True, warm=_warm, probe=_probe)
