"""What was reached: held-out evaluations and iteration records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rljob.api.status import HeldOutStatus
from rljob.master.decisions.evaluation import HeldOutAnswer
from rljob.master.state.database import Database


@dataclass(frozen=True)
class Evaluation:
    """One finished held-out evaluation."""

    version: int
    status: HeldOutStatus
    record: Mapping[str, Any]
    """`response_length`, `seconds`, `tokens`."""


class History:
    """Evaluations and iterations. Report, metrics.jsonl and status are made from here, so a crash can neither double nor lose a line."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def save_answers(self, version: int, answers: Sequence[tuple[int, HeldOutAnswer]]) -> None:
        """Store judged held-out answers, each with its position in the held-out set."""
        rows = [(version, at, a.prompt, a.family, a.question, a.answer, a.length, a.right, a.reason) for at, a in answers]
        with self._db.transaction("held-out answers") as c:
            c.executemany("INSERT INTO held_out VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def answers(self, version: int) -> dict[int, HeldOutAnswer]:
        """Judged held-out answers of a version, by position."""
        rows = self._db.connection.execute(
            "SELECT position, prompt, family, question, answer, length, is_right, reason FROM held_out WHERE version = ? ORDER BY position",
            (version,),
        )
        return {at: HeldOutAnswer(p, family, q, a, length, bool(right), reason) for at, p, family, q, a, length, right, reason in rows}

    def save_evaluation(self, evaluation: Evaluation) -> None:
        """Record a finished evaluation. Of the answers only the first and the newest evaluation's are kept, for the report."""
        status = evaluation.status
        row = (evaluation.version, status.iteration, status.model_dump_json(), json.dumps(evaluation.record))
        with self._db.transaction("evaluation") as c:
            c.execute("INSERT INTO evaluations VALUES (?, ?, ?, ?)", row)
            c.execute(
                "DELETE FROM held_out WHERE version != ? AND version != (SELECT min(version) FROM evaluations)", (evaluation.version,)
            )

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Oldest first."""
        rows = self._db.connection.execute("SELECT version, status, record FROM evaluations ORDER BY version")
        return tuple(Evaluation(v, HeldOutStatus.model_validate_json(s), json.loads(r)) for v, s, r in rows)

    def iterations(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the finished iterations, oldest first; keys as in docs/metrics.md."""
        return tuple(json.loads(r) for (r,) in self._db.connection.execute("SELECT record FROM iterations ORDER BY iteration"))
