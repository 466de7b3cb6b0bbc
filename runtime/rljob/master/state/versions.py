"""Versions of the weights: manifests, the batch in progress, and the one transaction that commits a version."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rljob.master.state.database import Database
from rljob.wire.node import TrainMetrics, TrainTask
from rljob.wire.weights import Manifest


@dataclass(frozen=True)
class StoredBatch:
    """The training task in progress."""

    task: TrainTask
    groups: tuple[int, ...]
    """Ids of the groups it consumes; empty for the warm start."""
    record: Mapping[str, Any]
    """What is known of the iteration before training."""


@dataclass(frozen=True)
class Committed:
    """The newest committed version."""

    version: int
    checksum: str | None
    """None until a node has registered its weights."""


class Versions:
    """Numbers, checksums and batches."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._read: Manifest | None = None
        """What was asked for last: a large model's takes long to read, and each report of a node that pulls needs it."""

    def committed(self) -> Committed:
        """The version that the job stands on."""
        row = self._db.connection.execute(
            "SELECT version, checksum FROM versions LEFT JOIN manifests USING (version) ORDER BY version DESC LIMIT 1"
        ).fetchone()
        return Committed(*row) if row else Committed(0, None)

    def start(self, now: float) -> None:
        """Version 0, the starting model; within the transaction that creates the job's state."""
        self._db.connection.execute("INSERT INTO versions VALUES (0, 'start', ?, NULL)", (now,))

    def manifest(self, version: int) -> Manifest | None:
        """What is registered for a version; None also for one so old that its weights are nowhere in memory."""
        if self._read is None or self._read.version != version:
            row = self._db.connection.execute("SELECT body FROM manifests WHERE version = ?", (version,)).fetchone()
            self._read = Manifest.model_validate_json(row[0]) if row and row[0] else None
        return self._read

    def checksum(self, version: int) -> str | None:
        """The checksum of a version, once registered."""
        row = self._db.connection.execute("SELECT checksum FROM manifests WHERE version = ?", (version,)).fetchone()
        return str(row[0]) if row else None

    def register(self, manifest: Manifest) -> None:
        """Store a manifest; a version's newest registration says where its weights are. The caller has compared checksums."""
        with self._db.transaction("register") as c:
            c.execute(
                "INSERT INTO manifests VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                (manifest.version, manifest.checksum, manifest.model_dump_json()),
            )
        self._read = None

    def store_batch(self, batch: StoredBatch, body: bytes) -> None:
        """Make a training task durable before any node hears of it."""
        version, part = batch.task.version, self._db.connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) // 2
        row = (version, batch.task.model_dump_json(), json.dumps(batch.groups), json.dumps(batch.record), body[:part])
        rest = ((version, start, body[start : start + part]) for start in range(part, len(body), part))
        with self._db.transaction("batch") as c:
            c.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", row)
            c.executemany("INSERT INTO batch_parts VALUES (?, ?, ?)", rest)

    def pending(self) -> StoredBatch | None:
        """The training task in progress."""
        row = self._db.connection.execute("SELECT task, groups, record FROM batches ORDER BY version DESC LIMIT 1").fetchone()
        return StoredBatch(TrainTask.model_validate_json(row[0]), tuple(json.loads(row[1])), json.loads(row[2])) if row else None

    def batch(self, version: int) -> bytes | None:
        """The encoded batch of the task in progress."""
        row = self._db.connection.execute("SELECT body FROM batches WHERE version = ?", (version,)).fetchone()
        rest = self._db.connection.execute("SELECT body FROM batch_parts WHERE version = ? ORDER BY start", (version,))
        return b"".join([row[0], *(body for (body,) in rest)]) if row else None

    def warm_start_metrics(self) -> TrainMetrics | None:
        """What the warm start's training reported."""
        row = self._db.connection.execute("SELECT metrics FROM versions WHERE kind = 'sft'").fetchone()
        return TrainMetrics.model_validate_json(row[0]) if row else None

    def commit(self, batch: StoredBatch, metrics: TrainMetrics, record: Mapping[str, Any], now: float) -> None:
        """The one transaction that advances the job: version, consumed prompts, the sampler's knowledge, the iteration's record."""
        version, groups = batch.task.version, [(ordinal,) for ordinal in batch.groups]
        with self._db.transaction("commit") as c:
            c.execute("INSERT INTO versions VALUES (?, ?, ?, ?)", (version, batch.task.kind, now, metrics.model_dump_json()))
            if batch.task.kind != "sft":
                c.execute("INSERT INTO iterations VALUES (?, ?, ?)", (batch.task.iteration, version, json.dumps(record)))
            c.executemany("UPDATE groups SET consumed = ? WHERE ordinal = ?", [(version, *ordinal) for ordinal in groups])
            self._learn(groups)
            c.executemany("DELETE FROM pieces WHERE group_id = ?", groups)
            # What the last two versions were trained on can still be read; a long job's answers would fill the volume.
            c.execute(
                "UPDATE trajectories SET answer = NULL, reason = NULL WHERE group_id IN (SELECT ordinal FROM groups WHERE consumed = ?)",
                (version - 2,),
            )
            c.execute("DELETE FROM batches")
            c.execute("DELETE FROM batch_parts")
            # Peers may still read the version that was just replaced; of older ones only the checksum stays.
            c.execute("UPDATE manifests SET body = NULL WHERE version < ?", (version - 1,))
        self._read = None

    def _learn(self, groups: Sequence[tuple[int]]) -> None:
        self._db.connection.executemany(
            "INSERT INTO statistics SELECT prompt, count(*), sum(is_right) FROM groups JOIN trajectories ON group_id = ordinal "
            "WHERE ordinal = ? GROUP BY prompt "
            "ON CONFLICT (prompt) DO UPDATE SET samples = samples + excluded.samples, successes = successes + excluded.successes",
            groups,
        )
