"""Real processes pull from each other; one is killed, stopped, or lies in the middle. What failed spoils nothing: the next try succeeds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.checkpoint_engine.test_pull import flip, made, whole

from rljob.checkpoint_engine.draft import Draft, draft_path
from rljob.wire.pieces import pieces
from rljob.wire.weights import Manifest

ROOT = Path(__file__).parents[2]
TENSORS = 24
FAULTS = ("SIGKILL", "SIGSTOP", "a wrong byte")


class Node:
    """A process of `pull_node`."""

    def __init__(self, folder: Path, transport: str) -> None:
        self.arena = folder / "w"
        folder.mkdir(exist_ok=True)
        # A read of Mooncake ends by itself; so late it counts as stalled.
        environment = {**os.environ, "MC_TRANSFER_TIMEOUT": "3"}
        command = [sys.executable, "-m", "tests.checkpoint_engine.pull_node", str(folder), transport]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> str:
        """Its answer; empty if it has ended."""
        self.tell(command)
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def has(self, version: int) -> str:
        """Its arena holds that version; its address."""
        made(self.arena, version, TENSORS)
        return self.ask("serve")

    def pull(self, manifest: Manifest, *urls: str) -> str:
        return self.ask(self.wish(manifest, *urls))

    def wish(self, manifest: Manifest, *urls: str) -> str:
        """The command to pull it."""
        file = self.arena.with_name(f"manifest-{manifest.version}.json")
        file.write_text(manifest.model_dump_json())
        return f"pull {file} {' '.join(urls)}"

    def stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def nodes(transport: str, *folders: Path) -> Iterator[list[Node]]:
    found = [Node(folder, transport) for folder in folders]
    try:
        yield found
    finally:
        for node in found:
            node.process.kill()
            node.process.communicate()


@pytest.mark.timeout(360)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("transport", ["http", "mooncake"])
def test_another_source_takes_over_and_the_next_try_succeeds(tmp_path: Path, transport: str, fault: str) -> None:
    expected = tmp_path / "expected"
    with nodes(transport, *(tmp_path / name for name in ("bad", "good", "puller"))) as (bad, good, puller):
        before = made(expected, 2, TENSORS)
        assert puller.pull(before, good.has(2)) == "done"
        assert whole(puller.arena, before)

        wanted = made(expected, 3, TENSORS)
        urls = [bad.has(3), good.has(3)]
        if fault.startswith("SIG"):
            # Over HTTP it has given some pieces by then. Mooncake asks once for each stream where to read; a read of its engine itself may
            # take its engine's own minute to fail.
            assert bad.ask(f"fault {fault} {5 if transport == 'http' else 1}") == "ready"
        else:
            flip(bad.arena, wanted, "layer.7.weight")
            flip(bad.arena, wanted, "layer.20.weight")
        # From this one alone it does not come, and what was there stays.
        failed = puller.pull(wanted, urls[0])
        assert "pieces are missing and nobody is left who has them" in failed
        assert ("with a wrong checksum" in failed) == (not fault.startswith("SIG"))
        assert whole(puller.arena, before)
        if fault == "SIGSTOP":
            bad.process.send_signal(signal.SIGCONT)
            assert bad.ask(f"fault {fault} 1") == "ready"
        assert puller.pull(wanted, *urls) == "done", "the other one takes over"
        assert whole(puller.arena, wanted)

        later = made(expected, 4, TENSORS)
        assert puller.pull(later, good.has(4)) == "done"
        assert whole(puller.arena, later)


@pytest.mark.timeout(360)
@pytest.mark.parametrize("transport", ["http", "mooncake"])
def test_a_puller_that_is_killed_keeps_the_version_before_and_goes_on_with_what_has_come(tmp_path: Path, transport: str) -> None:
    expected, folders = tmp_path / "expected", (tmp_path / "source", tmp_path / "puller")
    with nodes(transport, *folders) as (source, puller):
        before = made(expected, 2, TENSORS)
        assert puller.pull(before, source.has(2)) == "done"
        wanted = made(expected, 3, TENSORS)
        url = source.has(3)
        # Over HTTP every stream asks for a piece when it has the one before. Mooncake asks once for each stream.
        assert source.ask(f"fault SIGSTOP {10 if transport == 'http' else 1}") == "ready"
        puller.tell(puller.wish(wanted, url))
        while not source.stopped():
            time.sleep(0.01)
        puller.process.kill()
        puller.process.wait()
        source.process.send_signal(signal.SIGCONT)
        assert whole(puller.arena, before)
        draft = Draft.of(draft_path(puller.arena), wanted)
        assert draft.have.bit_count() < len(pieces(wanted))
        assert draft.have or transport == "mooncake", "some of it is kept"
        draft.close()
        with nodes(transport, folders[1]) as (again,):
            assert again.pull(wanted, url) == "done"
            assert whole(again.arena, wanted)
