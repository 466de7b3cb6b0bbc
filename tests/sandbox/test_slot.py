"""One slot as the service sees it: what it hears at which moment. Its end of the socket is held by the test."""

import asyncio
import fcntl
import json
import os
import socket

import pytest

from rljob.sandbox.cgroups import Cgroup
from rljob.sandbox.inside.runner import Ended
from rljob.sandbox.slot import Interior, NamespaceSlot, Stream

_F_SETPIPE_SZ = 1031


def connected() -> tuple[NamespaceSlot, socket.socket]:
    """A slot that takes orders, and who answers for it."""
    slot = NamespaceSlot(Interior("python", (), (), {}), Cgroup("none", {}), None)
    slot._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    slot._control.setblocking(False)
    return slot, theirs


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(8))
async def test_a_run_that_ends_in_the_moment_in_which_it_is_cancelled_leaves_a_slot_that_can_be_used(turns: int) -> None:
    slot, theirs = connected()
    with theirs:
        ending = asyncio.create_task(slot._end(1, wall=5))
        await asyncio.sleep(0.01)
        theirs.send(json.dumps(vars(Ended(1))).encode())
        for _ in range(turns):
            await asyncio.sleep(0)
        ending.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(ending, return_exceptions=True)
        assert not slot.broken
        assert slot._control is not None
        slot._control.close()


@pytest.mark.asyncio
async def test_a_slot_whose_answer_nobody_waited_for_is_not_used_again() -> None:
    slot, theirs = connected()
    with theirs:
        ending = asyncio.create_task(slot._end(1, wall=5))
        for _ in range(2):
            await asyncio.sleep(0.01)
            ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        assert slot.broken
        assert slot._control is not None
        slot._control.close()


def test_the_last_output_is_read_to_its_end_whatever_packets_it_comes_in() -> None:
    reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    os.set_blocking(reading, False)
    fcntl.fcntl(writing, _F_SETPIPE_SZ, 1 << 20)
    for _ in range(256):
        os.write(writing, b"x")
    os.close(writing)
    stream = Stream(reading, 1000)
    stream.read_rest()
    assert stream.total == 256
    os.close(reading)
