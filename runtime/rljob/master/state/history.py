"""What was reached: held-out evaluations and iteration records."""

import json
from collections.abc import Collection, Mapping, Sequence
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
    """Evaluations and iterations. Report, metrics.jsonl and status are made from here, so a crash can neither double nor lose a line.

    Both only grow, by versions and iterations that are higher than all before, and no row ever changes: what was read once is kept, and
    each look asks the database for what is newer. Not to be asked within a transaction, which could still be rolled back.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._evaluations: dict[int, Evaluation] = {}
        self._iterations: dict[int, Mapping[str, Any]] = {}

    def save_answers(self, version: int, answers: Sequence[tuple[int, HeldOutAnswer]]) -> None:
        """Store judged held-out answers, each with its position in the held-out set."""
        rows = [(version, at, a.prompt, a.family, a.question, a.answer, a.length, a.right, a.reason) for at, a in answers]
        with self._db.transaction("held-out answers") as c:
            c.executemany("INSERT INTO held_out VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def outline(self, version: int) -> tuple[HeldOutAnswer, ...]:
        """Prompts and families alone of a version's judged answers, in order: the texts can be long."""
        rows = self._db.connection.execute("SELECT prompt, family FROM held_out WHERE version = ? ORDER BY position", (version,))
        return tuple(HeldOutAnswer(prompt, family, "", "", 0, False) for prompt, family in rows)

    def answers(self, version: int, prompts: Collection[str] | None = None) -> dict[int, HeldOutAnswer]:
        """Judged held-out answers of a version, by position; all, or those to some prompts."""
        columns, some = "position, prompt, family, question, answer, length, is_right, reason", ""
        if prompts is not None:
            some = f"AND prompt IN ({', '.join('?' * len(prompts))})"
        query = f"SELECT {columns} FROM held_out WHERE version = ? {some} ORDER BY position"
        rows = self._db.connection.execute(query, (version, *(prompts or ())))
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
        known = next(reversed(self._evaluations), -1)
        rows = self._db.connection.execute("SELECT version, status, record FROM evaluations WHERE version > ? ORDER BY version", (known,))
        self._evaluations |= {v: Evaluation(v, HeldOutStatus.model_validate_json(s), json.loads(r)) for v, s, r in rows}
        return tuple(self._evaluations.values())

    def iterations(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the finished iterations, oldest first; keys as in docs/metrics.md."""
        known = next(reversed(self._iterations), -1)
        rows = self._db.connection.execute("SELECT iteration, record FROM iterations WHERE iteration > ? ORDER BY iteration", (known,))
        self._iterations |= {iteration: json.loads(record) for iteration, record in rows}
        return tuple(self._iterations.values())
