"""A function of the user's own: `function(prompt=…, answer=…, reference=…, **options)` gives the reward.

It returns a bool, a number from 0 to 1, or a pair of one and a reason. Whatever else it does (raising, running out of time) is a failure
of the judgement and no reward: nobody but its author can tell whose fault it is.

Only the job names it. Its module is imported in the long-lived worker, its calls run in a process of their own each, without any variable
of the environment but those that Python and the run itself need. A judgement is one call: the function may ask a service that is paid for.
"""

import importlib
import math
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any

from rljob.api.verifiers import ImportOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.wire.reward import ScoreItem, settled


def _check_reference(reference: Any, options: ImportOptions) -> None:
    if options.path is None:
        raise ValueError("option `path`: is not set; name a function, such as my_rewards:judge, in spec.reward.options of the job")


@lru_cache(maxsize=64)
def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _judge(item: ScoreItem, options: ImportOptions) -> Judgement:
    assert options.path is not None
    given = _function(options.path)(prompt=item.prompt, answer=item.answer, reference=item.reference, **options.options)
    reward, reason = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
    if not isinstance(reward, Real) or not isinstance(reason, str):
        raise TypeError(f"{options.path} returned {given!r:.100}; it must return a bool, a number from 0 to 1, or a pair of one and a text")
    number = settled(float(reward))
    if math.isnan(number) or not 0.0 <= number <= 1.0:
        raise ValueError(f"{options.path} returned {number}; rewards are from 0 to 1")
    return Judgement(number == 1.0, reason, number)


def _warm(item: ScoreItem, options: ImportOptions) -> None:
    assert options.path is not None
    _function(options.path)


VERIFIER = Verifier("import", ImportOptions, _judge, _check_reference, killable=True, warm=_warm, slow_lane=False, sees_thoughts=True)
