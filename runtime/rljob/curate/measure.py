"""Has a policy answer and guess, and the answers judged."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob.api.curation import Curation
from rljob.curate.choose import Measured
from rljob.prepare.records import Record
from rljob.reward.judge import Judge
from rljob.reward.outside import Outside
from rljob.wire.openai import read_completion
from rljob.wire.reward import ScoreItem

GUESS = "Give the final result only, without any reasoning or explanation."
"""Put under a prompt that is to be guessed (Kimi k1.5 §2.1)."""
_SECONDS, _ATTEMPTS, _JUDGEMENTS = 600.0, 6, 3


@dataclass(frozen=True)
class Meter:
    """Measures prompts, each once: what is in the journal is not measured again."""

    spec: Curation
    policy: Outside
    """By which the policy is reached; nobody else may see what its requests carry."""
    judge: Judge
    journal: Path
    """One JSON line per prompt that was measured in full: where something could not be judged, the next run asks again."""

    async def measure(self, records: Sequence[Record], say: Callable[[str], None]) -> list[Measured]:
        """In the order of the records.

        Raises:
            InfrastructureError: the endpoint does not answer. What was measured is kept.
        """
        known = self._known()
        gate = asyncio.Semaphore(self.spec.concurrency)
        left = sum(self.key(record) not in known for record in records)
        say(f"{len(records)} prompts, {len(records) - left} of them measured before")

        async def one(record: Record) -> Measured:
            key = self.key(record)
            if key not in known:
                async with gate:
                    known[key], in_full = await self._measured(record)
                if in_full:
                    with self.journal.open("a") as lines:
                        lines.write(json.dumps({"key": key} | known[key]) + "\n")
            return Measured(record.family, **known[key])

        tasks = [asyncio.create_task(one(record)) for record in records]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def key(self, record: Record) -> str:
        """Of what a measurement depends on."""
        spec = self.spec.model_dump(mode="json", include={"model", "samples", "guesses", "temperature", "max_tokens", "guess_tokens"})
        verifier = self.verifier_of(record)
        parts = [spec, [m.model_dump() for m in record.chat], verifier, record.reference]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _known(self) -> dict[str, dict[str, int]]:
        if not self.journal.exists():
            return {}
        whole, _, torn = self.journal.read_bytes().rpartition(b"\n")
        if torn:  # or the next line would go on where a full disk ended this one
            os.truncate(self.journal, len(whole) + 1 if whole else 0)
        return {found.pop("key"): found for found in map(json.loads, whole.splitlines())}

    def verifier_of(self, record: Record) -> tuple[str, dict[str, Any]]:
        """Who judges the answers to a record, and how."""
        name = record.verifier or self.spec.verifier
        return name, (self.spec.options if name == self.spec.verifier else {}) | (record.options or {})

    async def _measured(self, record: Record) -> tuple[dict[str, int], bool]:
        """The numbers of a `Measured`, and whether every answer and guess could be judged."""
        plain = [message.model_dump() for message in record.chat]
        last = plain[-1] | {"content": f"{plain[-1]['content']}\n\n{GUESS}"}
        answers, guesses = await asyncio.gather(
            self._verdicts(record, plain, self.spec.samples, self.spec.max_tokens),
            self._verdicts(record, [*plain[:-1], last], self.spec.guesses, self.spec.guess_tokens),
        )
        guessed = sum(verdict is True for verdict in guesses)
        # Without all guesses nobody knows that it cannot be guessed.
        judged = [verdict for verdict in answers if verdict is not None] if guessed or None not in guesses else []
        return {"right": sum(judged), "judged": len(judged), "guessed": guessed}, None not in (*answers, *guesses)

    async def _verdicts(self, record: Record, chat: list[dict[str, str]], count: int, tokens: int) -> list[bool | None]:
        return await asyncio.gather(*(self._verdict(record, chat, tokens) for _ in range(count)))

    async def _verdict(self, record: Record, chat: list[dict[str, str]], tokens: int) -> bool | None:
        """Whether one answer is right; None if it cannot be judged."""
        question = {"model": self.spec.model, "messages": chat, "temperature": self.spec.temperature, "max_tokens": tokens}
        url = f"{self.spec.endpoint.rstrip('/')}/chat/completions"
        reply = await self.policy.ask(url, json.dumps(question), read_completion, _SECONDS, _ATTEMPTS)
        verifier, options = self.verifier_of(record)
        item = ScoreItem(
            id="",
            verifier=verifier,
            options=options,
            prompt=record.question,
            answer=reply.text,
            reference=record.reference,
            finished=reply.finished,
        )
        for _ in range(_JUDGEMENTS):
            result = await self.judge.score(item)
            if result.verdict != "failed":
                return result.verdict == "right"
        return None
