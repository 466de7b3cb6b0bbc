"""Between the master and the reward service: `POST {reward}/v1/score` with ScoreRequest, answered with ScoreResponse."""

from typing import Any, Literal

from pydantic import Field

from rljob.wire.base import Message


class ScoreItem(Message):
    """One answer to judge."""

    id: str
    verifier: str
    options: dict[str, Any] = Field(default_factory=dict)
    prompt: str
    answer: str
    reference: Any = None
    finished: bool
    """False if the answer was cut by length or for repeating itself; most verifiers then give 0."""


class ScoreResult(Message):
    """The judgement, in the order of the request."""

    id: str
    verdict: Literal["right", "wrong", "failed"]
    """`failed` is an infrastructure failure: there is no reward, the caller tries again."""
    reward: float | None
    """None exactly if the verdict is `failed`."""
    reason: str = ""
    seconds: float = 0.0


class ScoreRequest(Message):
    items: tuple[ScoreItem, ...]


class ScoreResponse(Message):
    results: tuple[ScoreResult, ...]
