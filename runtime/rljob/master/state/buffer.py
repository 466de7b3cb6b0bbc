"""The replay buffer: drawn prompts, their answers piece by piece, and what the sampler knows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rljob.master.decisions.sampler import Statistics
from rljob.master.state.database import Database
from rljob.master.trajectory import Finish, PromptGroup, Segment, Trajectory, Verdict, Weights
from rljob.wire.data import PromptRecord


@dataclass(frozen=True)
class Piece:
    """News of one answer: further tokens, its end, its verdict. All of it is stored, or none."""

    group: int
    sample: int
    start: int = 0
    """Length of the answer before `segment`."""
    segment: Segment | None = None
    finish: Finish | None = None
    length: int | None = None
    """Length of the answer once it is finished."""
    answer: str | None = None
    verdict: Verdict | None = None


class Buffer:
    """Drawn prompts until a commit consumes them."""

    def __init__(self, database: Database, prompts: Mapping[str, PromptRecord]) -> None:
        self._db = database
        self._prompts = prompts
        self._draws: Counter[str] | None = None
        """How often each prompt was drawn; counted once, when it is asked for."""

    def drawn(self) -> int:
        """Prompts drawn so far: the sampler's position."""
        return int(self._db.connection.execute("SELECT coalesce(max(ordinal) + 1, 0) FROM groups").fetchone()[0])

    def statistics(self) -> dict[str, Statistics]:
        """Per prompt id, for prompts drawn before."""
        if self._draws is None:
            self._draws = Counter(dict(self._db.connection.execute("SELECT prompt, count(*) FROM groups GROUP BY prompt")))
        found = {prompt: Statistics(draws) for prompt, draws in self._draws.items()}
        for prompt, samples, successes in self._db.connection.execute("SELECT prompt, samples, successes FROM statistics"):
            found[prompt] = Statistics(found[prompt].draws, samples, successes)
        return found

    def rounds(self, iteration: int) -> int:
        """How often the token budget of this iteration was granted; 0 if its prompts are not drawn."""
        row = self._db.connection.execute("SELECT rounds FROM draws WHERE iteration = ?", (iteration,)).fetchone()
        return int(row[0]) if row else 0

    def draw(self, iteration: int, prompts: Sequence[str], samples: int) -> None:
        """Record an iteration's new prompts before anything is generated for them."""
        first = self.drawn()
        with self._db.transaction("draw") as c:
            c.execute("INSERT INTO draws VALUES (?, 1)", (iteration,))
            c.executemany("INSERT INTO groups VALUES (?, ?, ?, NULL)", [(first + i, p, iteration) for i, p in enumerate(prompts)])
            rows = [(first + i, sample) for i in range(len(prompts)) for sample in range(samples)]
            c.executemany("INSERT INTO trajectories (group_id, sample) VALUES (?, ?)", rows)
        if self._draws is not None:
            self._draws.update(prompts)

    def grant_round(self, iteration: int) -> None:
        """Grant the token budget once more: nothing was complete."""
        with self._db.transaction("grant round") as c:
            c.execute("UPDATE draws SET rounds = rounds + 1 WHERE iteration = ?", (iteration,))

    def save(self, pieces: Iterable[Piece]) -> None:
        """Store news of answers, in one transaction."""
        with self._db.transaction("pieces") as c:
            for piece in pieces:
                key = (piece.group, piece.sample)
                if piece.segment is not None and len(piece.segment.tokens):
                    weights, blobs = piece.segment.weights, _blobs(piece.segment)
                    row = (*key, piece.start, weights.version, weights.checksum, *blobs)
                    c.execute("INSERT INTO pieces VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                if piece.finish is not None:
                    c.execute(
                        "UPDATE trajectories SET finish = ?, length = ? WHERE (group_id, sample) = (?, ?)",
                        (piece.finish, piece.length, *key),
                    )
                if piece.verdict is not None:
                    judged = (piece.answer, piece.verdict.right, piece.verdict.reward, piece.verdict.reason)
                    c.execute(
                        "UPDATE trajectories SET answer = ?, is_right = ?, reward = ?, reason = ? WHERE (group_id, sample) = (?, ?)",
                        (*judged, *key),
                    )

    def open_groups(self) -> tuple[PromptGroup, ...]:
        """Every drawn prompt that is not consumed, oldest first, with all that is known of its answers."""
        groups = self._db.connection.execute(
            "SELECT ordinal, iteration, prompt FROM groups WHERE consumed IS NULL ORDER BY ordinal"
        ).fetchall()
        return tuple(
            PromptGroup(ordinal, iteration, self._prompts[prompt], self._trajectories(ordinal)) for ordinal, iteration, prompt in groups
        )

    def _trajectories(self, group: int) -> tuple[Trajectory, ...]:
        found: list[Trajectory] = []
        for sample, finish, answer, right, reward, reason in self._db.connection.execute(
            "SELECT sample, finish, answer, is_right, reward, reason FROM trajectories WHERE group_id = ? ORDER BY sample", (group,)
        ):
            verdict = Verdict(bool(right), reward, reason) if reward is not None else None
            found.append(Trajectory(sample, (), finish, answer, verdict))
        for sample, version, checksum, tokens, logprobs in self._db.connection.execute(
            "SELECT sample, version, checksum, tokens, logprobs FROM pieces WHERE group_id = ? ORDER BY sample, start", (group,)
        ):
            segment = Segment(
                Weights(version, checksum), np.frombuffer(tokens, "<i4").astype(np.int32), np.frombuffer(logprobs, "<f4").astype(np.float32)
            )
            found[sample] = found[sample].extended(segment)
        return tuple(found)


def _blobs(segment: Segment) -> tuple[bytes, bytes]:
    return segment.tokens.astype("<i4").tobytes(), segment.logprobs.astype("<f4").tobytes()
