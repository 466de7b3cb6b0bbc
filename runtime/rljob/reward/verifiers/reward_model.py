"""A classic reward model scores the answer: a transformer with a value head, trained on preference pairs (docs/reward.md).

The model is a folder, which a process of this service holds, or stands behind a vLLM server's `/classify`. Its score is any number; options
say which reward it becomes. Special tokens that an answer spells out are broken up, so that none can end its turn and praise it.

Not covered: an answer that the model likes though it is bad. Whoever trains long enough against a reward model finds such answers; look at
what is rewarded, and measure with `rljob reward compare`.
"""

import json
import math
import re
from collections.abc import Hashable
from typing import Any

from rljob.api.verifiers import RewardModelOptions
from rljob.reward.outside import Outside
from rljob.reward.verifier import Judgement, RemoteVerifier
from rljob.reward.verifiers.language_model import PROBE, api_key
from rljob.wire.reward import ScoreItem

_TOKEN_LIKE = re.compile(r"<(?=\||/?s>)|\[(?=/?INST\])")
"""Begins a special token of the common chat templates; behind an endpoint nobody knows which the model has."""


def _check_reference(reference: Any, options: RewardModelOptions) -> None:
    if (options.folder is None) == (options.endpoint is None):
        raise ValueError("set one of the options `folder` (of the model) and `endpoint` (of a server that has it) in spec.reward.options")
    if options.endpoint is not None and options.model is None:
        raise ValueError("option `model`: is not set; give the name under which the endpoint serves the reward model")


def _same(item: ScoreItem, options: RewardModelOptions) -> Hashable:
    return options.model_dump_json(), item.prompt, item.answer


async def _ask(item: ScoreItem, options: RewardModelOptions, outside: Outside) -> Judgement:
    if len(item.answer) > options.longest_answer:
        return Judgement(False, f"the answer has more than {options.longest_answer} characters", 0.0)
    chat = [{"role": "user", "content": item.prompt}]
    if options.system is not None:
        chat.insert(0, {"role": "system", "content": options.system})
    if options.endpoint is not None:
        score: float | None = await _classified(chat, item.answer, options, outside)
    else:
        assert outside.scorers is not None, "the service was built without reward models"
        score = await outside.scorers.score(options, chat, item.answer)
    if score is None:
        return Judgement(False, "the conversation is longer than the reward model's context", 0.0)
    reward = mapped(score, options)
    return Judgement(reward >= options.threshold, f"score {score:.4g}, reward {reward:.3f}", reward)


def mapped(score: float, options: RewardModelOptions) -> float:
    """The reward of a score, from 0 to 1."""
    z = (score - options.center) / options.scale
    match options.mapping:
        case "sigmoid":
            # Written so that no exponential overflows.
            return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(max(z, -745.0)) / (1.0 + math.exp(max(z, -745.0)))
        case "threshold":
            return float(z >= 0)
        case "raw":
            return min(1.0, max(0.0, z))


async def _classified(chat: list[dict[str, str]], answer: str, options: RewardModelOptions, outside: Outside) -> float:
    """What a vLLM server says (`/classify` with `use_activation: false`: the score itself)."""
    assert options.endpoint is not None
    reply = {"role": "assistant", "content": _TOKEN_LIKE.sub(lambda found: f"{found[0]} ", answer)}
    body = {"model": options.model, "messages": [*chat, reply], "use_activation": False, "add_special_tokens": False}
    url, key = f"{options.endpoint.rstrip('/')}/classify", api_key(options, outside.environment)
    return await outside.ask(url, json.dumps(body), read_score, options.timeout_seconds, options.attempts, key)


def read_score(body: bytes) -> float:
    """The one score of a reply.

    Raises:
        ValueError: there is none.
    """
    try:
        (entry,) = json.loads(body)["data"]
        (score,) = entry["probs"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"no single score: {body[:120].decode(errors='replace')}") from None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"a score that is no number: {score!r:.40}")
    return float(score)


VERIFIER = RemoteVerifier("reward-model", RewardModelOptions, _ask, _check_reference, _same, PROBE)
