"""Durable state: one SQLite database (WAL) in the `state` volume. What is not in here did not happen."""

from rljob.master.state.buffer import Buffer, Piece
from rljob.master.state.database import Database
from rljob.master.state.history import History
from rljob.master.state.versions import Committed, StoredBatch, Versions

__all__ = ["Buffer", "Committed", "Database", "History", "Piece", "StoredBatch", "Versions"]
