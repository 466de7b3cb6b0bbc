"""What is durable: it fits into its file however long the job is, and memory is never ahead of it."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.master.twins import World, inputs, job, prompt
from tests.master.virtual import run

from rljob.master.app import open_database
from rljob.master.decisions.evaluation import HeldOutAnswer
from rljob.master.state import Buffer, Database, History, StoredBatch, Versions
from rljob.wire.node import TrainMetrics, TrainTask


def add_iterations(database: Database, count: int, **record: Any) -> None:
    """Commit's record of the next `count` iterations, and nothing else of it."""
    with database.transaction("records") as c:
        (known,) = c.execute("SELECT count(*) FROM iterations").fetchone()
        rows = ((i, i, json.dumps({**record, "iteration": i})) for i in range(known + 1, known + count + 1))
        c.executemany("INSERT INTO iterations VALUES (?, ?, ?)", rows)


def test_answers_can_be_read_for_two_versions_and_their_verdicts_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path, job(iterations=5), inputs())
    run(world.master())
    with sqlite3.connect(tmp_path / "state" / "master.sqlite") as db:
        found = db.execute(
            "SELECT consumed, count(answer), count(reason), count(finish), count(reward), count(is_right), count(length) "
            "FROM trajectories JOIN groups ON ordinal = group_id GROUP BY consumed ORDER BY consumed"
        ).fetchall()
    assert found == [(version, *((6, 6) if version > 3 else (0, 0)), 6, 6, 6, 6) for version in (1, 2, 3, 4, 5)]


def test_a_batch_that_is_too_long_for_one_value_comes_back_whole(tmp_path: Path) -> None:
    database = Database(tmp_path)
    database.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 20_000)
    versions, body = Versions(database), bytes(range(256)) * 200
    with database.transaction("start"):
        versions.start(0.0)
    stored = StoredBatch(TrainTask(version=1, kind="rl", steps=1, iteration=1), (), {})
    versions.store_batch(stored, body)
    assert versions.pending() == stored
    assert versions.batch(1) == body
    assert versions.batch(2) is None
    metrics = TrainMetrics(version=1, loss=0, grad_norm=0, learning_rate=0, steps=1, samples=1, tokens=1, seconds=0, kl=0, logprob_gap=0)
    versions.commit(stored, metrics, {}, 0.0)
    assert versions.batch(1) is None
    assert database.connection.execute("SELECT count(*) FROM batch_parts").fetchone() == (0,)
    database.close()


def test_what_is_refused_at_its_very_end_did_not_happen(tmp_path: Path) -> None:
    database = Database(tmp_path)
    history = History(database)

    def odd() -> None:
        with database.transaction("odd") as c:
            c.execute("PRAGMA defer_foreign_keys=ON")  # looked at by COMMIT
            c.execute("INSERT INTO trajectories (group_id, sample) VALUES (9, 0)")
            c.execute("INSERT INTO iterations VALUES (1, 1, '{}')")

    with pytest.raises(sqlite3.IntegrityError):
        odd()
    assert history.iterations() == ()
    add_iterations(database, 1)
    assert [record["iteration"] for record in history.iterations()] == [1]
    database.close()


def test_a_full_disk_is_named_and_not_what_follows_from_it(tmp_path: Path) -> None:
    database = Database(tmp_path)
    database.connection.execute("PRAGMA max_page_count=30")
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        add_iterations(database, 8, text="x" * 20_000)
    assert History(database).iterations() == ()
    database.close()


def test_a_database_that_cannot_be_opened_is_not_told_as_damaged(tmp_path: Path) -> None:
    """As on a full disk, where SQLite finds no page for the file that processes share."""
    Database(tmp_path).close()
    (tmp_path / "master.sqlite-shm").symlink_to("/dev/full")
    with pytest.raises(sqlite3.OperationalError, match=r"unable to open database file"):
        open_database(tmp_path)


def test_a_file_of_before_gets_what_came_later(tmp_path: Path) -> None:
    database = Database(tmp_path)
    database.connection.executescript("DROP TABLE batch_parts; DROP INDEX consumed_groups")
    database.close()
    database = Database(tmp_path)
    assert Versions(database).batch(1) is None
    database.close()


def test_what_was_drawn_is_counted_as_it_is_stored(tmp_path: Path) -> None:
    database = Database(tmp_path)
    buffer = Buffer(database, {f"p{i}": prompt(i) for i in range(4)})
    assert buffer.drawn() == 0
    buffer.draw(1, ["p0", "p1"], 2)
    assert {p: s.draws for p, s in buffer.statistics().items()} == {"p0": 1, "p1": 1}
    buffer.draw(2, ["p1", "p2"], 2)
    with pytest.raises(sqlite3.IntegrityError):
        buffer.draw(2, ["p3"], 2)  # not stored, so not counted
    counted = {p: s.draws for p, s in buffer.statistics().items()}
    assert counted == {"p0": 1, "p1": 2, "p2": 1}
    assert counted == {p: s.draws for p, s in Buffer(database, {}).statistics().items()}
    assert buffer.drawn() == 4
    database.close()


def test_a_record_is_read_once_and_news_are_seen_at_the_next_look(tmp_path: Path) -> None:
    database = Database(tmp_path)
    history = History(database)
    assert (history.iterations(), history.evaluations()) == ((), ())
    for count in (1, 2, 3):
        add_iterations(database, 1)
        with database.transaction("evaluation") as c:
            c.execute("INSERT INTO evaluations VALUES (?, ?, ?, '{}')", (count, count, json.dumps({"iteration": count, "accuracy": 0.5})))
        before = history.iterations()[:-1], history.evaluations()[:-1]
        again = history.iterations(), history.evaluations()
        assert [record["iteration"] for record in again[0]] == [e.version for e in again[1]] == list(range(1, count + 1))
        assert all(one is other for old, new in zip(before, again, strict=True) for one, other in zip(old, new, strict=False))
    database.close()


def test_of_held_out_answers_only_those_that_are_asked_for_are_read(tmp_path: Path) -> None:
    database = Database(tmp_path)
    history = History(database)
    answers = [HeldOutAnswer(f"p{i}", "ab"[i % 2], "question", "answer", 1, True) for i in range(5)]
    history.save_answers(1, list(enumerate(answers)))
    assert history.answers(1) == dict(enumerate(answers))
    assert history.answers(1, ["p3", "p1", "p9"]) == {1: answers[1], 3: answers[3]}
    assert history.answers(1, []) == {}
    assert [(a.prompt, a.family, a.answer) for a in history.outline(1)] == [(a.prompt, a.family, "") for a in answers]
    database.close()
