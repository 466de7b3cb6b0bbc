"""Ranks of several nodes begin together and end together. Real processes, without torch."""

import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.payloads import free_port
from rljob.trainer.presence import attend

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0


class World:
    """Some ranks."""

    def __init__(self) -> None:
        self.port = free_port()
        self.ranks: list[subprocess.Popen[str]] = []

    def start(self, rank: int, size: int = 3) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.trainer.presence_rank", str(rank), str(size), str(self.port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.ranks.append(process)
        return process

    def begin(self) -> list[subprocess.Popen[str]]:
        started = [self.start(rank) for rank in (2, 0, 1)]
        assert [begun(rank) for rank in started] == [True] * 3
        return sorted(started, key=started.index)


def begun(process: subprocess.Popen[str], seconds: float = PATIENCE) -> bool:
    """It has said that all are there."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return bool(ready) and process.stdout.readline() == "begun\n"


def reached(port: int) -> socket.socket:
    """A connection, once somebody listens."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.05)


def turned_away(stranger: socket.socket) -> bool:
    """The other side has closed the connection."""
    try:
        return stranger.recv(1) == b""
    except ConnectionResetError:  # it has not read all that was said
        return True


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for process in made.ranks:
        process.kill()
        process.communicate()


def test_nobody_begins_before_all_are_there(world: World) -> None:
    first, second = world.start(0), world.start(1)
    assert not begun(first, 1.0)
    assert not begun(second, 0.1)
    third = world.start(2)
    assert begun(first)
    assert begun(second)
    assert begun(third)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_all_end_when_one_does_and_begin_again(world: World, victim: int) -> None:
    two, zero, one = world.begin()
    ranks = [zero, one, two]
    ranks[victim].send_signal(signal.SIGKILL)
    assert [rank.wait(PATIENCE) for rank in ranks] == [-9 if rank == victim else 1 for rank in range(3)]
    world.begin()


def test_a_rank_that_comes_back_before_its_end_was_seen_ends_all(world: World) -> None:
    """It may be on a machine whose connection has not broken yet. It waits until rank 0 is new."""
    two, zero, one = world.begin()
    again = world.start(2)
    assert [rank.wait(PATIENCE) for rank in (zero, one, two)] == [1, 1, 1]
    assert not begun(again, 0.5)
    assert again.poll() is None
    zero, one = world.start(0), world.start(1)
    assert begun(again)
    assert begun(zero)
    assert begun(one)


def test_one_that_dies_before_all_are_there_is_waited_for(world: World) -> None:
    zero, one = world.start(0), world.start(1)
    assert not begun(zero, 1.0)
    one.kill()
    one.wait()
    two = world.start(2)
    assert not begun(zero, 1.0)
    assert zero.poll() is None
    one = world.start(1)
    assert begun(one)
    assert begun(zero)
    assert begun(two)


def test_a_stranger_is_not_counted_and_does_no_harm(world: World) -> None:
    zero, one = world.start(0), world.start(1)
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"7\n", b"0\n"):
        with reached(world.port) as stranger:
            stranger.sendall(said)
            assert turned_away(stranger)
    assert not begun(zero, 1.0)
    two = world.start(2)
    assert [begun(rank) for rank in (zero, one, two)] == [True] * 3
    with socket.create_connection(("127.0.0.1", world.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert turned_away(stranger)
    assert [rank.poll() for rank in (zero, one, two)] == [None] * 3


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InfrastructureError, match=rf"listen on 127.0.0.1:{port} \(Address already in use.*spec.templates.worker"):
            attend(0, 2, "127.0.0.1", port)
