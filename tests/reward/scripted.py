"""A language model behind an OpenAI-compatible endpoint, on a real port, whose replies are written by a test."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.reward.listening import Listener

Body = dict[str, Any]


@dataclass
class Scripted:
    """What it was asked, and what it says."""

    reply: Callable[[Body], str]
    address: str = ""
    asked: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def shown(body: Body, name: str) -> str:
    """What a judge is shown as `question`, `reference` or `answer`."""
    found = re.search(rf"<{name} (\w{{16}})>\n(.*?)\n</{name} \1>", body["messages"][-1]["content"], re.DOTALL)
    assert found is not None
    return found[2]


def code_of(body: Body) -> str:
    """The code that a verdict needs."""
    found = re.search(r"marks with (\w{16}) is", body["messages"][-1]["content"])
    assert found is not None
    return found[1]


def verdict(body: Body, score: int, reasoning: str | None = "as said") -> str:
    """A reply as it should be."""
    first = {} if reasoning is None or '"reasoning"' not in body["messages"][-1]["content"] else {"reasoning": reasoning}
    return json.dumps(first | {"code": code_of(body), "score": score})


def completion(text: str, finish: str = "stop") -> Body:
    """The body of a 200."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


@contextmanager
def serving(reply: Callable[[Body], str]) -> Iterator[Scripted]:
    """Serve until the end of the block."""
    made = Scripted(reply)

    def answer(path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body)
        made.asked.append(asked)
        made.keys.append(headers.get("authorization"))
        known = path == "/v1/chat/completions"
        return 200 if known else 404, json.dumps(completion(made.reply(asked)) if known else {}).encode()

    listener = Listener(answer)
    made.address = f"{listener.address}/v1"
    listener.open()
    try:
        yield made
    finally:
        listener.close()
