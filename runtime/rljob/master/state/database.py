"""The database file: opened by one master at a time, written in named transactions."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- Committed versions of the weights. Version 0 stands from the start.
CREATE TABLE versions (version INTEGER PRIMARY KEY, kind TEXT NOT NULL, committed REAL NOT NULL, metrics TEXT);
-- What the nodes registered, committed or not. The checksum of a version never changes.
CREATE TABLE manifests (version INTEGER PRIMARY KEY, checksum TEXT NOT NULL, body TEXT);
-- The batch of the training task in progress.
CREATE TABLE batches (version INTEGER PRIMARY KEY, task TEXT NOT NULL, groups TEXT NOT NULL, record TEXT NOT NULL, body BLOB NOT NULL);

-- Every prompt ever drawn; Consumed by exactly one version.
CREATE TABLE groups (ordinal INTEGER PRIMARY KEY, prompt TEXT NOT NULL, iteration INTEGER NOT NULL, consumed INTEGER);
CREATE INDEX open_groups ON groups (ordinal) WHERE consumed IS NULL;
-- Iterations whose prompts have been drawn, and how often the token budget was granted.
CREATE TABLE draws (iteration INTEGER PRIMARY KEY, rounds INTEGER NOT NULL);
CREATE TABLE trajectories (
  group_id INTEGER NOT NULL REFERENCES groups (ordinal), sample INTEGER NOT NULL,
  finish TEXT, length INTEGER, answer TEXT, is_right INTEGER, reward REAL, reason TEXT,
  PRIMARY KEY (group_id, sample)) WITHOUT ROWID;
-- Tokens (int32) and log-probs (float32), little-endian, in the pieces they came in; dropped once their group is consumed.
CREATE TABLE pieces (
  group_id INTEGER NOT NULL, sample INTEGER NOT NULL, start INTEGER NOT NULL,
  version INTEGER NOT NULL, checksum TEXT NOT NULL, tokens BLOB NOT NULL, logprobs BLOB NOT NULL,
  PRIMARY KEY (group_id, sample, start)) WITHOUT ROWID;
-- What the sampler knows of a prompt; changed by commits only.
CREATE TABLE statistics (prompt TEXT PRIMARY KEY, samples INTEGER NOT NULL, successes INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE held_out (
  version INTEGER NOT NULL, position INTEGER NOT NULL, prompt TEXT NOT NULL, family TEXT NOT NULL, question TEXT NOT NULL,
  answer TEXT NOT NULL, length INTEGER NOT NULL, is_right INTEGER NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (version, position)) WITHOUT ROWID;
CREATE TABLE evaluations (version INTEGER PRIMARY KEY, iteration INTEGER NOT NULL, status TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE iterations (iteration INTEGER PRIMARY KEY, version INTEGER NOT NULL, record TEXT NOT NULL);
"""

ADDED = """
-- The rest of a batch that is too long for one value, from a byte on.
CREATE TABLE IF NOT EXISTS batch_parts (version INTEGER NOT NULL, start INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (version, start));
CREATE INDEX IF NOT EXISTS consumed_groups ON groups (consumed);
"""
"""What came later: a file of before gets it when it is opened, and a release of before can do without."""


class Database:
    """The master's SQLite file, held by a lock for as long as this object lives.

    Raises:
        ConfigurationError: another master has it open, or it was written by another release.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / "master.lock")
        self.path = folder / "master.sqlite"
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        # FULL: a commit decides which checkpoint may be deleted, so it has to survive a power cut as well.
        self.connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
        if not self.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            with self.transaction("create"):
                for statement in SCHEMA.split(";\n"):
                    self.connection.execute(statement)
                self.put("schema", SCHEMA_VERSION)
        elif (found := self.get("schema")) != SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self.path} has schema {found}, this release reads schema {SCHEMA_VERSION}: "
                "finish the job with the release that started it, or start afresh in an empty folder"
            )
        self.connection.executescript(ADDED)

    @contextmanager
    def transaction(self, name: str) -> Iterator[sqlite3.Connection]:
        """All or nothing, and durable when left. `name` says what for; transactions do not nest."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:  # a full disk has ended it already
                self.connection.execute("ROLLBACK")
            raise

    def get(self, key: str) -> Any:
        """A JSON value of the meta table, None if there is none."""
        row = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value; within a transaction."""
        self.connection.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (key, json.dumps(value)))

    def close(self) -> None:
        """Close file and lock."""
        self.connection.close()
        os.close(self._lock)


def _locked(path: Path) -> int:
    """Descriptor of a file that this process alone holds; the lock goes with the process, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigurationError(f"another master is running on {path.parent}: stop it first, or use another folder") from None
    return descriptor
