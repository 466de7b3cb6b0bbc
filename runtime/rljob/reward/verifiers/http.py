"""A service of the user's own: `POST url` with a Question, answered with a Reply (rljob.wire.reward)."""

from typing import Any

from pydantic import ValidationError

from rljob.api.verifiers import HttpOptions
from rljob.reward.outside import Outside
from rljob.reward.verifier import Judgement, RemoteVerifier
from rljob.wire.reward import Question, Reply, ScoreItem

_LONGEST_REASON = 300


def _check_reference(reference: Any, options: HttpOptions) -> None:
    if options.url is None:
        raise ValueError("option `url`: is not set; give the address of your service in spec.reward.options of the job")


async def _ask(item: ScoreItem, options: HttpOptions, outside: Outside) -> Judgement:
    assert options.url is not None
    question = Question(id=item.id, prompt=item.prompt, answer=item.answer, reference=item.reference, options=options.options)
    reply = await outside.ask(options.url, question.model_dump_json(), _read, options.timeout_seconds, options.attempts)
    return Judgement(reply.reward == 1.0 if reply.right is None else reply.right, reply.reason[:_LONGEST_REASON], reply.reward)


def _read(body: bytes) -> Reply:
    try:
        return Reply.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"no Reply: {'.'.join(map(str, first['loc']))} {first['msg']}") from None


VERIFIER = RemoteVerifier("http", HttpOptions, _ask, _check_reference, sees_thoughts=True)
