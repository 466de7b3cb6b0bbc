"""From a file to a smaller one, with a policy and judges that are twins."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.curate.test_choose import spec

from rljob.api import ConfigurationError
from rljob.curate.run import curate
from rljob.reward.outside import NoAnswerError, Outside
from rljob.reward.pool import WorkerPool

RECORDS: list[dict[str, Any]] = [
    {"prompt": "always", "reference": "yes", "family": "a"},
    {"prompt": "sometimes", "reference": "yes", "family": "a", "id": "s"},
    {"prompt": "never", "reference": "yes", "family": "b"},
    {"prompt": "guess me", "reference": "yes", "family": "b"},
    {"prompt": "cut", "reference": "yes", "family": "b"},
]


Handler = Callable[[httpx.Request], Coroutine[Any, Any, httpx.Response]]


class Policy:
    """Answers by what the prompt says."""

    def __init__(self, works: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.works = works

    async def answer(self, request: httpx.Request) -> httpx.Response:
        question = json.loads(await request.aread())
        self.asked.append(question)
        if not self.works and len(self.asked) > 20:
            return httpx.Response(500)
        text = question["messages"][-1]["content"]
        count = sum(one["messages"][-1]["content"] == text for one in self.asked)
        thought = {"always": True, "sometimes": bool(count % 2), "cut": True}.get(text, False)
        right = thought or text.startswith("guess me")
        choice = {
            "message": {"role": "assistant", "content": "yes" if right else "no"},
            "finish_reason": "length" if text == "cut" else "stop",
        }
        return httpx.Response(200, json={"id": "x", "object": "chat.completion", "choices": [choice]})


JUDGED: dict[str, Any] = {"verifier": "http", "options": {"url": "http://judge/score", "attempts": 1}}


async def somebody(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"reward": float(json.loads(await request.aread())["answer"] == "yes")})


async def nobody(request: httpx.Request) -> httpx.Response:
    """Is there."""
    return httpx.Response(503)


def run(
    folder: Path, policy: Policy, records: list[dict[str, Any]] = RECORDS, judge: Handler = nobody, **more: Any
) -> tuple[dict[str, object], list[str]]:
    said: list[str] = []
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    async def sleep(seconds: float) -> None: ...

    async def go() -> dict[str, object]:
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(policy.answer)) as http,
            httpx.AsyncClient(transport=httpx.MockTransport(judge)) as others,
        ):
            asked, judges = Outside(http, None, sleep, random.Random(0)), Outside(others, None, sleep, random.Random(0))
            given = {"source": str(folder / "in.jsonl"), "out": str(folder / "out.jsonl"), "samples": 4, "guesses": 2} | more
            return await curate(spec(**given), WorkerPool(1, {}), asked, judges, said.append)

    return asyncio.run(go()), said


def test_what_is_kept_is_written_with_its_difficulty(tmp_path: Path) -> None:
    policy = Policy()
    made, said = run(tmp_path, policy)
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [
        {"id": "s", "prompt": "sometimes", "reference": "yes", "family": "a", "difficulty": 0.5},
        {"prompt": "never", "reference": "yes", "family": "b", "difficulty": 1.0},
        {"prompt": "cut", "reference": "yes", "family": "b", "difficulty": 1.0},
    ]
    assert made["fates"] == {"kept": 3, "unjudged": 0, "guessable": 1, "too hard": 0, "too easy": 1, "balanced out": 0}
    assert json.loads((tmp_path / "out.report.json").read_text()) == made
    assert said[1] == "3 of 5 prompts kept"
    assert len(policy.asked) == 5 * 6
    assert {question["max_tokens"] for question in policy.asked} == {2048, 64}


def test_a_second_run_measures_nothing_again(tmp_path: Path) -> None:
    made, _ = run(tmp_path, Policy())
    policy = Policy()
    again, said = run(tmp_path, policy)
    assert policy.asked == []
    assert said[0] == "5 prompts, 5 of them measured before"
    assert again == made
    run(tmp_path, policy, temperature=0.5)
    assert len(policy.asked) == 5 * 6


def test_a_policy_that_goes_away_costs_what_was_in_progress_alone(tmp_path: Path) -> None:
    with pytest.raises(NoAnswerError, match="answered 500"):
        run(tmp_path, Policy(works=False), concurrency=1)
    assert not (tmp_path / "out.jsonl").exists()
    policy = Policy()
    _, said = run(tmp_path, policy)
    assert said[0] == "5 prompts, 3 of them measured before"
    assert len(policy.asked) == 2 * 6


def test_a_line_that_a_full_disk_cut_off_is_measured_again_and_spoils_no_other(tmp_path: Path) -> None:
    run(tmp_path, Policy())
    journal = tmp_path / "out.measured.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    for known in (4, 5):
        _, said = run(tmp_path, Policy())
        assert said[0] == f"5 prompts, {known} of them measured before"


def test_a_record_that_cannot_be_judged_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    policy = Policy()
    with pytest.raises(ConfigurationError, match=r"in\.jsonl line 1: verifier math: `reference` must be a number or an expression"):
        run(tmp_path, policy, [{"prompt": "a", "verifier": "math"}])
    with pytest.raises(ConfigurationError, match="only the job may name code or an address"):
        run(tmp_path, policy, [{"prompt": "a", "verifier": "import", "options": {"path": "os:system"}}])
    assert policy.asked == []


def test_a_chat_of_several_turns_is_not_judged_by_a_model_that_sees_the_last_alone(tmp_path: Path) -> None:
    policy = Policy()
    turns = [("user", "Tell me of France."), ("assistant", "Sure."), ("user", "Its capital?")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    judge = {"endpoint": "http://judge/v1", "model": "m"}
    with pytest.raises(ConfigurationError, match="line 1: verifier judge: it is shown the last message alone, and `messages` has 3 turns"):
        run(tmp_path, policy, [record], verifier="judge", options=judge)
    assert policy.asked == []


def test_what_could_not_be_judged_is_asked_again_by_the_same_command(tmp_path: Path) -> None:
    made, said = run(tmp_path, Policy(), **JUDGED)
    assert made["fates"] == {"kept": 0, "unjudged": 5, "guessable": 0, "too hard": 0, "too easy": 0, "balanced out": 0}
    assert "  (the same command asks again for those that could not be judged)" in said
    policy = Policy()
    made, _ = run(tmp_path, policy, judge=somebody, **JUDGED)
    assert made["fates"] == {"kept": 3, "unjudged": 0, "guessable": 1, "too hard": 0, "too easy": 1, "balanced out": 0}
    assert len(policy.asked) == 5 * 6


def test_a_prompt_whose_guesses_could_not_be_judged_is_not_kept(tmp_path: Path) -> None:
    judged = 0

    async def answers_alone(request: httpx.Request) -> httpx.Response:
        nonlocal judged
        judged += 1
        return await somebody(request) if judged <= 4 else httpx.Response(503)

    made, _ = run(tmp_path, Policy(), RECORDS[2:3], judge=answers_alone, concurrency=1, **JUDGED)
    assert made["fates"] == {"kept": 0, "unjudged": 1, "guessable": 0, "too hard": 0, "too easy": 0, "balanced out": 0}


def test_a_file_of_prompts_is_not_replaced_by_those_that_were_chosen(tmp_path: Path) -> None:
    policy = Policy()
    for name in ("in.jsonl", "in.measured.jsonl"):
        with pytest.raises(ConfigurationError, match=f"{name} is read, and would be replaced"):
            run(tmp_path, policy, source=str(tmp_path / name), out=str(tmp_path / "in.jsonl"))
        assert len((tmp_path / "in.jsonl").read_text().splitlines()) == len(RECORDS)
    assert policy.asked == []


def test_that_nothing_can_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    policy = Policy()
    with pytest.raises(ConfigurationError, match="OUT: "):
        run(tmp_path, policy, out=str(tmp_path / "in.jsonl" / "out.jsonl"))
    assert policy.asked == []
    run(tmp_path, policy, out=str(tmp_path / "folder" / "out.jsonl"))
    assert {file.name for file in (tmp_path / "folder").iterdir()} == {"out.jsonl", "out.report.json", "out.measured.jsonl"}
