"""Between the master and the reward service: `POST {reward}/v1/score` with ScoreRequest, answered with ScoreResponse.

Between the reward service and a user's own (the verifier `http`): `POST {url}` with Question, answered with Reply.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rljob.wire.base import Message

_ROUNDING = 1e-9


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
    """From 0 to 1; None exactly if the verdict is `failed`. Graded verifiers also give something between, whatever the verdict."""
    reason: str = ""
    seconds: float = 0.0


class ScoreRequest(Message):
    items: tuple[ScoreItem, ...]


class ScoreResponse(Message):
    results: tuple[ScoreResult, ...]


class Question(Message):
    """One answer, for a user's own service."""

    id: str
    """Not unique: the same answer is asked about again if the service failed."""
    prompt: str
    answer: str
    reference: Any = None
    options: dict[str, Any] = Field(default_factory=dict)
    """As they stand in the job or the record."""


def settled(reward: float) -> float:
    """Full marks and none, where a sum of shares missed them by the rounding of floats: 0.7 + 0.2 + 0.1 is 0.9999999999999999."""
    return float(round(reward)) if min(abs(reward), abs(reward - 1.0)) <= _ROUNDING else reward


class Reply(Message):
    """What a user's own service makes of it. Any other reply counts as a failure of the service."""

    reward: Annotated[float, Field(ge=0, le=1)]
    right: bool | None = None
    """Default: whether the reward is 1."""
    reason: str = ""

    @field_validator("reward", mode="before")
    @classmethod
    def _settled(cls, reward: Any) -> Any:
        return settled(reward) if isinstance(reward, float) else reward
