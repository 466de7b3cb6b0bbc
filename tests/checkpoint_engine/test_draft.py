"""The file that the next version is put together in: whose it is, what comes into it, and what becomes of the one before."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.checkpoint_engine.test_pull import made
from tests.master.virtual import run

from rljob.checkpoint_engine.draft import Draft, aside_path, draft_path, take_back
from rljob.checkpoint_engine.hold import take
from rljob.checkpoint_engine.outcome import ArenaHeld, DeadlineExceeded
from rljob.checkpoint_engine.pull import Puller, _Pull
from rljob.checkpoint_engine.transport import SourceFailed, SourceLied
from rljob.wire.pieces import PullPlan, PullReport
from rljob.wire.weights import Manifest


def test_what_an_engine_reads_is_not_written(tmp_path: Path) -> None:
    arena = tmp_path / "arena.safetensors"
    manifest = made(arena, 1, tensors=1)
    draft_path(arena).write_bytes(b"an engine serves from this")
    with draft_path(arena).open("rb") as engine:
        take(engine.fileno())
        with pytest.raises(ArenaHeld, match="is in use: an engine serves from it"):
            Draft.of(draft_path(arena), manifest)
        assert draft_path(arena).read_bytes() == b"an engine serves from this"
    Draft.of(draft_path(arena), manifest).close()


def test_a_draft_that_is_there_is_not_replaced_by_the_version_before(tmp_path: Path) -> None:
    arena = tmp_path / "arena.safetensors"
    aside_path(arena).write_bytes(b"before")
    take_back(arena)
    assert draft_path(arena).read_bytes() == b"before"
    aside_path(arena).write_bytes(b"older")
    take_back(arena)
    assert draft_path(arena).read_bytes() == b"before"


def test_a_version_of_another_checksum_is_not_pulled(tmp_path: Path) -> None:
    """It is being made again: what the master knows of it is about to change."""
    arena = tmp_path / "arena.safetensors"
    manifest = made(tmp_path / "source.safetensors", 1, tensors=1)

    async def known(version: int) -> Manifest:
        return manifest

    tracker, nobody = (cast(Any, twin) for twin in (SimpleNamespace(manifest=known), None))
    puller = Puller(tracker, nobody, nobody, arena, "rollout-0", "http://rollout-0", 60)
    assert run(puller.pull(1, "another", lambda progress: None)) is None
    assert not draft_path(arena).exists()


def test_nothing_stays_of_a_source_that_failed_and_then_is_found_to_have_lied(tmp_path: Path) -> None:
    arena = tmp_path / "arena.safetensors"
    draft = Draft.of(draft_path(arena), made(tmp_path / "source.safetensors", 1, tensors=1))
    pull = _Pull(draft)
    assert pull.accept(0, "liar")
    pull.refuse("liar", SourceFailed("it went away"))
    assert (draft.have, pull.accept(0, "liar")) == (1, False), "what it had sent was right"
    pull.refuse("liar", SourceLied("a wrong checksum"))
    assert draft.have == 0
    draft.close()


def test_a_try_ends_when_nothing_has_come_for_long(tmp_path: Path) -> None:
    draft = Draft.of(draft_path(tmp_path / "arena.safetensors"), made(tmp_path / "source.safetensors", 1, tensors=1))

    async def nobody_can(version: int, report: PullReport) -> PullPlan:
        return PullPlan(wanted=True)

    tracker, nobody = (cast(Any, twin) for twin in (SimpleNamespace(pull=nobody_can), None))
    puller = Puller(tracker, nobody, nobody, tmp_path / "arena.safetensors", "rollout-0", "http://rollout-0", patience=60)
    with pytest.raises(DeadlineExceeded, match="none came for 60 s"):
        run(asyncio.wait_for(puller._fetch_all(_Pull(draft), nobody, lambda progress: None), 120))
    draft.close()
